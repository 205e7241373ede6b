/* Convolutions with 3x3 and 2x2 windows by Winograd's algorithm (Lavin & Gray 2016). Six points in
 * each direction need 36 products for 4x4 results of a 3x3 window (instead of 144) or 5x5 results
 * of a 2x2 window (instead of 100). The points are 0, +-sqrt 2, +-sqrt 1/2 and infinity: with them
 * the error is about twice that of a plain f32 sum, a fifth of that with the points 0, +-1, +-2. In
 * bf16 both factors are rounded after their transforms, which gives a relative error of about 1.2
 * %.
 *
 * A thread processes ranges of tiles: it transforms their inputs, computes a matrix product for
 * each point, and transforms the results with the epilogue. The weights are transformed at each
 * call, for the same reasons as in conv.c, and for as many output channels as fit into a cache;
 * with many tiles that is a small part of the time. A value of x that is not finite affects all of
 * its tile. */
#include "cpu/winograd.h"

#include <omp.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/lanes.h"

enum {
  POINTS = 36,
  GROUP = 4,                    /* pairs of blocks of output channels between two transforms */
  LINE = 16,                    /* floats per cache line */
  WEIGHTS_FLOATS = 2048 * 1024, /* about the size of transformed weights at a time */
  RANGE_FLOATS = 320 * 1024,    /* about the size of the inputs and outputs of a range of tiles */
  FEWEST_TILES = 48,            /* of a range, if there are as many */
  FEWEST_CHANNELS = 16
};
#define SQRT2 1.41421356f
#define SQRT_HALF 0.707106781f

typedef struct problem {
  const void *x, *weight, *residual; /* f32, or bf16 like out */
  void *out;
  const float *bias, *slope;
  float *weights;
  int64_t h, w, c, out_h, out_w, o, top, left;
  int64_t down, across, tiles; /* rows and columns of tiles in an image; tiles of all images */
  int64_t blocks, pairs;       /* of x's channels; of pairs of blocks of output channels */
  int64_t first, last;         /* range of the pairs whose weights are transformed */
  int64_t weights_step;
  int taps, side; /* of the window; of a tile's results */
  int32_t act;
} problem;

/* The scratch memory of a thread. */
typedef struct work {
  float *inputs, *outputs;
  int64_t inputs_step, outputs_step;
} work;

/* The image of a tile, and its first result in it. */
typedef struct place {
  int64_t image, y, x;
} place;

static inline place place_of(const problem *p, int64_t tile) {
  int64_t row = tile / p->across;
  return (place){row / p->down, row % p->down * p->side, tile % p->across * p->side};
}

typedef struct kind {
  int lanes, rows, words; /* words: the floats that `lanes` channels take */
  void (*weights)(const problem *p, int64_t pair, int64_t block);
  void (*range)(const problem *p, const work *w, int64_t first, int64_t count);
} kind;

#define LANES 4
#include "cpu/winograd_kernel.h"
#ifdef HAVE_X86
#include <immintrin.h>

#define LANES 8
#include "cpu/winograd_kernel.h"
#define LANES 16
#include "cpu/winograd_kernel.h"
#define BF16
#define LANES 16
#include "cpu/winograd_kernel.h"
#endif

static const kind *choose(int32_t dtype) {
#ifdef HAVE_X86
  if (dtype == CR_BF16) return &bf16_kind;
  if (cr__lanes() == 16) return &avx512_kind;
  if (cr__lanes() == 8) return &avx2_kind;
#endif
  return &base_kind;
}

static int64_t divided(int64_t x, int64_t by) { return (x + by - 1) / by; }

static int64_t tiles_of(const cr_tensor *out, int side) {
  return out->shape[0] * divided(out->shape[1], side) * divided(out->shape[2], side);
}

/* Products per tile take about 50 times as long as one of the plain algorithm, and the weights'
 * transform takes as long as about 1600. */
