/* Winograd's convolution of some tiles, written for any vector width. winograd.c includes this file
 * once per instruction set with LANES defined (instruction_set.h), so it has no include guard.
 * ROWS: tiles of a register block.
 *
 * Channels are the lanes in the transforms. In the products the output channels are the lanes,
 * while channels of x are broadcast one by one: a register block has ROWS tiles times two vectors
 * of output channels. In memory, the channels of x are padded with zeros to blocks of LANES, the
 * output channels to pairs of blocks:
 *   weights  [pairs][36 points][channels of x][2][LANES]
 *   inputs   [36][tiles / ROWS][blocks of x][ROWS][LANES]
 *   outputs  [36][tiles][GROUP pairs][2][LANES]
 * The stride of a point is LINE floats longer than that, so that the points of a tile do not map to
 * one set of the L1 cache.
 *
 * With BF16, x, the weights, residual and result are bf16, and so are both factors of the products.
 * Two adjacent channels then share a 32-bit word in weights and inputs, which are half as large. */
#include "cpu/instruction_set.h"

typedef float NAME(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VEC NAME(vec)
#define INLINE static inline __attribute__((always_inline))
#define ROWS (LANES == 16 ? 12 : 6)

/* Loads the first n floats, and zeros for the rest. */
INLINE VEC NAME(load_floats)(const float *from, int64_t n) {
  if (n >= LANES) return *(const VEC *)from;
  VEC x = {0};
  for (int64_t i = 0; i < n; i++) x[i] = from[i];
  return x;
}

#ifdef BF16
#include "cpu/bf16_kernel.h"
#define WORDS (LANES / 2) /* 32-bit words of LANES channels in weights and inputs */
typedef uint16_t NAME(element);
INLINE VEC NAME(load)(const uint16_t *from, int64_t n) {
  if (n >= LANES) return NAME(widened)(_mm256_loadu_si256((const __m256i *)from));
  return NAME(widened)(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), from));
}

INLINE void NAME(store)(uint16_t *to, VEC x, int64_t n) {
  __mmask16 all = n >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
  _mm256_mask_storeu_epi16(to, all, NAME(narrowed)(x));
}

INLINE float NAME(number)(uint16_t x) { return cr__from_bits((uint32_t)x << 16); }
INLINE void NAME(put_input)(float *to, VEC x) {
  _mm256_storeu_si256((__m256i *)to, NAME(narrowed)(x));
}

#else
#define WORDS LANES
typedef float NAME(element);
INLINE VEC NAME(load)(const float *from, int64_t n) { return NAME(load_floats)(from, n); }

INLINE void NAME(store)(float *to, VEC x, int64_t n) {
  if (n >= LANES) {
    *(VEC *)to = x;
    return;
  }
  for (int64_t i = 0; i < n; i++) to[i] = x[i];
}

INLINE float NAME(number)(float x) { return x; }
INLINE void NAME(put_input)(float *to, VEC x) { *(VEC *)to = x; }
INLINE VEC NAME(added)(VEC sum, VEC b, const float *a) { return sum + b * *a; }
#endif

/* B^T d: transforms six values of x, `step` apart, in place. */
INLINE void NAME(to_points)(VEC *d, const int step) {
  VEC x0 = d[0], x1 = d[step], x2 = d[2 * step], x3 = d[3 * step], x4 = d[4 * step],
      x5 = d[5 * step];
  VEC even = x4 - x2 * 0.5f, odd = (x3 - x1 * 0.5f) * SQRT2;
  VEC even2 = x4 - x2 * 2.0f, odd2 = (x3 - x1 * 2.0f) * SQRT_HALF;
  d[0] = x0 - x2 * 2.5f + x4;
  d[step] = even + odd;
  d[2 * step] = even - odd;
  d[3 * step] = even2 + odd2;
  d[4 * step] = even2 - odd2;
  d[5 * step] = x1 - x3 * 2.5f + x5;
}

/* G g: transforms `taps` values into six. */
INLINE void NAME(weights_to_points)(VEC *to, const VEC *g, const int to_step, const int step,
                                    const int taps) {
  VEC g0 = g[0], g1 = g[step];
  VEC g2 = {0};
  if (taps == 3) g2 = g[2 * step];
  VEC even = (g0 + g2 * 2.0f) * (1.0f / 6), odd = g1 * (SQRT2 / 6);
  VEC even2 = (g0 + g2 * 0.5f) * (-2.0f / 3), odd2 = g1 * (-2 * SQRT_HALF / 3);
  to[0] = g0;
  to[to_step] = even + odd;
  to[2 * to_step] = even - odd;
  to[3 * to_step] = even2 + odd2;
  to[4 * to_step] = even2 - odd2;
  to[5 * to_step] = taps == 3 ? g2 : g1;
}

