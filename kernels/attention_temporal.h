/* What the two kernels for temporal attention share. */
#ifndef CRK_ATTENTION_TEMPORAL_H
#define CRK_ATTENTION_TEMPORAL_H

#include "attention.h"
#include "tensor_core.h"

/* problems: positions x heads. */
typedef struct crk_temporal {
  const void *q, *k, *v;
  void *out;
  uint32_t problems; /* positions x heads, heads fastest */
  int64_t q_row, k_row, v_row, out_row;
  int64_t q_stride[CRK_ATTENTION_LEADING], k_stride[CRK_ATTENTION_LEADING];
  int64_t v_stride[CRK_ATTENTION_LEADING], out_stride[CRK_ATTENTION_LEADING];
  uint32_t size[CRK_ATTENTION_LEADING];
  int32_t leading, heads, d, frames;
  float scale; /* times log2 e */
} crk_temporal;

template <typename T> __device__ __forceinline__ uint32_t crk_pair(float low, float high) {
  crk_pack<T, 2> p = {{crk_from<T>(low), crk_from<T>(high)}};
  return *(const uint32_t *)&p;
}

/* Through shared memory, where rows and heads suit it. 0 if they do not; else 1, or an error. */
int crk_attention_temporal_staged(crk_device *d, const crk_temporal *w, int32_t dtype);

#endif
