/* The attention of one head, written for any vector width. attention.c includes this file once per
 * instruction set with LANES defined (instruction_set.h), so it has no include guard. Each
 * instruction set defines WIDE, the rows of a register block (8, or 4 if there are few registers);
 * MAX(a, b), which gives b if either is nan; and, if there are instructions for them, ROUND(x) and
 * SCALE(x, n) = x * 2^n.
 *
 * Queries are the lanes: a tile has vectors * LANES queries, and each lane of the scores, maxima,
 * sums and results belongs to one query. So nothing is reduced across a vector, and all head sizes
 * and numbers of keys are equally efficient. Memory, with n = vectors * LANES:
 *   queries [d][n], scaled by log2(e) / sqrt(d)    scores [KEYS][n]
 *   keys    in blocks of WIDE keys, each [d][WIDE]   (the last one is 4 wide if that is enough)
 *   values  in blocks of WIDE channels, each [S][WIDE]            (the same)
 *   result  [dv][n]
 * Both products, keys x queries and values x weights, use the same kernel (`tile`): 4 or 8 rows
 * times n columns stay in registers, and each step loads one row of vectors and broadcasts one
 * element per row. */
#include "cpu/instruction_set.h"

typedef float NAME(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VEC NAME(vec)
#define INLINE static inline __attribute__((always_inline))
#if LANES == 16
#define WIDE 8
#define MAX(a, b) (VEC) _mm512_max_ps((__m512)(a), (__m512)(b))
#define ROUND(x) (VEC) _mm512_roundscale_ps((__m512)(x), 0)
#define SCALE(x, n) (VEC) _mm512_scalef_ps((__m512)(x), (__m512)(n))
#elif LANES == 8
#define WIDE 4
#define MAX(a, b) (VEC) _mm256_max_ps((__m256)(a), (__m256)(b))
#else
#define WIDE 4
#define MAX(a, b)                                                                                  \
  (VEC)(((NAME(ivec))(a) & (NAME(ivec))((a) > (b))) | ((NAME(ivec))(b) & ~(NAME(ivec))((a) > (b))))
#endif

#ifdef BF16
#include "cpu/bf16_kernel.h"

/* Joins rows of `width` floats (a multiple of 4) into half as many rows of pairs of bf16, in
 * place. */
INLINE void NAME(pair_rows)(float *at, int64_t rows, int64_t width) {
  for (int64_t l = 0; l < rows; l += 2)
    for (int64_t i = 0; i < width; i += LANES) {
      __mmask16 part =
          width - i >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << (width - i)) - 1);
      const float *low = at + l * width + i;
      VEC a = (VEC)_mm512_maskz_loadu_ps(part, low), b = {0};
      if (l + 1 < rows) b = (VEC)_mm512_maskz_loadu_ps(part, low + width);
      _mm512_mask_storeu_ps(at + l / 2 * width + i, part, (__m512)NAME(paired)(a, b));
    }
}
#define PAIR 2 /* rows of the summed dimension per packed row */
#else
#define PAIR 1
INLINE void NAME(pair_rows)(float *at, int64_t rows, int64_t width) {
  (void)at, (void)rows, (void)width;
}
INLINE VEC NAME(added)(VEC sum, VEC b, const float *a) { return sum + b * *a; }
#endif

/* 2^x for x <= 0 (0 below -126), nan for nan. The polynomials are minimax fits of 2^f for |f| <=
 * 1/2; the relative error including roundings is 2e-7, and 8e-5 with BF16, a twentieth of what its
 * rounding costs. */
