/* Neighbouring numbers that are loaded and stored at once, converted to floats and back. */
#ifndef CRK_PACKS_H
#define CRK_PACKS_H

#include "device/cuda.h"

#ifdef __CUDACC__
/* Packs two floats as two neighbours of T (__half or __nv_bfloat16), the first in the low half. */
template <typename T> __device__ __forceinline__ uint32_t crk_pair(float low, float high);
template <> __device__ __forceinline__ uint32_t crk_pair<__half>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <> __device__ __forceinline__ uint32_t crk_pair<__nv_bfloat16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

/* Unpacks two neighbours of T to floats. */
template <typename T> __device__ __forceinline__ float2 crk_unpair(uint32_t pair);
template <> __device__ __forceinline__ float2 crk_unpair<__half>(uint32_t pair) {
  return __half22float2(*(const __half2 *)&pair);
}
template <> __device__ __forceinline__ float2 crk_unpair<__nv_bfloat16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* V numbers to floats and back; 8 halves are converted two at a time, since one by one they would
 * cost a permutation each. */
template <typename T, int V>
__device__ __forceinline__ void crk_unpack(float *to, const crk_pack<T, V> &from) {
  if constexpr (sizeof(T) == 2 && V == 8) {
    uint4 bits = *(const uint4 *)&from;
    uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float2 two = crk_unpair<T>(words[j]);
      to[2 * j] = two.x;
      to[2 * j + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; j++) to[j] = crk_float(from.v[j]);
  }
}
template <typename T, int V>
__device__ __forceinline__ crk_pack<T, V> crk_repack(const float *from) {
  if constexpr (sizeof(T) == 2 && V == 8) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; j++) words[j] = crk_pair<T>(from[2 * j], from[2 * j + 1]);
    uint4 bits = make_uint4(words[0], words[1], words[2], words[3]);
    return *(const crk_pack<T, V> *)&bits;
  } else {
    crk_pack<T, V> to;
#pragma unroll
    for (int j = 0; j < V; j++) to.v[j] = crk_from<T>(from[j]);
    return to;
  }
}
#endif

#endif
