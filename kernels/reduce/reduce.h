/* States of reductions on the device: what is known of the elements seen so far.
 *
 * Merging is associative except for rounding, and always happens in the same order, so a result
 * depends only on its shape and strides. index is that of an element in the row-major order of the
 * reduced dimensions; -1: none seen. */
#ifndef CRK_REDUCE_H
#define CRK_REDUCE_H

#include "device/numbers.h"

/* The family's entries in other files. */
int crk_softmax(cr_tensor *out, const cr_tensor *x);
int crk_scan(cr_tensor *out, const cr_tensor *x, int32_t product);
int crk_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending);
int crk_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest);
/* Sorts whole rows by a radix sort; all tensors are dense. */
int crk_sort_dense(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                   bool descending);

/* Sums and means, in double or int64. */
template <typename A> struct crk_sum_state {
  typedef A number;
  A sum;
  __device__ void start(A, bool) { sum = 0; }
  __device__ void add(A v, int64_t, bool) {
    if constexpr (std::is_same_v<A, int64_t>)
      sum = (A)((uint64_t)sum + (uint64_t)v); /* wraps */
    else
      sum += v;
  }
  __device__ void merge(const crk_sum_state &o, bool) { add(o.sum, 0, false); }
};

/* Variances: sums of d and d^2, where d is the difference from the result's first element, so that
 * a large mean does not swallow the variance. */
struct crk_var_state {
  typedef double number;
  double first, second, shift;
  __device__ void start(double s, bool) {
    first = second = 0;
    shift = s;
  }
  __device__ void add(double v, int64_t, bool) {
    double d = v - shift;
    first += d;
    second += d * d;
  }
  __device__ void merge(const crk_var_state &o, bool) {
    first += o.first;
    second += o.second;
  }
};

/* Extremes: the largest (`largest`) or smallest element; a nan wins. */
template <typename A> struct crk_extreme_state {
  typedef A number;
  A best;
  __device__ void start(A, bool largest) {
    if constexpr (std::is_same_v<A, int64_t>)
      best = largest ? INT64_MIN : INT64_MAX;
    else
      best = largest ? (A)-INFINITY : (A)INFINITY;
  }
  __device__ void add(A v, int64_t, bool largest) {
    bool better = largest ? v > best : v < best;
    best = better || v != v ? v : best;
  }
  __device__ void merge(const crk_extreme_state &o, bool largest) { add(o.best, 0, largest); }
};

/* The same with its index, that of the first of equal ones; the first nan wins. */
template <typename A> struct crk_best_state {
  typedef A number;
  A best;
  int64_t index;
  __device__ void start(A, bool) {
    best = 0;
    index = -1;
  }
  __device__ void add(A v, int64_t i, bool largest) {
    if (i < 0) return;
    bool better;
    if (index < 0)
      better = true;
    else if (best != best || v != v)
      better = v != v && (best == best || i < index);
    else if (v == best)
      better = i < index;
    else
      better = largest ? v > best : v < best;
    if (better) {
      best = v;
      index = i;
    }
  }
  __device__ void merge(const crk_best_state &o, bool largest) { add(o.best, o.index, largest); }
};

#endif
