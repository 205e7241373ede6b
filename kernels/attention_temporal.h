/* What the two kernels for temporal attention share. */
#ifndef CRK_ATTENTION_TEMPORAL_H
#define CRK_ATTENTION_TEMPORAL_H

#include "attention.h"

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

/* D += A B, m16 n8 k16, f32 accumulation. */
template <typename T>
__device__ __forceinline__ void crk_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void crk_mma<__half>(float *c, const uint32_t *a, uint32_t b0,
                                                uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void crk_mma<__nv_bfloat16>(float *c, const uint32_t *a, uint32_t b0,
                                                       uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T> __device__ __forceinline__ uint32_t crk_pair(float low, float high) {
  crk_pack<T, 2> p = {{crk_from<T>(low), crk_from<T>(high)}};
  return *(const uint32_t *)&p;
}

/* Through shared memory, where rows and heads suit it. 0 if they do not; else 1, or an error. */
int crk_attention_temporal_staged(crk_device *d, const crk_temporal *w, int32_t dtype);

#endif
