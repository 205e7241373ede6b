/* Tensors of any strides over one shape: how every elementwise and moving kernel finds its
 * elements.
 *
 * A crk_plan (host) is one shape and the strides of several operands over it, the result first.
 * Dimensions that all operands can merge are merged, so that most calls are left with one or two. A
 * crk_strided (device) is the same for at most 2^31 items, with strides in bytes, and divides by
 * multiplying. Where the innermost dimension is dense, an item may be a vector.
 *
 * Invariant: dimension 0 is the innermost here, unlike in a cr_tensor. */
#ifndef CRK_STRIDED_H
#define CRK_STRIDED_H

#include "device/cuda.h"

enum { CRK_OPERANDS = 17 };
#define CRK_MAX_ITEMS ((int64_t)1 << 31)

typedef struct crk_plan {
  int32_t operands;
  int32_t rank; /* >= 1 */
  int64_t shape[CR_MAX_RANK];
  int64_t stride[CRK_OPERANDS][CR_MAX_RANK]; /* in elements; 0: the operand is repeated */
  char *data[CRK_OPERANDS];
  int64_t size[CRK_OPERANDS]; /* bytes of an element */
} crk_plan;

/* The plan of operands broadcast to `shape`, not merged yet. */
static inline crk_plan crk_plan_of(int32_t n, const cr_tensor *const *xs, int32_t rank,
                                   const int32_t *shape) {
  crk_plan p = {};
  p.operands = n;
  p.rank = rank;
  for (int32_t k = 0; k < rank; k++) p.shape[rank - 1 - k] = shape[k];
  for (int32_t i = 0; i < n; i++) {
    p.data[i] = (char *)crk_ptr(xs[i]);
    p.size[i] = cr_dtype_size(xs[i]->dtype);
    for (int32_t k = 0; k < xs[i]->rank; k++) {
      int32_t own = xs[i]->rank - 1 - k;
      p.stride[i][k] = xs[i]->shape[own] == 1 ? 0 : xs[i]->stride[own];
    }
  }
  return p;
}

static inline int64_t crk_plan_total(const crk_plan *p) {
  int64_t total = 1;
  for (int32_t k = 0; k < p->rank; k++) total *= p->shape[k];
  return total;
}

static inline void crk_plan_swap(crk_plan *p, int32_t j, int32_t k) {
  int64_t shape = p->shape[j];
  p->shape[j] = p->shape[k];
  p->shape[k] = shape;
  for (int32_t i = 0; i < p->operands; i++) {
    int64_t stride = p->stride[i][j];
    p->stride[i][j] = p->stride[i][k];
    p->stride[i][k] = stride;
  }
}

/* Drops dimension k, which must be of size 1. */
static inline void crk_plan_drop(crk_plan *p, int32_t k) {
  p->rank--;
  for (; k < p->rank; k++) crk_plan_swap(p, k, k + 1);
}

/* Drops dimensions of size 1, and merges those that all operands can merge. `sort`: the order of
 * elements does not matter, so the result's densest dimension may become the innermost. */
static inline void crk_plan_merge(crk_plan *p, bool sort) {
  for (int32_t k = p->rank - 1; k >= 0; k--)
    if (p->shape[k] == 1) crk_plan_drop(p, k);
  if (sort) {
    for (int32_t j = 1; j < p->rank; j++)
      for (int32_t k = j; k > 0 && p->stride[0][k] < p->stride[0][k - 1]; k--)
        crk_plan_swap(p, k, k - 1);
  }
  for (int32_t k = 1; k < p->rank;) {
    bool fits = true;
    for (int32_t i = 0; i < p->operands; i++)
      fits = fits && p->stride[i][k] == p->stride[i][k - 1] * p->shape[k - 1];
    if (!fits) {
      k++;
      continue;
    }
    p->shape[k - 1] *= p->shape[k];
    p->shape[k] = 1;
    crk_plan_drop(p, k);
  }
  if (p->rank == 0) {
    p->rank = 1;
    p->shape[0] = 1;
    for (int32_t i = 0; i < p->operands; i++) p->stride[i][0] = 1;
  }
}

