/* What the two kernels for temporal attention share. */
#ifndef CRK_ATTENTION_TEMPORAL_H
#define CRK_ATTENTION_TEMPORAL_H

#include "attention/attention.h"
#include "device/tensor_core.h"

/* The work of temporal attention: a problem is one head of one position. */
typedef struct crk_temporal {
  const void *q, *k, *v;
  void *out;
  uint32_t problems; /* positions x heads, heads fastest */
  int64_t q_row, k_row, v_row, out_row;
  int64_t q_stride[CRK_ATTENTION_LEADING], k_stride[CRK_ATTENTION_LEADING];
  int64_t v_stride[CRK_ATTENTION_LEADING], out_stride[CRK_ATTENTION_LEADING];
  uint32_t size[CRK_ATTENTION_LEADING];
  int32_t leading, heads, d, frames;
  float scale; /* multiplied by log2 e */
  crk_attention_codes coded;
} crk_temporal;

/* The softmax weights of a tile's rows g (elements 0 and 1 of x) and g + 8 (2 and 3) from their
 * scores x. A row is spread over 4 lanes, of which this is lane i. `weight` has the operands of the
 * next mma, `inverse` what its result must be multiplied by. Keys beyond `frames` get no weight. */
template <typename T, int TILES>
__device__ __forceinline__ void
crk_temporal_softmax(float (&x)[2 * TILES][4], uint32_t (&weight)[TILES][4], float (&inverse)[2],
                     int i, int frames, float scale) {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < 2 * TILES; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      x[n][e] = 8 * n + 2 * i + (e & 1) < frames ? x[n][e] * scale : -INFINITY;
      top[e >> 1] = fmaxf(top[e >> 1], x[n][e]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
  }
#pragma unroll
  for (int n = 0; n < 2 * TILES; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      x[n][e] = exp2f(x[n][e] - top[e >> 1]);
      sum[e >> 1] += x[n][e];
    }
    weight[n / 2][n % 2 * 2] = crk_pair<T>(x[n][0], x[n][1]);
    weight[n / 2][n % 2 * 2 + 1] = crk_pair<T>(x[n][2], x[n][3]);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    inverse[r] = 1.0f / sum[r];
  }
}

/* The kernel that stages rows in shared memory: 1 if done, 0 if rows or heads do not suit it, or an
 * error. */
int crk_attention_temporal_staged(crk_device *d, const crk_temporal *w, const crk_attention *a);

#endif