INLINE VEC NAME(exp2)(VEC x) {
#ifdef SCALE
  x = MAX((VEC){0} - 200.0f, x); /* -inf would give nan */
  VEC n = ROUND(x), f = x - n;
#else
  VEC n = x + 12582912.0f; /* 1.5 * 2^23: leaves the rounded x in the low bits */
  VEC f = x - (n - 12582912.0f);
#endif
#ifdef BF16
  VEC p = f * 0.05517169f + 0.24261117f;
  p = p * f + 0.69326099f;
  p = p * f + 0.99992807f;
#else
  VEC p = f * 0.001327647129f + 0.009675540961f;
  p = p * f + 0.05550713092f;
  p = p * f + 0.2402212024f;
  p = p * f + 0.693146944f;
  p = p * f + 1.000000119f;
#endif
#ifdef SCALE
  return SCALE(p, n);
#else
  NAME(ivec) bits = (NAME(ivec))p + ((NAME(ivec))n << 23);
  return (VEC)(bits & ~(NAME(ivec))(x < -126.0f));
#endif
}

/* c [rows][n] = (alpha ? c * alpha : 0) + a^T b with a [k][rows] and b [k][n], both packed. With
 * BF16, k counts pairs. */
INLINE void NAME(tile_of)(float *c, const float *a, const float *b, int64_t k, const VEC *alpha,
                          const int rows, const int vectors) {
  VEC sum[8][2];
  const int n = vectors * LANES;
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
      if (alpha)
        sum[r][v] = *(const VEC *)(c + r * n + v * LANES) * alpha[v];
      else
        sum[r][v] = (VEC){0};
  for (int64_t l = 0; l < k; l++) {
    VEC row[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) row[v] = *(const VEC *)(b + l * n + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++)
        sum[r][v] = NAME(added)(sum[r][v], row[v], a + l * rows + r);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) *(VEC *)(c + r * n + v * LANES) = sum[r][v];
}

INLINE void NAME(tile)(float *c, const float *a, const float *b, int64_t k, const VEC *alpha,
                       int rows, const int vectors) {
#if WIDE == 8
  if (rows == 8) {
    NAME(tile_of)(c, a, b, k, alpha, 8, vectors);
    return;
  }
#endif
  (void)rows;
  NAME(tile_of)(c, a, b, k, alpha, 4, vectors);
}

/* to[c][r] = from[r][c] * scale for a block of 4 x 4; transpose8 does 8 x 8. */
INLINE void NAME(transpose4)(float *to, int64_t to_step, const float *from, int64_t from_step,
                             float scale) {
  typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
  v4 a = *(const v4 *)from, b = *(const v4 *)(from + from_step),
     c = *(const v4 *)(from + 2 * from_step), d = *(const v4 *)(from + 3 * from_step);
  v4 p = __builtin_shufflevector(a, b, 0, 4, 1, 5), q = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  v4 r = __builtin_shufflevector(c, d, 0, 4, 1, 5), t = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(v4 *)to = __builtin_shufflevector(p, r, 0, 1, 4, 5) * scale;
  *(v4 *)(to + to_step) = __builtin_shufflevector(p, r, 2, 3, 6, 7) * scale;
  *(v4 *)(to + 2 * to_step) = __builtin_shufflevector(q, t, 0, 1, 4, 5) * scale;
  *(v4 *)(to + 3 * to_step) = __builtin_shufflevector(q, t, 2, 3, 6, 7) * scale;
}

