/* Creating random number generators, and the Mersenne twister that torch uses on a CPU. */
#include "base/generator.h"

#include <stdlib.h>

/* Matsumoto & Nishimura 1998. */
static void twister_seed(cr_generator *g, uint32_t seed) {
  g->state[0] = seed;
  for (uint32_t i = 1; i < 624; i++) {
    uint32_t last = g->state[i - 1];
    g->state[i] = 1812433253u * (last ^ last >> 30) + i;
  }
  g->next = 624;
}

static void twister_refill(cr_generator *g) {
  uint32_t *s = g->state;
  for (int32_t i = 0; i < 624; i++) {
    uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
    s[i] = s[(i + 397) % 624] ^ y >> 1 ^ (y & 1u ? 0x9908b0dfu : 0);
  }
  g->next = 0;
}

uint32_t cr__twister_32(cr_generator *g) {
  if (g->next == 624) twister_refill(g);
  uint32_t y = g->state[g->next++];
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680u;
  y ^= y << 15 & 0xefc60000u;
  return y ^ y >> 18;
}

CR_EXPORT int cr_generator_new(cr_generator **out, int32_t kind, uint64_t seed) {
  *out = NULL;
  if (kind < 0 || kind >= CR_RNG_KINDS) {
    return cr__fail(CR_EINVAL, "generator: there is no kind %d", kind);
  }
  cr_generator *g = calloc(1, sizeof *g);
  if (!g) return cr__fail(CR_ENOMEM, "generator: out of memory");
  g->kind = kind;
  g->seed = seed;
  twister_seed(g, (uint32_t)seed); /* torch uses the lower half of the seed too */
  *out = g;
  return CR_OK;
}

CR_EXPORT int cr_generator_copy(cr_generator **out, const cr_generator *g) {
  *out = malloc(sizeof *g);
  if (!*out) return cr__fail(CR_ENOMEM, "generator: out of memory");
  **out = *g;
  return CR_OK;
}

CR_EXPORT void cr_generator_free(cr_generator *g) { free(g); }
