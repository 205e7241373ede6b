/* Tensors: creation, views and the checks that every operation shares.
 *
 * Invariants: a tensor with a storage is consistent: its rank is at most CR_MAX_RANK, its sizes are
 * >= 0, and every element lies inside the storage. A failing function leaves its empty `out`
 * empty. */
#include <string.h>

#include "base/internal.h"

/* Returns the number of elements, or CR_EINVAL with a message if a size is negative or the product
 * overflows what a storage can hold. */
static int64_t count_elements(const char *name, int32_t rank, const int32_t *shape) {
  if (rank < 0 || rank > CR_MAX_RANK)
    return cr__fail(CR_EINVAL, "%s: rank %d is not within 0..%d", name, rank, CR_MAX_RANK);
  int64_t n = 1;
  for (int32_t i = 0; i < rank; i++) {
    if (shape[i] < 0)
      return cr__fail(CR_EINVAL, "%s: dimension %d has the negative size %d", name, i + 1,
                      shape[i]);
    if (__builtin_mul_overflow(n, (int64_t)shape[i], &n) || n > INT64_MAX / 16)
      return cr__fail(CR_EINVAL, "%s: the tensor would have too many elements", name);
  }
  return n;
}

static void dense_strides(int32_t rank, const int32_t *shape, int64_t *stride) {
  int64_t step = 1;
  for (int32_t i = rank - 1; i >= 0; i--) {
    stride[i] = step;
    step *= shape[i] > 0 ? shape[i] : 1;
  }
}

CR_EXPORT void cr__tensor_set(cr_tensor *out, cr_storage *s, int32_t dtype, int32_t rank,
                              const int32_t *shape, const int64_t *stride, int64_t offset) {
  cr_tensor t = {.storage = s, .dtype = dtype, .device = s->device, .rank = rank, .offset = offset};
  memcpy(t.shape, shape, (size_t)rank * sizeof *shape);
  memcpy(t.stride, stride, (size_t)rank * sizeof *stride);
  cr__retain(s);
  *out = t;
}

/* Makes `out`, which must be empty, a view of x. */
static int view_of(const char *name, cr_tensor *out, const cr_tensor *x, int32_t rank,
                   const int32_t *shape, const int64_t *stride, int64_t offset) {
  if (out->storage) return cr__fail(CR_EINVAL, "%s: the result must be an empty tensor", name);
  cr__tensor_set(out, x->storage, x->dtype, rank, shape, stride, offset);
  return CR_OK;
}

CR_EXPORT int cr__alive(const char *name, const cr_tensor *t) {
  if (t && t->storage && (t->storage->data || t->device == CR_CPU)) return CR_OK;
  if (t && t->storage)
    return cr__fail(CR_ECLOSED, "%s: the tensor was lost when its device was reset", name);
  return cr__fail(CR_ECLOSED, "%s: the tensor has been freed", name);
}

int cr__begin(const char *name, const cr_tensor *t) {
  return cr__check_interrupt(name) ? CR_EINTERRUPT : cr__alive(name, t);
}

CR_EXPORT int cr__float(const char *name, const cr_tensor *t) {
  CR_TRY(cr__alive(name, t));
  if (cr__is_float(t->dtype)) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: a float tensor is needed, not %s %s", name,
                  cr_dtype_name(t->dtype), cr__shape(t));
}

CR_EXPORT int cr_empty(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
                       int32_t device) {
  int64_t n = count_elements("empty", rank, shape);
  if (n < 0) return (int)n;
  int32_t size = cr_dtype_size(dtype);
  if (size < 0) return size;
  cr_storage *s = cr__storage_new(n * size, device);
  if (!s) return cr__last_code();
  int64_t stride[CR_MAX_RANK];
  dense_strides(rank, shape, stride);
  cr__tensor_set(out, s, dtype, rank, shape, stride, 0);
  cr__release(s);
  return CR_OK;
}

CR_EXPORT int cr_from_memory(cr_tensor *out, void *data, int32_t rank, const int32_t *shape,
                             int32_t dtype) {
  int64_t n = count_elements("from_memory", rank, shape);
  if (n < 0) return (int)n;
  int32_t size = cr_dtype_size(dtype);
  if (size < 0) return size;
  cr_storage *s = cr__storage_wrap(data, n * size, NULL, NULL);
  if (!s) return CR_ENOMEM;
  int64_t stride[CR_MAX_RANK];
  dense_strides(rank, shape, stride);
  cr__tensor_set(out, s, dtype, rank, shape, stride, 0);
  cr__release(s);
  return CR_OK;
}

CR_EXPORT void cr_free(cr_tensor *t) {
  if (!t->storage) return;
  cr_storage *s = t->storage;
  memset(t, 0, sizeof *t);
  cr__release(s);
}

