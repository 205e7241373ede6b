/* Unsigned keys in the order of elements: nan comes last, and -0 equals 0. */
#ifndef CRK_ORDER_H
#define CRK_ORDER_H

#include "device/cuda.h"

/* How a dtype's bits are ordered. */
typedef struct crk_order {
  bool floats, negatives; /* neither: the dtype is unsigned */
  bool descending;
  uint64_t infinity; /* its bits */
} crk_order;

static inline crk_order crk_order_of(int32_t dtype, bool descending) {
  crk_order o = {cr__is_float(dtype), dtype != CR_U8 && dtype != CR_BOOL, descending, 0};
  if (dtype == CR_F16) o.infinity = 0x7c00;
  if (dtype == CR_BF16) o.infinity = 0x7f80;
  if (dtype == CR_F32) o.infinity = 0x7f800000;
  if (dtype == CR_F64) o.infinity = 0x7ff0000000000000;
  return o;
}

#ifdef __CUDACC__
/* S is an unsigned integer of the element's size, and so is the key. */
template <typename S> constexpr S crk_sign = (S)((S)1 << (8 * sizeof(S) - 1));

template <typename S> __device__ __forceinline__ S crk_key(S bits, const crk_order &o) {
  S sign = crk_sign<S>, all = (S) ~(S)0, key = bits;
  if (o.floats) {
    if (bits == sign) bits = 0;
    key = (S)(bits & ~sign) > (S)o.infinity ? all : bits & sign ? (S)~bits : (S)(bits | sign);
  } else if (o.negatives) {
    key = bits ^ sign;
  }
  return o.descending ? (S)~key : key;
}

/* The element of a key. False if several elements have that key: both zeros, or all nans. */
template <typename S>
__device__ __forceinline__ bool crk_element_of(S key, const crk_order &o, S *bits) {
  S sign = crk_sign<S>, all = (S) ~(S)0;
  if (o.descending) key = (S)~key;
  *bits = o.floats ? key & sign ? (S)(key ^ sign) : (S)~key : o.negatives ? (S)(key ^ sign) : key;
  return !o.floats || (key != sign && key != all);
}
#endif

#endif
