/* 8-bit codes of f32 numbers: int8_t is int8 (-127 to 127; nan becomes 0), uint8_t is E4M3 (448 is
 * the largest; nan stays). Rounded to nearest, ties to even, as core/cpu/quant.c does. */
#ifndef CRK_CODES_H
#define CRK_CODES_H

#include <cuda_fp8.h>

#include "device/cuda.h"

enum { CRK_INT4_GROUP = 64 }; /* neighbours in an int4 weight that share a scale */

/* Whether codes are int4, two in a byte: only those have a scale of the same rank as the codes. */
static inline bool crk_is_int4(const cr_tensor *codes, const cr_tensor *scale) {
  return codes->dtype == CR_U8 && scale && scale->rank == codes->rank;
}

#ifdef __CUDACC__
template <typename A> struct crk_code;
template <> struct crk_code<int8_t> {
  static constexpr float MOST = 127.0f;
  /* Adds a constant that leaves the rounded integer in the lowest bits; conversion instructions are
   * slow. */
  static __device__ __forceinline__ uint32_t one(float x) {
    float y = fminf(fmaxf(x == x ? x : 0, -127.0f), 127.0f) + 12582912.0f; /* 1.5 * 2^23 */
    return __float_as_uint(y) & 0xff;
  }
  static __device__ __forceinline__ uint32_t two(float a, float b) { return one(a) | one(b) << 8; }
};
template <> struct crk_code<uint8_t> {
  static constexpr float MOST = 448.0f;
  static __device__ __forceinline__ uint32_t one(float x) {
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  }
  static __device__ __forceinline__ uint32_t two(float a, float b) {
    return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  }
};

/* The codes of V neighbours, each multiplied by its factor first. */
template <int V>
__device__ __forceinline__ crk_pack<uint8_t, V> crk_codes(const float *x, const float *factor,
                                                          bool e4m3) {
  crk_pack<uint8_t, V> to;
#pragma unroll
  for (int j = 0; j < V; j++) {
    float y = __fmul_rn(x[j], factor[j]);
    to.v[j] = (uint8_t)(e4m3 ? crk_code<uint8_t>::one(y) : crk_code<int8_t>::one(y));
  }
  return to;
}

/* The factor of a number of a layer before it is coded. */
__device__ __forceinline__ float crk_inverse(float divisor) { return __frcp_rn(divisor); }
#endif

#endif