CR_EXPORT int cr_share(cr_tensor *out, const cr_tensor *x) {
  CR_TRY(cr__alive("share", x));
  return view_of("share", out, x, x->rank, x->shape, x->stride, x->offset);
}

CR_EXPORT int64_t cr_numel(const cr_tensor *t) {
  if (!t->storage) return -1;
  int64_t n = 1;
  for (int32_t i = 0; i < t->rank; i++) n *= t->shape[i];
  return n;
}

CR_EXPORT int cr_is_contiguous(const cr_tensor *t) {
  int64_t step = 1;
  for (int32_t i = t->rank - 1; i >= 0; i--) {
    if (t->shape[i] == 0) return 1;
    if (t->shape[i] != 1 && t->stride[i] != step) return 0;
    step *= t->shape[i];
  }
  return 1;
}

CR_EXPORT void *cr_data(const cr_tensor *t) {
  return t->storage && t->device == CR_CPU ? cr__ptr(t) : NULL;
}

CR_EXPORT int cr__out(const char *name, cr_tensor *out, int32_t rank, const int32_t *shape,
                      int32_t dtype, int32_t device) {
  if (!out->storage) {
    int rc = cr_empty(out, rank, shape, dtype, device);
    if (rc == CR_ENOMEM) { /* prefix the message with the operation */
      char reason[700];
      strncpy(reason, cr_last_error(), sizeof reason - 1);
      reason[sizeof reason - 1] = 0;
      return cr__fail(rc, "%s: %s", name, reason);
    }
    return rc;
  }
  bool same = out->rank == rank && out->dtype == dtype && out->device == device;
  for (int32_t i = 0; same && i < rank; i++) same = out->shape[i] == shape[i];
  if (same) return CR_OK;
  cr_tensor wanted = {.rank = rank};
  memcpy(wanted.shape, shape, (size_t)rank * sizeof *shape);
  return cr__fail(CR_EINVAL, "%s: the result is %s %s, but the tensor given for it is %s %s", name,
                  cr_dtype_name(dtype), cr__shape(&wanted), cr_dtype_name(out->dtype),
                  cr__shape(out));
}

/* ---- views ---- */

CR_EXPORT cr_tensor cr__part(const cr_tensor *t, int32_t dim, int32_t first, int32_t size) {
  cr_tensor part = *t;
  part.shape[dim] = size;
  part.offset += first * t->stride[dim];
  return part;
}

CR_EXPORT cr_tensor cr__inside(const cr_tensor *t, const cr_tensor *x, const int32_t *before) {
  cr_tensor inside = *t;
  for (int32_t k = 0; k < x->rank; k++) {
    inside.shape[k] = x->shape[k];
    if (x->shape[k] > 0) inside.offset += before[k] * t->stride[k];
  }
  return inside;
}

CR_EXPORT int cr_view(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape) {
  CR_TRY(cr__alive("view", x));
  if (rank < 0 || rank > CR_MAX_RANK)
    return cr__fail(CR_EINVAL, "view: rank %d is not within 0..%d", rank, CR_MAX_RANK);
  int64_t total = cr_numel(x), known = 1;
  cr_tensor wanted = {.rank = rank};
  memcpy(wanted.shape, shape, (size_t)rank * sizeof *shape);
  int32_t open = -1;
  for (int32_t i = 0; i < rank; i++) {
    if (shape[i] == -1 && open < 0)
      open = i;
    else if (shape[i] < 0 || __builtin_mul_overflow(known, (int64_t)shape[i], &known))
      return cr__fail(CR_EINVAL, "view: %s is not a valid shape", cr__shape(&wanted));
  }
  if (open >= 0) {
    if (known == 0 || total % known != 0 || total / known > INT32_MAX)
      return cr__fail(CR_EINVAL, "view: %s does not fit %s", cr__shape(x), cr__shape(&wanted));
    wanted.shape[open] = (int32_t)(total / known);
    known *= wanted.shape[open];
  }
  if (known != total)
    return cr__fail(CR_EINVAL, "view: %s has %lld elements, %s has %lld", cr__shape(x),
                    (long long)total, cr__shape(&wanted), (long long)known);
  int64_t stride[CR_MAX_RANK];
  if (total == 0 || cr_is_contiguous(x)) {
    dense_strides(rank, wanted.shape, stride);
    return view_of("view", out, x, rank, wanted.shape, stride, x->offset);
  }
  /* Adjacent dimensions of x that are contiguous with each other merge into runs. A dimension of
   * the new shape may not cross the border between two runs. */
  int32_t xd = x->rank - 1, nd = rank - 1;
  while (xd >= 0 || nd >= 0) {
    while (xd >= 0 && x->shape[xd] == 1) xd--;
    if (xd < 0) { /* only dimensions of size 1 are left */
      for (; nd >= 0; nd--) stride[nd] = 1;
      break;
    }
    int64_t run = x->shape[xd], step = x->stride[xd], outer = x->stride[xd] * x->shape[xd];
    xd--;
    while (xd >= 0 && (x->shape[xd] == 1 || x->stride[xd] == outer)) {
      run *= x->shape[xd];
      if (x->shape[xd] != 1) outer = x->stride[xd] * x->shape[xd];
      xd--;
    }
    int64_t filled = 1;
    while (nd >= 0 && filled < run) {
      stride[nd] = step * filled;
      filled *= wanted.shape[nd];
      nd--;
    }
    if (filled != run)
      return cr__fail(
          CR_EINVAL,
          "view: %s is not contiguous and cannot be viewed as %s: use reshape, which copies it",
          cr__shape(x), cr__shape(&wanted));
    while (nd >= 0 && wanted.shape[nd] == 1) stride[nd--] = 1;
  }
  return view_of("view", out, x, rank, wanted.shape, stride, x->offset);
}

