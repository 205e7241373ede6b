/* The attention of one head, written once for any vector width; attention.c includes this file for
 * each instruction set (no include guard, therefore) with these defined: LANES, floats in a vector;
 * WIDE, rows of a register block: 8, or 4 where there are few registers; NAME(x); MAX(a, b), b
 * where one is a nan; ROUND(x) and SCALE(x, n) = x 2^n if there are instructions for them.
 *
 * Queries are the lanes: a tile is `vectors` * LANES queries, and scores, maxima, sums and results
 * all hold one query in each lane, so that nothing is ever reduced across a vector, and any head
 * size and number of keys is as good as another. Memory, with n = vectors * LANES:
 *   queries [d][n], scaled by log2 e / sqrt d      scores [KEYS][n]
 *   keys    in blocks of WIDE keys, each [d][WIDE]   (the last one is 4 wide if that is enough)
 *   values  in blocks of WIDE channels, each [S][WIDE]            (the same)
 *   result  [dv][n]
 * Both products, keys x queries and values x weights, are then one kernel (`tile`): a block of 8 or
 * 4 rows times n columns kept in registers, one row of the vectors and one broadcast each step. */

typedef float NAME(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VEC NAME(vec)
#define INLINE static inline __attribute__((always_inline))

/* 2^x for x <= 0 (0 below -126), nan for nan; the polynomial is the minimax fit of 2^f for
 * |f| <= 1/2, relative error 2e-7 with its roundings. */
INLINE VEC NAME(exp2)(VEC x) {
#ifdef SCALE
  x = MAX((VEC){0} - 200.0f, x); /* -inf would be nan */
  VEC n = ROUND(x), f = x - n;
#else
  VEC n = x + 12582912.0f; /* 1.5 * 2^23: leaves x, rounded, in the low bits */
  VEC f = x - (n - 12582912.0f);
#endif
  VEC p = f * 0.001327647129f + 0.009675540961f;
  p = p * f + 0.05550713092f;
  p = p * f + 0.2402212024f;
  p = p * f + 0.693146944f;
  p = p * f + 1.000000119f;
#ifdef SCALE
  return SCALE(p, n);
#else
  NAME(ivec) bits = (NAME(ivec))p + ((NAME(ivec))n << 23);
  return (VEC)(bits & ~(NAME(ivec))(x < -126.0f));
#endif
}

/* c [rows][n] = (alpha ? c * alpha : 0) + a' b with a [k][rows], b [k][n], all packed. */
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
      for (int v = 0; v < vectors; v++) sum[r][v] += row[v] * a[l * rows + r];
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

INLINE void NAME(queries)(const head *h, const work *w, int64_t first, int64_t count,
                          const int vectors) {
  const int n = vectors * LANES;
  VEC high[2], sum[2];
  for (int v = 0; v < vectors; v++) high[v] = (VEC){0} - INFINITY, sum[v] = (VEC){0};
  for (int64_t i = 0; i < n; i++) {
    const float *q = h->q + (first + i) * h->q_step;
    for (int64_t l = 0; l < h->d; l++) w->queries[l * n + i] = i < count ? q[l] * h->scale : 0;
  }
  for (int64_t key = 0; key < h->s; key += KEYS) {
    int64_t keys = h->s - key < KEYS ? h->s - key : KEYS;
    for (int64_t j = 0; j < keys; j += WIDE) {
      int rows = keys - j > 4 ? WIDE : 4;
      NAME(tile)
      (w->scores + j * n, w->keys + (key + j) * h->d, w->queries, h->d, NULL, rows, vectors);
    }
    if (h->mask) add_mask(h, w->scores, n, first, count, key, keys);
    VEC alpha[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      VEC *scores = (VEC *)(w->scores + v * LANES);
      VEC top = high[v];
      for (int64_t j = 0; j < keys; j++) {
        VEC x = scores[j * vectors];
        top = MAX(x, top); /* of a nan and a number, the number: the nan comes by exp2 */
      }
      /* All masked so far: any finite number will do in place of -inf, which would give nan. */
      VEC base = (VEC)((NAME(ivec))top & (NAME(ivec))(top != -INFINITY));
      alpha[v] = NAME(exp2)(high[v] - base);
      VEC add = {0};
      for (int64_t j = 0; j < keys; j++) {
        VEC e = NAME(exp2)(scores[j * vectors] - base);
        scores[j * vectors] = e;
        add += e;
      }
      sum[v] = sum[v] * alpha[v] + add;
      high[v] = top;
    }
    for (int64_t j = 0; j < h->dv; j += WIDE) {
      int rows = h->dv - j > 4 ? WIDE : 4;
      NAME(tile)
      (w->result + j * n, w->values + h->s * j + key * rows, w->scores, keys, key ? alpha : NULL,
       rows, vectors);
    }
  }
  float norm[2 * LANES];
  for (int v = 0; v < vectors; v++) *(VEC *)(norm + v * LANES) = 1.0f / sum[v];
  for (int64_t i = 0; i < count; i++) {
    float *out = h->out + (first + i) * h->out_step;
    for (int64_t c = 0; c < h->dv; c++) out[c] = w->result[c * n + i] * norm[i];
  }
}

/* Queries first .. last - 1 of a head. */
static void NAME(attend)(const head *h, const work *w, int64_t first, int64_t last) {
  for (int64_t j = 0; j < h->s; j += WIDE) { /* KEYS is a multiple of WIDE: blocks never straddle */
    int rows = h->s - j > 4 ? WIDE : 4;
    float *to = w->keys + j * h->d;
    for (int r = 0; r < rows; r++) {
      const float *k = h->k + (j + r) * h->k_step;
      for (int64_t l = 0; l < h->d; l++) to[l * rows + r] = j + r < h->s ? k[l] : 0;
    }
  }
  for (int64_t j = 0; j < h->dv; j += WIDE) {
    int rows = h->dv - j > 4 ? WIDE : 4;
    float *to = w->values + j * h->s;
    for (int64_t s = 0; s < h->s; s++) {
      const float *v = h->v + s * h->v_step + j;
      for (int r = 0; r < rows; r++) to[s * rows + r] = j + r < h->dv ? v[r] : 0;
    }
  }
  int64_t i = first;
  for (; last - i > LANES; i += 2 * LANES)
    NAME(queries)(h, w, i, last - i < 2 * LANES ? last - i : 2 * LANES, 2);
  if (i < last) NAME(queries)(h, w, i, last - i, 1);
}

#undef VEC
#undef INLINE
