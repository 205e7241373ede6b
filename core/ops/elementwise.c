/* The public elementwise operations: argument checks, result dtypes and shapes. The device's table
 * does the work. */
#include <math.h>
#include <string.h>

#include "base/backend.h"
#include "base/dtype.h"

/* Whether the operation accepts the dtype. An operation without a float form accepts only bool. */
static bool takes(int32_t op, int32_t dtype) {
  bool of_bool = !CR__IN(CR__UNARY_OF_FLOATS, op);
  return !of_bool || dtype == CR_BOOL;
}

CR_EXPORT int cr_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  if (op < 0 || op >= CR_UNARY_OPS) return cr__fail(CR_EINVAL, "unary: unknown operation %d", op);
  const char *name = cr_unary_name(op);
  CR_TRY(cr__begin(name, x));
  if (!takes(op, x->dtype)) {
    return cr__fail(CR_EINVAL, "%s: bool is needed, not %s %s", name, cr_dtype_name(x->dtype),
                    cr__shape(x));
  }
  bool floats = !cr__is_float(x->dtype) && !CR__IN(CR__UNARY_OF_INTEGERS, op);
  CR_TRY(cr__out(name, out, x->rank, x->shape, floats ? CR_F32 : x->dtype, x->device));
  return CR_BACKEND(name, x->device, unary, out, op, x);
}

/* `out` may be a or b itself. It must not alias an operand through a different view. */
CR_EXPORT int cr_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  if (op < 0 || op >= CR_BINARY_OPS) return cr__fail(CR_EINVAL, "binary: unknown operation %d", op);
  const char *name = cr_binary_name(op);
  CR_TRY(cr__begin(name, a));
  CR_TRY(cr__alive(name, b));
  CR_TRY(cr__same_device(name, a, b));
  int32_t rank, shape[CR_MAX_RANK];
  CR_TRY(cr__broadcast(name, a, b, &rank, shape));
  int32_t dtype = cr__promote(a->dtype, b->dtype);
  if (!CR__IN(CR__BINARY_OF_INTEGERS, op) && !cr__is_float(dtype)) dtype = CR_F32;
  if (CR__IN(CR__COMPARISONS, op)) dtype = CR_BOOL;
  CR_TRY(cr__out(name, out, rank, shape, dtype, a->device));
  return CR_BACKEND(name, a->device, binary, out, op, a, b);
}

CR_EXPORT int cr_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b,
                               int32_t reversed) {
  if (op < 0 || op >= CR_BINARY_OPS) return cr__fail(CR_EINVAL, "binary: unknown operation %d", op);
  const char *name = cr_binary_name(op);
  CR_TRY(cr__begin(name, a));
  int32_t dtype = CR__IN(CR__COMPARISONS, op) ? CR_BOOL : cr__scalar_arithmetic(op, a->dtype, b);
  CR_TRY(cr__out(name, out, a->rank, a->shape, dtype, a->device));
  return CR_BACKEND(name, a->device, binary_scalar, out, op, a, b, reversed);
}

CR_EXPORT int cr_clamp(cr_tensor *out, const cr_tensor *x, double low, double high) {
  CR_TRY(cr__begin("clamp", x));
  if (low != low || high != high) {
    return cr__fail(CR_EINVAL, "clamp: a limit is nan: [%g, %g]", low, high);
  }
  CR_TRY(cr__out("clamp", out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND("clamp", x->device, clamp, out, x, low, high);
}

static bool same_shape(const cr_tensor *a, const cr_tensor *b) {
  return a->rank == b->rank &&
         memcmp(a->shape, b->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

CR_EXPORT int cr_lincomb(cr_tensor *out, int32_t n, const cr_tensor *const *xs,
                         const double *coefficients) {
  if (cr__check_interrupt("lincomb")) return CR_EINTERRUPT;
  if (n < 1 || n > 16) {
    return cr__fail(CR_EINVAL, "lincomb: takes 1 to 16 tensors, not %d", n);
  }
  CR_TRY(cr__alive("lincomb", xs[0]));
  int32_t dtype = xs[0]->dtype;
  for (int32_t k = 0; k < n; k++) {
    CR_TRY(cr__float("lincomb", xs[k]));
    CR_TRY(cr__same_device("lincomb", xs[0], xs[k]));
    if (!same_shape(xs[0], xs[k])) {
      return cr__fail(CR_EINVAL, "lincomb: shapes differ: %s and %s (tensor %d)", cr__shape(xs[0]),
                      cr__shape(xs[k]), k + 1);
    }
    dtype = cr__promote(dtype, xs[k]->dtype);
  }
  CR_TRY(cr__out("lincomb", out, xs[0]->rank, xs[0]->shape, dtype, xs[0]->device));
  return CR_BACKEND("lincomb", xs[0]->device, lincomb, out, n, xs, coefficients);
}

CR_EXPORT int cr_where(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a,
                       const cr_tensor *b) {
  CR_TRY(cr__begin("where", condition));
  CR_TRY(cr__alive("where", a));
  CR_TRY(cr__alive("where", b));
  CR_TRY(cr__same_device("where", condition, a));
  CR_TRY(cr__same_device("where", a, b));
  if (condition->dtype != CR_BOOL && condition->dtype != CR_U8) {
    return cr__fail(CR_EINVAL, "where: the condition must be bool or u8, not %s %s",
                    cr_dtype_name(condition->dtype), cr__shape(condition));
  }
  cr_tensor pair = {.dtype = a->dtype};
  CR_TRY(cr__broadcast("where", a, b, &pair.rank, pair.shape));
  int32_t rank, shape[CR_MAX_RANK];
  CR_TRY(cr__broadcast("where", condition, &pair, &rank, shape));
  int32_t dtype = cr__promote(a->dtype, b->dtype);
  CR_TRY(cr__out("where", out, rank, shape, dtype, a->device));
  return CR_BACKEND("where", a->device, where, out, condition, a, b);
}
