/* The public operations that move data: argument checks, result dtypes and shapes. The device's
 * table does the work. */
#include <string.h>

#include "base/backend.h"

CR_EXPORT int cr_fill(cr_tensor *t, double value) {
  CR_TRY(cr__begin("fill", t));
  return CR_BACKEND("fill", t->device, fill, t, value);
}

CR_EXPORT int cr_arange(cr_tensor *out, int32_t n, double start, double step, int32_t dtype,
                        int32_t device) {
  if (cr__check_interrupt("arange")) return CR_EINTERRUPT;
  if (n < 0) return cr__fail(CR_EINVAL, "arange: the length must not be negative, but is %d", n);
  if (dtype == CR_BOOL) return cr__fail(CR_EINVAL, "arange: bool is not supported");
  CR_TRY(cr__out("arange", out, 1, &n, dtype, device));
  return CR_BACKEND("arange", device, arange, out, start, step);
}

CR_EXPORT int cr_cat(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim) {
  if (cr__check_interrupt("cat")) return CR_EINTERRUPT;
  if (n < 1) return cr__fail(CR_EINVAL, "cat: at least one tensor is needed");
  CR_TRY(cr__alive("cat", xs[0]));
  const cr_tensor *first = xs[0];
  if (dim < 0 || dim >= first->rank) {
    return cr__fail(CR_EINVAL, "cat: %s has no dimension %d", cr__shape(first), dim + 1);
  }
  int64_t length = 0;
  for (int32_t k = 0; k < n; k++) {
    CR_TRY(cr__alive("cat", xs[k]));
    CR_TRY(cr__same_device("cat", first, xs[k]));
    if (xs[k]->dtype != first->dtype) {
      return cr__fail(CR_EINVAL, "cat: dtypes differ: %s %s and %s %s (tensor %d)",
                      cr_dtype_name(first->dtype), cr__shape(first), cr_dtype_name(xs[k]->dtype),
                      cr__shape(xs[k]), k + 1);
    }
    bool fits = xs[k]->rank == first->rank;
    for (int32_t d = 0; fits && d < first->rank; d++) {
      fits = d == dim || xs[k]->shape[d] == first->shape[d];
    }
    if (!fits) {
      return cr__fail(
          CR_EINVAL, "cat: the sizes must be equal in all dimensions but %d: %s and %s (tensor %d)",
          dim + 1, cr__shape(first), cr__shape(xs[k]), k + 1);
    }
    length += xs[k]->shape[dim];
  }
  if (length > INT32_MAX)
    return cr__fail(CR_EINVAL, "cat: dimension %d would be too large", dim + 1);
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, first->shape, sizeof shape);
  shape[dim] = (int32_t)length;
  CR_TRY(cr__out("cat", out, first->rank, shape, first->dtype, first->device));
  return CR_BACKEND("cat", first->device, cat, out, n, xs, dim);
}

CR_EXPORT int cr_pad(cr_tensor *out, const cr_tensor *x, const int32_t *before,
                     const int32_t *after, double value) {
  CR_TRY(cr__begin("pad", x));
  int32_t shape[CR_MAX_RANK];
  for (int32_t k = 0; k < x->rank; k++) {
    if (before[k] < 0 || after[k] < 0) {
      return cr__fail(CR_EINVAL,
                      "pad: the padding must not be negative: dimension %d of %s by %d and %d",
                      k + 1, cr__shape(x), before[k], after[k]);
    }
    int64_t size = (int64_t)x->shape[k] + before[k] + after[k];
    if (size > INT32_MAX) {
      return cr__fail(CR_EINVAL, "pad: dimension %d of %s would be too large", k + 1, cr__shape(x));
    }
    shape[k] = (int32_t)size;
  }
  CR_TRY(cr__out("pad", out, x->rank, shape, x->dtype, x->device));
  return CR_BACKEND("pad", x->device, pad, out, x, before, value);
}