/* A^T m: transforms the values of the points, `step` apart, into 7 - taps results, in place. */
INLINE void NAME(from_points)(VEC *d, const int step, const int taps) {
  VEC m5 = d[5 * step];
  VEC sum = d[step] + d[2 * step], difference = (d[step] - d[2 * step]) * SQRT2;
  VEC sum2 = d[3 * step] + d[4 * step], difference2 = (d[3 * step] - d[4 * step]) * SQRT_HALF;
  d[0] = d[0] + sum + sum2;
  d[step] = difference + difference2;
  d[2 * step] = sum * 2.0f + sum2 * 0.5f;
  d[3 * step] = difference * 2.0f + difference2 * 0.5f;
  if (taps == 3)
    d[3 * step] += m5;
  else
    d[4 * step] = sum * 4.0f + sum2 * 0.25f + m5;
}

/* Transforms the weights of one pair of blocks of output channels and one block of channels of
 * x. */
static void NAME(weights)(const problem *p, int64_t pair, int64_t block) {
  int64_t c0 = block * LANES, o0 = pair * 2 * LANES;
  int64_t c = p->c - c0 < LANES ? p->c - c0 : LANES;
  int64_t o = p->o - o0 < 2 * LANES ? p->o - o0 : 2 * LANES;
  int taps = p->taps;
  float turned[9][LANES][2 * LANES];
  memset(turned, 0, sizeof turned);
  for (int64_t k = 0; k < o; k++)
    for (int t = 0; t < taps * taps; t++) {
      const NAME(element) *from =
          (const NAME(element) *)p->weight + ((o0 + k) * taps * taps + t) * p->c + c0;
      for (int64_t i = 0; i < c; i++) turned[t][i][k] = NAME(number)(from[i]);
    }
  float *to = p->weights + (pair - p->first) * POINTS * p->weights_step + block * WORDS * 2 * LANES;
#ifdef BF16
  VEC even[2][36];
#endif
  for (int64_t i = 0; i < LANES; i++)
    for (int v = 0; v < 2; v++) {
      VEC g[9], half[18], all[36];
      for (int t = 0; t < taps * taps; t++) g[t] = *(const VEC *)(turned[t][i] + v * LANES);
      if (taps == 3) {
        for (int t = 0; t < 3; t++) NAME(weights_to_points)(half + t, g + t, 3, 3, 3);
        for (int t = 0; t < 6; t++) NAME(weights_to_points)(all + 6 * t, half + 3 * t, 1, 1, 3);
      } else {
        for (int t = 0; t < 2; t++) NAME(weights_to_points)(half + t, g + t, 2, 2, 2);
        for (int t = 0; t < 6; t++) NAME(weights_to_points)(all + 6 * t, half + 2 * t, 1, 1, 2);
      }
#ifdef BF16
      if (i % 2 == 0) memcpy(even[v], all, sizeof all);
      if (i % 2 == 0) continue;
      for (int q = 0; q < POINTS; q++) all[q] = NAME(paired)(even[v][q], all[q]);
#endif
      float *here = to + i * WORDS / LANES * 2 * LANES + v * LANES;
      for (int q = 0; q < POINTS; q++) *(VEC *)(here + q * p->weights_step) = all[q];
    }
}

/* Transforms block b of the channels of tiles first ... first + count - 1. */
static void NAME(input)(const problem *p, const work *w, int64_t first, int64_t count, int64_t b) {
  const int64_t channels = p->c, line = p->w * channels, step = w->inputs_step;
  const int64_t c = channels - b * LANES;
  for (int64_t t = 0; t < count; t++) {
    const place at = place_of(p, first + t);
    const int64_t y0 = at.y - p->top, x0 = at.x - p->left;
    const bool inside = y0 >= 0 && x0 >= 0 && y0 + 6 <= p->h && x0 + 6 <= p->w;
    const NAME(element) *from =
        (const NAME(element) *)p->x + (at.image * p->h + y0) * line + x0 * channels + b * LANES;
    VEC d[36];
    if (inside && c >= LANES) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++)
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++)
          d[6 * i + j] = NAME(load)(from + i * line + j * channels, LANES);
      /* of the next tile */
      for (int i = 0; i < 6; i++)
        for (int j = 6; j < 10; j++) __builtin_prefetch(from + i * line + j * channels);
    } else {
      for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++) {
          int64_t y = y0 + i, x = x0 + j;
          bool there = y >= 0 && y < p->h && x >= 0 && x < p->w;
          d[6 * i + j] = there ? NAME(load)(from + i * line + j * channels, c) : (VEC){0};
        }
    }
    float *to = w->inputs + ((t / ROWS * p->blocks + b) * ROWS + t % ROWS) * WORDS;
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) NAME(to_points)(d + j, 6);
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
      NAME(to_points)(d + 6 * i, 1);
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) NAME(put_input)(to + (6 * i + j) * step, d[6 * i + j]);
    }
  }
}