CR_EXPORT int cr_permute(cr_tensor *out, const cr_tensor *x, const int32_t *dims) {
  CR_TRY(cr__alive("permute", x));
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
  uint32_t seen = 0;
  for (int32_t i = 0; i < x->rank; i++) {
    if (dims[i] < 0 || dims[i] >= x->rank || seen & (1u << dims[i]))
      return cr__fail(CR_EINVAL, "permute: each dimension of %s must be named once", cr__shape(x));
    seen |= 1u << dims[i];
    shape[i] = x->shape[dims[i]];
    stride[i] = x->stride[dims[i]];
  }
  return view_of("permute", out, x, x->rank, shape, stride, x->offset);
}

static int check_dim(const char *name, const cr_tensor *x, int32_t dim) {
  CR_TRY(cr__alive(name, x));
  if (dim >= 0 && dim < x->rank) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: %s has no dimension %d", name, cr__shape(x), dim + 1);
}

CR_EXPORT int cr_slice(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t first, int32_t last,
                       int32_t step) {
  CR_TRY(check_dim("slice", x, dim));
  if (step < 1)
    return cr__fail(CR_EINVAL,
                    "slice: the step is %d, but must be at least 1: flip reverses a dimension",
                    step);
  if (first < 0 || last < first || last > x->shape[dim])
    return cr__fail(CR_EINVAL, "slice: %d..%d is not within dimension %d of %s: -1 is its end",
                    first + 1, last, dim + 1, cr__shape(x));
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  memcpy(stride, x->stride, sizeof stride);
  shape[dim] = (int32_t)(((int64_t)last - first + step - 1) / step);
  stride[dim] *= step;
  int64_t offset = x->offset + (shape[dim] ? first * x->stride[dim] : 0);
  return view_of("slice", out, x, x->rank, shape, stride, offset);
}

CR_EXPORT int cr_select(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t index) {
  CR_TRY(check_dim("select", x, dim));
  if (index < 0 || index >= x->shape[dim])
    return cr__fail(CR_EINVAL, "select: index %d is not within dimension %d of %s: the first is 1",
                    index + 1, dim + 1, cr__shape(x));
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
  for (int32_t i = 0, k = 0; i < x->rank; i++) {
    if (i == dim) continue;
    shape[k] = x->shape[i];
    stride[k++] = x->stride[i];
  }
  return view_of("select", out, x, x->rank - 1, shape, stride, x->offset + index * x->stride[dim]);
}

CR_EXPORT int cr_expand(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape) {
  CR_TRY(cr__alive("expand", x));
  cr_tensor wanted = {.rank = rank};
  if (rank < x->rank || rank > CR_MAX_RANK)
    return cr__fail(CR_EINVAL, "expand: %s cannot have rank %d", cr__shape(x), rank);
  memcpy(wanted.shape, shape, (size_t)rank * sizeof *shape);
  int64_t stride[CR_MAX_RANK];
  for (int32_t i = 0; i < rank; i++) {
    int32_t k = i - (rank - x->rank);
    int32_t own = k < 0 ? 1 : x->shape[k];
    if (wanted.shape[i] == -1 && k >= 0) wanted.shape[i] = own;
    bool ok = wanted.shape[i] == own || (own == 1 && wanted.shape[i] >= 0);
    if (!ok)
      return cr__fail(CR_EINVAL, "expand: %s cannot become %s", cr__shape(x), cr__shape(&wanted));
    stride[i] = k >= 0 && (own != 1 || wanted.shape[i] == 1) ? x->stride[k] : 0;
  }
  return view_of("expand", out, x, rank, wanted.shape, stride, x->offset);
}
