/* The public operations with indices: gather, scatter and nonzero. They check the arguments and
 * broadcast the index to the result's shape; the device's table does the work.
 *
 * Invariant: a backend's index is in range if it came from a CPU. An index on a GPU is checked by
 * the kernel that uses it (kernels/device/index_error.h), so that nobody waits for the GPU. */
#include <string.h>

#include "base/backend.h"

/* Fails unless every element of an index on the CPU is in range for x's dimension. */
static int check_range(const char *name, const cr_tensor *x, int32_t dim, const cr_tensor *index) {
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(index, CR_I64, &temp);
  if (!dense) return cr__last_code();
  const int64_t *numbers = cr_data(dense);
  int64_t size = x->shape[dim];
  int rc = CR_OK;
  for (int64_t i = 0, n = cr_numel(dense); i < n && rc >= 0; i++) {
    if (numbers[i] == 0 || numbers[i] > size || numbers[i] < -size)
      rc = cr__index_out_of_range(name, cr__shape(x), dim, (int32_t)size, numbers[i]);
  }
  cr_free(&temp);
  return rc;
}

/* An index as the backend needs it: on x's device, of x's rank. */
typedef struct {
  cr_tensor wide; /* a view that retains nothing; [T] is repeated along the other dimensions */
  cr_tensor up;   /* a copy on x's device, freed by the caller */
} index_operand;

static int index_operand_of(index_operand *p, const char *name, const cr_tensor *x, int32_t dim,
                            const cr_tensor *index) {
  memset(p, 0, sizeof *p);
  CR_TRY(cr__begin(name, x));
  CR_TRY(cr__alive(name, index));
  if (dim < 0 || dim >= x->rank)
    return cr__fail(CR_EINVAL, "%s: %s has no dimension %d", name, cr__shape(x), dim + 1);
  bool list = index->rank == 1;
  if ((!list && index->rank != x->rank) || (index->dtype != CR_I32 && index->dtype != CR_I64))
    return cr__fail(
        CR_EINVAL, "%s: the index must be i32 or i64, of shape [T] or of the rank of %s, not %s %s",
        name, cr__shape(x), cr_dtype_name(index->dtype), cr__shape(index));
  for (int32_t k = 0; !list && k < x->rank; k++)
    if (k != dim && index->shape[k] > x->shape[k])
      return cr__fail(CR_EINVAL, "%s: the index %s is larger than %s in dimension %d", name,
                      cr__shape(index), cr__shape(x), k + 1);
  if (x->shape[dim] == 0 && cr_numel(index) > 0)
    return cr__fail(CR_EINVAL, "%s: dimension %d of %s is empty", name, dim + 1, cr__shape(x));
  if (index->device == CR_CPU) {
    CR_TRY(check_range(name, x, dim, index));
    if (x->device != CR_CPU) {
      CR_TRY(cr_empty(&p->up, index->rank, index->shape, index->dtype, x->device));
      int rc = cr_copy(&p->up, index);
      if (rc < 0) cr_free(&p->up);
      if (rc < 0) return rc;
      index = &p->up;
    }
  } else {
    CR_TRY(cr__same_device(name, x, index));
  }
  p->wide = *index;
  if (!list) return CR_OK;
  p->wide.rank = x->rank;
  for (int32_t k = 0; k < x->rank; k++) {
    p->wide.shape[k] = k == dim ? index->shape[0] : x->shape[k];
    p->wide.stride[k] = k == dim ? index->stride[0] : 0;
  }
  return CR_OK;
}

CR_EXPORT int cr_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index) {
  static const char name[] = "gather";
  index_operand p;
  CR_TRY(index_operand_of(&p, name, x, dim, index));
  int rc = cr__out(name, out, x->rank, p.wide.shape, x->dtype, x->device);
  if (rc >= 0 && cr_numel(out) > 0) rc = CR_BACKEND(name, x->device, gather, out, x, dim, &p.wide);
  cr_free(&p.up);
  return rc;
}

CR_EXPORT int cr_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x,
                         int32_t add) {
  static const char name[] = "scatter";
  index_operand p;
  CR_TRY(cr__alive(name, x));
  CR_TRY(index_operand_of(&p, name, t, dim, index));
  bool fits = x->rank == t->rank && x->dtype == t->dtype;
  for (int32_t k = 0; fits && k < t->rank; k++) fits = x->shape[k] == p.wide.shape[k];
  int rc = cr__same_device(name, t, x);
  if (rc >= 0 && !fits)
    rc = cr__fail(CR_EINVAL, "%s: the values must be %s %s, not %s %s", name,
                  cr_dtype_name(t->dtype), cr__shape(&p.wide), cr_dtype_name(x->dtype),
                  cr__shape(x));
  if (rc >= 0 && cr_numel(x) > 0)
    rc = CR_BACKEND(name, t->device, scatter, t, dim, &p.wide, x, add);
  cr_free(&p.up);
  return rc;
}

CR_EXPORT int cr_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat) {
  static const char name[] = "nonzero";
  CR_TRY(cr__begin(name, x));
  if (x->dtype != CR_BOOL && x->dtype != CR_U8)
    return cr__fail(CR_EINVAL, "%s: bool or u8 is needed, not %s", name, cr_dtype_name(x->dtype));
  if (out->storage)
    return cr__fail(
        CR_EINVAL, "%s: the result must be an empty tensor, since its size is not known in advance",
        name);
  return CR_BACKEND(name, x->device, nonzero, out, x, flat);
}
