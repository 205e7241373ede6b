/* What a generator holds; shared by the backends, which draw.
 *
 * Invariant: a draw changes the state exactly as torch's generator of that kind changes its own, so
 * a sequence of draws of any sizes stays in step. */
#ifndef CR_GENERATOR_H
#define CR_GENERATOR_H

#include "base/internal.h"

struct cr_generator {
  int32_t kind;
  uint64_t seed;
  /* CR_RNG_TORCH_CPU: Mersenne twister and the second number of the last scalar Box-Muller pair */
  uint32_t state[624];
  int32_t next; /* 624: used up */
  bool has_normal;
  double normal;
  /* CR_RNG_TORCH_CUDA: torch's Philox offset; CR_RNG_PHILOX: elements drawn so far */
  uint64_t offset;
};

/* The next 32 bits of a CR_RNG_TORCH_CPU generator's Mersenne twister. */
uint32_t cr__twister_32(cr_generator *g);

#endif
