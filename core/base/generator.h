/* The state of a generator, shared by the backends, which draw from it.
 *
 * Invariant: a draw changes the state exactly as torch's generator of that kind changes its own, so
 * sequences of draws of any sizes stay in step with torch. */
#ifndef CR_GENERATOR_H
#define CR_GENERATOR_H

#include "base/internal.h"

struct cr_generator {
  int32_t kind;
  uint64_t seed;
  /* CR_RNG_TORCH_CPU: the Mersenne twister, and the second number of the last scalar Box-Muller
   * pair */
  uint32_t state[624];
  int32_t next; /* 624: all words are used up */
  bool has_normal;
  double normal;
  /* CR_RNG_TORCH_CUDA: torch's Philox offset; CR_RNG_PHILOX: elements drawn so far */
  uint64_t offset;
};

/* How torch's CUDA generator draws n > 0 numbers: with a grid of `threads` threads, each of which
 * uses one counter in each of `turns` turns. Every device uses the grid of a GPU with 132
 * multiprocessors. */
typedef struct cr__torch_grid {
  uint64_t threads, turns;
} cr__torch_grid;
enum { CR__TORCH_BLOCK = 256, CR__TORCH_BLOCKS = 132 * 2048 / CR__TORCH_BLOCK };

static inline cr__torch_grid cr__torch_grid_of(int64_t n, bool f64) {
  uint64_t blocks = ((uint64_t)n + CR__TORCH_BLOCK - 1) / CR__TORCH_BLOCK, each = f64 ? 2 : 4;
  if (blocks > CR__TORCH_BLOCKS) blocks = CR__TORCH_BLOCKS;
  cr__torch_grid grid = {blocks * CR__TORCH_BLOCK, 0};
  grid.turns = ((uint64_t)n - 1) / (grid.threads * each) + 1;
  return grid;
}

/* Returns by how much a draw of n > 0 numbers advances the offset of a counter-based generator. */
static inline uint64_t cr__generator_stride(const cr_generator *g, int64_t n, bool f64) {
  if (g->kind == CR_RNG_TORCH_CUDA) return cr__torch_grid_of(n, f64).turns * 4;
  return ((uint64_t)n + 3) / 4 * 4;
}

/* Returns the next 32 bits of a CR_RNG_TORCH_CPU generator's Mersenne twister. */
uint32_t cr__twister_32(cr_generator *g);

#endif
