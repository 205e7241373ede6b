/* Elements of every dtype, converted to the types that arithmetic is done in (float, double,
 * int64_t) and back, bit for bit as the CPU's operations convert (crescent.h, cr_copy).
 *
 * Floats to integers truncate and saturate, and nan becomes 0; integers wrap; bool means "not
 * zero"; double to a half type rounds once. Every nan that becomes a double is the canonical one,
 * because LuaJIT takes some others for tagged values. */
#ifndef CRK_NUMBERS_H
#define CRK_NUMBERS_H

#include <type_traits>

#include "device/cuda.h"

/* An element of CR_BOOL. */
struct crk_bool {
  uint8_t v;
};

/* The type that an operation computes in. */
enum { CRK_IN_F32, CRK_IN_F64, CRK_IN_I64 };

static inline int crk_arithmetic_of(int32_t dtype) {
  if (dtype == CR_F64) return CRK_IN_F64;
  return cr__is_float(dtype) ? CRK_IN_F32 : CRK_IN_I64;
}

/* Runs statements with T as the C++ type of any dtype. */
#define CRK_ALL_TYPES(dtype, ...)                                                                  \
  switch (dtype) {                                                                                 \
    CRK_CASE(CR_F32, float, __VA_ARGS__)                                                           \
    CRK_CASE(CR_F16, __half, __VA_ARGS__)                                                          \
    CRK_CASE(CR_BF16, __nv_bfloat16, __VA_ARGS__)                                                  \
    CRK_CASE(CR_F64, double, __VA_ARGS__)                                                          \
    CRK_CASE(CR_U8, uint8_t, __VA_ARGS__)                                                          \
    CRK_CASE(CR_I8, int8_t, __VA_ARGS__)                                                           \
    CRK_CASE(CR_I16, int16_t, __VA_ARGS__)                                                         \
    CRK_CASE(CR_I32, int32_t, __VA_ARGS__)                                                         \
    CRK_CASE(CR_I64, int64_t, __VA_ARGS__)                                                         \
  default: {                                                                                       \
    typedef crk_bool T;                                                                            \
    __VA_ARGS__;                                                                                   \
  } break;                                                                                         \
  }

#ifdef __CUDACC__

template <typename T>
constexpr bool crk_is_half = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

/* Rounds double to float to odd, so that rounding the result again, to a half type, gives the
 * correctly rounded value. */
__device__ __forceinline__ float crk_round_to_odd(double d) {
  float f = __double2float_rz(d);
  return (double)f == d || f != f ? f : __int_as_float(__float_as_int(f) | 1);
}

template <typename A, typename T> __device__ __forceinline__ A crk_load_as(T x) {
  if constexpr (crk_is_half<T>) {
    return crk_load_as<A>(crk_float(x));
  } else if constexpr (std::is_same_v<T, crk_bool>) {
    return (A)(x.v != 0);
  } else if constexpr (std::is_same_v<A, double> && std::is_same_v<T, float>) {
    return x != x ? __longlong_as_double(0x7ff8000000000000ll) : (double)x;
  } else if constexpr (std::is_same_v<A, int64_t> && std::is_floating_point_v<T>) {
    return x != x ? 0 : (int64_t)__double2ll_rz((double)x);
  } else {
    return (A)x;
  }
}

template <typename T, typename A> __device__ __forceinline__ T crk_store_as(A x) {
  if constexpr (crk_is_half<T>) {
    if constexpr (std::is_same_v<A, float>)
      return crk_from<T>(x);
    else
      return crk_from<T>(crk_round_to_odd((double)x));
  } else if constexpr (std::is_same_v<T, crk_bool>) {
    return crk_bool{(uint8_t)(x != (A)0)};
  } else if constexpr (std::is_integral_v<T> && std::is_floating_point_v<A>) {
    if constexpr (sizeof(T) <= 2) {
      constexpr A low = std::is_signed_v<T> ? (A)(-(1 << (8 * sizeof(T) - 1))) : (A)0;
      constexpr A high = low + (A)((1 << (8 * sizeof(T))) - 1);
      A limited = x > low ? (x < high ? x : high) : low;
      return x != x ? (T)0 : (T)(int32_t)limited;
    } else if constexpr (sizeof(T) == 4) {
      return x != x ? 0 : __double2int_rz((double)x);
    } else {
      return x != x ? 0 : (int64_t)__double2ll_rz((double)x);
    }
  } else {
    return (T)x;
  }
}

/* Loads the element of `dtype` at p. */
template <typename A> __device__ __forceinline__ A crk_load(const void *p, int32_t dtype) {
  CRK_ALL_TYPES(dtype, return crk_load_as<A>(*(const T *)p));
  return A();
}

template <typename A> __device__ __forceinline__ void crk_store(void *p, int32_t dtype, A x) {
  CRK_ALL_TYPES(dtype, *(T *)p = crk_store_as<T>(x));
}

#endif
#endif