#if LANES >= 8
INLINE void NAME(transpose8)(float *to, int64_t to_step, const float *from, int64_t from_step,
                             float scale) {
  typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
  v8 a[8], b[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) a[r] = *(const v8 *)(from + r * from_step);
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) { /* interleave pairs of rows within 128-bit halves */
    b[r] = __builtin_shufflevector(a[r], a[r + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[r + 1] = __builtin_shufflevector(a[r], a[r + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int r = 0; r < 8; r += 4) { /* interleave groups of four rows */
    a[r] = __builtin_shufflevector(b[r], b[r + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    a[r + 1] = __builtin_shufflevector(b[r], b[r + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    a[r + 2] = __builtin_shufflevector(b[r + 1], b[r + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    a[r + 3] = __builtin_shufflevector(b[r + 1], b[r + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) { /* join the halves */
    *(v8 *)(to + r * to_step) =
        __builtin_shufflevector(a[r], a[r + 4], 0, 1, 2, 3, 8, 9, 10, 11) * scale;
    *(v8 *)(to + (r + 4) * to_step) =
        __builtin_shufflevector(a[r], a[r + 4], 4, 5, 6, 7, 12, 13, 14, 15) * scale;
  }
}
#endif

/* to[c][r] = from[r][c] * scale. */
INLINE void NAME(transpose)(float *to, int64_t to_step, const float *from, int64_t from_step,
                            int64_t rows, int64_t columns, float scale) {
  int64_t r = 0;
#if LANES >= 8
  for (; rows - r >= 8; r += 8) {
    int64_t c = 0;
    for (; columns - c >= 8; c += 8)
      NAME(transpose8)(to + c * to_step + r, to_step, from + r * from_step + c, from_step, scale);
    for (; columns - c >= 4; c += 4)
      for (int64_t k = r; k < r + 8; k += 4)
        NAME(transpose4)(to + c * to_step + k, to_step, from + k * from_step + c, from_step, scale);
    for (; c < columns; c++)
      for (int64_t k = r; k < r + 8; k++) to[c * to_step + k] = from[k * from_step + c] * scale;
  }
#endif
  for (; rows - r >= 4; r += 4) {
    int64_t c = 0;
    for (; columns - c >= 4; c += 4)
      NAME(transpose4)(to + c * to_step + r, to_step, from + r * from_step + c, from_step, scale);
    for (; c < columns; c++)
      for (int64_t k = r; k < r + 4; k++) to[c * to_step + k] = from[k * from_step + c] * scale;
  }
  for (; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) to[c * to_step + r] = from[r * from_step + c] * scale;
}

/* scores[j] = 2^(scores[j] * factor - base) for all keys of a vector of queries, `vectors` vectors
 * apart, in pairs of keys with BF16. Returns the sum. */
INLINE VEC NAME(weights_of)(VEC *scores, int64_t keys, const int vectors, float factor, VEC base) {
  VEC sum = {0};
#ifdef BF16
  VEC odd = {0};
  for (int64_t j = 0; j < keys; j += 2) {
    VEC low = NAME(exp2)(scores[j * vectors] * factor - base), high = {0};
    if (j + 1 < keys) high = NAME(exp2)(scores[(j + 1) * vectors] * factor - base);
    scores[j / 2 * vectors] = NAME(paired)(low, high);
    sum += low;
    odd += high;
  }
  sum += odd;
#else
  for (int64_t j = 0; j < keys; j++) {
    VEC e = NAME(exp2)(scores[j * vectors] * factor - base);
    scores[j * vectors] = e;
    sum += e;
  }
#endif
  return sum;
}

INLINE void NAME(queries)(const head *h, const work *w, int64_t first, int64_t count,
                          const int vectors) {
  const int n = vectors * LANES;
  VEC high[2], sum[2], one[2];
  for (int v = 0; v < vectors; v++)
    high[v] = (VEC){0} - INFINITY, sum[v] = (VEC){0}, one[v] = (VEC){0} + 1.0f;
  if (count < n) memset(w->queries, 0, (size_t)(h->d * n) * sizeof(float));
  /* bf16 queries stay exact, so the scores are scaled instead: with the exponential if that is the
   * same, else before it */
  const float scale = PAIR == 2 ? 1.0f : h->scale;
  const bool later = PAIR == 2 && !h->mask && h->scale > 0;
  const float factor = later ? h->scale : 1.0f;
  NAME(transpose)(w->queries, n, h->q + first * h->q_step, h->q_step, count, h->d, scale);
  NAME(pair_rows)(w->queries, h->d, n);
  for (int64_t key = 0; key < h->s; key += KEYS) {
    int64_t keys = h->s - key < KEYS ? h->s - key : KEYS;
    /* Long heads are processed in pieces, so that a piece of the queries stays in the L1 cache. */
    for (int64_t l = 0; l < h->d; l += DEPTH) {
      int64_t depth = h->d - l < DEPTH ? h->d - l : DEPTH;
      for (int64_t j = 0; j < keys; j += WIDE) {
        int rows = keys - j > 4 ? WIDE : 4;
        NAME(tile)
        (w->scores + j * n, w->keys + (key + j) * h->d + l / PAIR * rows, w->queries + l / PAIR * n,
         (depth + PAIR - 1) / PAIR, l ? one : NULL, rows, vectors);
      }
    }
    if (PAIR == 2 && !later)
      for (int64_t j = 0; j < keys * vectors; j++) ((VEC *)w->scores)[j] *= h->scale;
    if (h->mask) add_mask(h, w->scores, n, first, count, key, keys);
    VEC alpha[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      VEC *scores = (VEC *)(w->scores + v * LANES);
      VEC top = (VEC){0} - INFINITY;
      for (int64_t j = 0; j < keys; j++) {
        VEC x = scores[j * vectors];
        top = MAX(x, top); /* ignores a nan, which exp2 below propagates */
      }
      top = MAX(top * factor, high[v]);
      /* If all keys so far are masked, any finite number replaces -inf, which would give nan. */
      VEC base = (VEC)((NAME(ivec))top & (NAME(ivec))(top != -INFINITY));
      alpha[v] = NAME(exp2)(high[v] - base);
      sum[v] = sum[v] * alpha[v] + NAME(weights_of)(scores, keys, vectors, factor, base);
      high[v] = top;
    }
    for (int64_t j = 0; j < h->dv; j += WIDE) {
      int rows = h->dv - j > 4 ? WIDE : 4;
      NAME(tile)
      (w->result + j * n, w->values + h->s * j + key / PAIR * rows, w->scores,
       (keys + PAIR - 1) / PAIR, key ? alpha : NULL, rows, vectors);
    }
  }
  for (int v = 0; v < vectors; v++) {
    VEC norm = 1.0f / sum[v];
    for (int64_t c = 0; c < h->dv; c++) *(VEC *)(w->result + c * n + v * LANES) *= norm;
  }
  NAME(transpose)(h->out + first * h->out_step, h->out_step, w->result, n, h->dv, count, 1.0f);
}

/* Computes queries first ... last - 1 of a head. */
static void NAME(attend)(const head *h, const work *w, int64_t first, int64_t last) {
  for (int64_t j = 0; j < h->s;
       j += WIDE) { /* KEYS is a multiple of WIDE, so no block straddles two key blocks */
    int rows = h->s - j > 4 ? WIDE : 4;
    int64_t there = h->s - j < rows ? h->s - j : rows;
    float *to = w->keys + j * h->d;
    if (there < rows) memset(to, 0, (size_t)(rows * h->d) * sizeof *to);
    NAME(transpose)(to, rows, h->k + j * h->k_step, h->k_step, there, h->d, 1.0f);
    NAME(pair_rows)(to, h->d, rows);
  }
  for (int64_t j = 0; j < h->dv; j += WIDE) {
    int rows = h->dv - j > 4 ? WIDE : 4;
    float *to = w->values + j * h->s;
    const float *v = h->v + j;
    if (h->dv - j >= rows && rows == 4)
      for (int64_t s = 0; s < h->s; s++) memcpy(to + s * 4, v + s * h->v_step, 4 * sizeof *to);
    else if (h->dv - j >= rows)
      for (int64_t s = 0; s < h->s; s++) memcpy(to + s * 8, v + s * h->v_step, 8 * sizeof *to);
    else
      for (int64_t s = 0; s < h->s; s++)
        for (int r = 0; r < rows; r++) to[s * rows + r] = j + r < h->dv ? v[s * h->v_step + r] : 0;
    NAME(pair_rows)(to, h->s, rows);
  }
  int64_t i = first;
  for (; last - i > LANES; i += 2 * LANES)
    NAME(queries)(h, w, i, last - i < 2 * LANES ? last - i : 2 * LANES, 2);
  if (i < last) NAME(queries)(h, w, i, last - i, 1);
}

#undef VEC
#undef INLINE
#undef WIDE
#undef MAX
#undef ROUND
#undef SCALE
#undef PAIR
#include "cpu/instruction_set.h"
