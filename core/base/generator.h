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

/* How torch's CUDA generator draws n > 0 numbers: a grid of so many threads, of which each takes a
 * counter at a time, `turns` times. That of 132 multiprocessors on every device. */
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

/* How far a draw of n > 0 numbers moves the offset of a counter-based generator. */
static inline uint64_t cr__generator_stride(const cr_generator *g, int64_t n, bool f64) {
  if (g->kind == CR_RNG_TORCH_CUDA) return cr__torch_grid_of(n, f64).turns * 4;
  return ((uint64_t)n + 3) / 4 * 4;
}

/* The next 32 bits of a CR_RNG_TORCH_CPU generator's Mersenne twister. */
uint32_t cr__twister_32(cr_generator *g);

#endif