bool cr__winograd_fits(const cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                       const cr_conv *o) {
  int32_t taps = weight->shape[1];
  bool known = o->act == CR_ACT_NONE || o->act == CR_ACT_RELU || o->act == CR_ACT_PRELU;
  if (!known || (taps != 3 && taps != 2) || weight->shape[2] != taps || o->stride_h != 1 ||
      o->stride_w != 1 || o->dilation_h != 1 || o->dilation_w != 1 || o->groups != 1 ||
      x->shape[3] < FEWEST_CHANNELS)
    return false;
  int64_t pixels = (int64_t)out->shape[0] * out->shape[1] * out->shape[2];
  return taps * taps * pixels > 50 * tiles_of(out, 7 - taps) + 1600;
}

int cr__winograd(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
                 const cr_tensor *residual, const cr_tensor *slope, const cr_conv *o) {
  const kind *kind = choose(x->dtype);
  int64_t lanes = kind->lanes, rows = kind->rows;
  problem p = {.x = cr__ptr(x),
               .weight = cr__ptr(weight),
               .bias = bias ? cr__ptr(bias) : NULL,
               .residual = residual ? cr__ptr(residual) : NULL,
               .slope = slope ? cr__ptr(slope) : NULL,
               .out = cr__ptr(out),
               .h = x->shape[1],
               .w = x->shape[2],
               .c = x->shape[3],
               .out_h = out->shape[1],
               .out_w = out->shape[2],
               .o = out->shape[3],
               .top = o->pad[0],
               .left = o->pad[2],
               .taps = weight->shape[1],
               .side = 7 - weight->shape[1],
               .act = o->act};
  p.down = divided(p.out_h, p.side);
  p.across = divided(p.out_w, p.side);
  p.tiles = tiles_of(out, p.side);
  p.blocks = divided(p.c, lanes);
  p.pairs = divided(p.o, 2 * lanes);
  p.weights_step = p.blocks * kind->words * 2 * lanes + LINE;
  int64_t columns = 2 * lanes * (p.pairs < GROUP ? p.pairs : GROUP);
  int64_t threads = cr_threads();
  /* The number of ranges is that of threads, or a multiple of it. */
  int64_t most = RANGE_FLOATS / (POINTS * (p.blocks * kind->words + columns));
  if (most < FEWEST_TILES) most = FEWEST_TILES;
  int64_t ranges = divided(divided(p.tiles, most), threads) * threads;
  most = divided(divided(p.tiles, ranges), rows) * rows;
  ranges = divided(p.tiles, most);
  if (ranges < threads) threads = ranges;
  work w = {.inputs_step = p.blocks * kind->words * most + LINE,
            .outputs_step = columns * most + LINE};
  int64_t floats = POINTS * (w.inputs_step + w.outputs_step);
  int64_t portion = WEIGHTS_FLOATS / (POINTS * p.weights_step) / GROUP * GROUP;
  if (portion < GROUP) portion = GROUP;
  if (portion > p.pairs) portion = p.pairs;
  int64_t all = portion * POINTS * p.weights_step;
  cr_storage *weights = cr__storage_new(all * (int64_t)sizeof(float), CR_CPU);
  cr_storage *memory = cr__storage_new(threads * floats * (int64_t)sizeof(float), CR_CPU);
  int rc = weights && memory ? CR_OK : CR_ENOMEM;
  if (rc >= 0) {
    p.weights = weights->data;
#pragma omp parallel num_threads(threads) firstprivate(p)
    {
      work own = w;
      own.inputs = (float *)memory->data + omp_get_thread_num() * floats;
      own.outputs = own.inputs + POINTS * own.inputs_step;
      for (p.first = 0; p.first < p.pairs; p.first = p.last) {
        p.last = p.first + portion < p.pairs ? p.first + portion : p.pairs;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < (p.last - p.first) * p.blocks; i++)
          kind->weights(&p, p.first + i / p.blocks, i % p.blocks);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < ranges; i++) {
          int64_t first = i * most;
          kind->range(&p, &own, first, p.tiles - first < most ? p.tiles - first : most);
        }
      }
    }
  }
  if (weights) cr__release(weights);
  if (memory) cr__release(memory);
  return rc;
}