/* c [ROWS][vectors] = a b with a [blocks][ROWS][WORDS] and b [blocks * WORDS][2]. */
INLINE void NAME(product_of)(float *c, int64_t c_step, const float *a, const float *b,
                             int64_t blocks, const int vectors) {
  VEC sum[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) sum[r][v] = (VEC){0};
  for (int64_t l = 0; l < blocks; l++, a += ROWS * WORDS)
#pragma GCC unroll 4
    for (int k = 0; k < WORDS; k++, b += 2 * LANES) {
      VEC row[2];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) row[v] = *(const VEC *)(b + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
          sum[r][v] = NAME(added)(sum[r][v], row[v], a + r * WORDS + k);
    }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) *(VEC *)(c + r * c_step + v * LANES) = sum[r][v];
}

static void NAME(product)(float *c, int64_t c_step, const float *a, const float *b, int64_t blocks,
                          int vectors) {
  if (vectors == 2)
    NAME(product_of)(c, c_step, a, b, blocks, 2);
  else
    NAME(product_of)(c, c_step, a, b, blocks, 1);
}

INLINE VEC NAME(act)(VEC y, int32_t act, VEC slope) {
  NAME(ivec) negative = (NAME(ivec))(y < 0.0f);
  if (act == CR_ACT_RELU) return (VEC)(~negative & (NAME(ivec))y);
  if (act == CR_ACT_PRELU)
    return (VEC)((negative & (NAME(ivec))(y * slope)) | (~negative & (NAME(ivec))y));
  return y;
}

/* Computes LANES output channels of a tile from the values of its points. */
INLINE void NAME(output_of)(const problem *p, const work *w, int64_t tile, const float *from,
                            int64_t o, const int taps) {
  const int side = 7 - taps;
  VEC d[36];
#pragma GCC unroll 36
  for (int q = 0; q < POINTS; q++) d[q] = *(const VEC *)(from + q * w->outputs_step);
#pragma GCC unroll 6
  for (int j = 0; j < 6; j++) NAME(from_points)(d + j, 6, taps);
#pragma GCC unroll 5
  for (int i = 0; i < side; i++) NAME(from_points)(d + 6 * i, 1, taps);
  int64_t n = p->o - o, image = tile / p->across / p->down;
  int64_t y0 = tile / p->across % p->down * side, x0 = tile % p->across * side;
  VEC bias = {0}, slope = {0};
  if (p->bias) bias = NAME(load_floats)(p->bias + o, n);
  if (p->slope) slope = NAME(load_floats)(p->slope + o, n);
  for (int i = 0; i < side && y0 + i < p->out_h; i++)
    for (int j = 0; j < side && x0 + j < p->out_w; j++) {
      int64_t at = ((image * p->out_h + y0 + i) * p->out_w + x0 + j) * p->o + o;
      VEC y = NAME(act)(d[6 * i + j] + bias, p->act, slope);
      if (p->residual) y += NAME(load)((const NAME(element) *)p->residual + at, n);
      NAME(store)((NAME(element) *)p->out + at, y, n);
    }
}

/* Processes tiles first ... first + count - 1. */
static void NAME(range)(const problem *p, const work *w, int64_t first, int64_t count) {
  int64_t row_blocks = (count + ROWS - 1) / ROWS;
  for (int64_t b = 0; b < p->blocks; b++) NAME(input)(p, w, first, count, b);
  int64_t a_step = p->blocks * ROWS * WORDS;
  for (int64_t g = p->first; g < p->last; g += GROUP) {
    int64_t pairs = p->last - g < GROUP ? p->last - g : GROUP, c_step = pairs * 2 * LANES;
    for (int q = 0; q < POINTS; q++)
      for (int64_t k = 0; k < pairs; k++) {
        const float *b = p->weights + ((g + k - p->first) * POINTS + q) * p->weights_step;
        int vectors = p->o - (g + k) * 2 * LANES > LANES ? 2 : 1;
        for (int64_t t = 0; t < row_blocks; t++) NAME(product)
        (w->outputs + q * w->outputs_step + t * ROWS * c_step + k * 2 * LANES, c_step,
         w->inputs + q * w->inputs_step + t * a_step, b, p->blocks, vectors);
      }
    for (int64_t t = 0; t < count; t++)
      for (int64_t o = g * 2 * LANES; o < p->o && o < (g + pairs) * 2 * LANES; o += LANES) {
        const float *from = w->outputs + t * c_step + o - g * 2 * LANES;
        if (p->taps == 3)
          NAME(output_of)(p, w, first + t, from, o, 3);
        else
          NAME(output_of)(p, w, first + t, from, o, 2);
      }
  }
}

static const kind NAME(kind) = {LANES, ROWS, WORDS, NAME(weights), NAME(range)};

#undef VEC
#undef INLINE
#undef ROWS
#undef WORDS
#include "cpu/instruction_set.h"