static inline int64_t crk_gcd(int64_t a, int64_t b) {
  while (b) {
    int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

/* The most elements of operand i (a power of two, at most `most`) that can always be moved at once
 * along a dense innermost dimension; its address and its other strides limit it. */
static inline int64_t crk_plan_width(const crk_plan *p, int32_t i, int64_t most) {
  int64_t width = crk_gcd(most, p->shape[0]);
  for (int32_t k = 1; k < p->rank; k++) width = crk_gcd(width, p->stride[i][k]);
  while (width > 1 && (uintptr_t)p->data[i] % (uintptr_t)(width * p->size[i])) width /= 2;
  return width;
}

/* Splits *p into plans of at most `limit` elements and calls `launch` with each. */
template <typename F> static int crk_plan_split(const crk_plan *p, int64_t limit, F launch) {
  if (crk_plan_total(p) <= limit) return launch(*p);
  int32_t outer = p->rank - 1;
  while (p->shape[outer] == 1) outer--;
  int64_t half = p->shape[outer] / 2;
  if (half > 256) half &= ~(int64_t)255; /* do not split vectors */
  crk_plan part = *p;
  part.shape[outer] = half;
  CR_TRY(crk_plan_split(&part, limit, launch));
  for (int32_t i = 0; i < p->operands; i++) part.data[i] += half * p->stride[i][outer] * p->size[i];
  part.shape[outer] = p->shape[outer] - half;
  return crk_plan_split(&part, limit, launch);
}

/* ---- on the device ---- */

/* n / d for n <= 2^31 by a multiplication: Granlund & Montgomery 1994. */
typedef struct crk_divisor {
  uint32_t d, multiplier, shift;
} crk_divisor;

static inline crk_divisor crk_divisor_of(int64_t d) {
  crk_divisor r = {(uint32_t)d, 0, 0};
  while (((uint64_t)1 << r.shift) < (uint64_t)d) r.shift++;
  r.multiplier =
      (uint32_t)((((uint64_t)1 << 32) * (((uint64_t)1 << r.shift) - (uint64_t)d)) / (uint64_t)d +
                 1);
  return r;
}

template <int N> struct crk_strided {
  int32_t rank;
  uint32_t items;
  crk_divisor size[CR_MAX_RANK];
  int64_t stride[N][CR_MAX_RANK]; /* bytes */
  char *data[N];
};

/* Of a plan, with `width` elements of the innermost dimension as one item; the operands must be
 * dense there. */
template <int N> static crk_strided<N> crk_strided_of(const crk_plan *p, int64_t width) {
  crk_strided<N> w = {};
  w.rank = p->rank;
  w.items = (uint32_t)(crk_plan_total(p) / width);
  for (int32_t k = 0; k < p->rank; k++) {
    w.size[k] = crk_divisor_of(k == 0 ? p->shape[0] / width : p->shape[k]);
    for (int32_t i = 0; i < N; i++)
      w.stride[i][k] = p->stride[i][k] * p->size[i] * (k == 0 ? width : 1);
  }
  for (int32_t i = 0; i < N; i++) w.data[i] = p->data[i];
  return w;
}

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t crk_divide(uint32_t n, const crk_divisor &d) {
  return (__umulhi(n, d.multiplier) + n) >> d.shift;
}

/* The byte offsets of item i in all operands. */
template <int N>
__device__ __forceinline__ void crk_offsets(const crk_strided<N> &w, uint32_t i, int64_t (&at)[N]) {
#pragma unroll
  for (int n = 0; n < N; n++) at[n] = 0;
#pragma unroll
  for (int k = 0; k < CR_MAX_RANK; k++) {
    if (k == w.rank - 1) {
#pragma unroll
      for (int n = 0; n < N; n++) at[n] += (int64_t)i * w.stride[n][k];
      break;
    }
    uint32_t rest = crk_divide(i, w.size[k]);
    uint32_t index = i - rest * w.size[k].d;
#pragma unroll
    for (int n = 0; n < N; n++) at[n] += (int64_t)index * w.stride[n][k];
    i = rest;
  }
}

/* Calls f with a value of a type of `bytes` bytes: 16, 8, 4 or 2; else of 1 byte. */
template <typename F> static void crk_with_unit(int64_t bytes, F f) {
  if (bytes == 16) return f(uint4());
  if (bytes == 8) return f(uint2());
  if (bytes == 4) return f(uint32_t());
  if (bytes == 2) return f(uint16_t());
  f(uint8_t());
}

/* N elements of T that are moved at once; more than 16 bytes take several accesses. */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) crk_vector {
  T v[N];
};
#endif

#endif
