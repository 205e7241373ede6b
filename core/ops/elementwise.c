/* The public elementwise operations: checks, result dtypes and shapes; the work is the backend's.
 */
#include <math.h>
#include <string.h>

#include "base/backend.h"
#include "base/dtype.h"

static const char *const unary_names[CR_UNARY_OPS] = {
    [CR_NEG] = "neg",     [CR_ABS] = "abs",       [CR_EXP] = "exp",
    [CR_LOG] = "log",     [CR_LOG10] = "log10",   [CR_SQRT] = "sqrt",
    [CR_RSQRT] = "rsqrt", [CR_SIN] = "sin",       [CR_COS] = "cos",
    [CR_TANH] = "tanh",   [CR_ERF] = "erf",       [CR_SIGMOID] = "sigmoid",
    [CR_SILU] = "silu",   [CR_GELU] = "gelu",     [CR_RELU] = "relu",
    [CR_FLOOR] = "floor", [CR_CEIL] = "ceil",     [CR_TRUNC] = "trunc",
    [CR_ROUND] = "round", [CR_SQUARE] = "square", [CR_RECIPROCAL] = "reciprocal",
    [CR_NOT] = "not",
};

static const char *const binary_names[CR_BINARY_OPS] = {
    [CR_ADD] = "add", [CR_SUB] = "sub",     [CR_MUL] = "mul",     [CR_DIV] = "div",
    [CR_POW] = "pow", [CR_MAX] = "maximum", [CR_MIN] = "minimum", [CR_EQ] = "eq",
    [CR_NE] = "ne",   [CR_LT] = "lt",       [CR_LE] = "le",       [CR_GT] = "gt",
    [CR_GE] = "ge",
};

static bool takes_integers(int32_t op) {
  return op == CR_ABS || op == CR_NEG || op == CR_SQUARE || op == CR_RELU;
}

CR_EXPORT int cr_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  if (op < 0 || op >= CR_UNARY_OPS) return cr__fail(CR_EINVAL, "unary: unknown operation %d", op);
  const char *name = unary_names[op];
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__alive(name, x));
  if (op == CR_NOT) {
    if (x->dtype != CR_BOOL) {
      return cr__fail(CR_EINVAL, "not: needs bool, got %s %s", cr_dtype_name(x->dtype),
                      cr__shape(x));
    }
  } else if (!(takes_integers(op) && x->dtype != CR_BOOL)) {
    CR_TRY(cr__float(name, x));
  }
  CR_TRY(cr__out(name, out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND(name, x->device, unary, out, op, x);
}

static bool compares(int32_t op) { return op >= CR_EQ && op <= CR_GE; }

/* An empty `out` that will be written while it is also an operand cannot happen; a filled one may
 * be a or b. What must not be is an output that shares an operand's storage in another view. */
CR_EXPORT int cr_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  if (op < 0 || op >= CR_BINARY_OPS) return cr__fail(CR_EINVAL, "binary: unknown operation %d", op);
  const char *name = binary_names[op];
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__alive(name, a));
  CR_TRY(cr__alive(name, b));
  CR_TRY(cr__same_device(name, a, b));
  int32_t rank, shape[CR_MAX_RANK];
  CR_TRY(cr__broadcast(name, a, b, &rank, shape));
  int32_t dtype = cr__promote(a->dtype, b->dtype);
  if (op == CR_DIV && !cr__is_float(dtype)) dtype = CR_F32;
  if (compares(op)) dtype = CR_BOOL;
  CR_TRY(cr__out(name, out, rank, shape, dtype, a->device));
  return CR_BACKEND(name, a->device, binary, out, op, a, b);
}

CR_EXPORT int cr_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b,
                               int32_t reversed) {
  if (op < 0 || op >= CR_BINARY_OPS) return cr__fail(CR_EINVAL, "binary: unknown operation %d", op);
  const char *name = binary_names[op];
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__alive(name, a));
  int32_t dtype = compares(op) ? CR_BOOL : cr__scalar_arithmetic(op, a->dtype, b);
  CR_TRY(cr__out(name, out, a->rank, a->shape, dtype, a->device));
  return CR_BACKEND(name, a->device, binary_scalar, out, op, a, b, reversed);
}

CR_EXPORT int cr_clamp(cr_tensor *out, const cr_tensor *x, double low, double high) {
  if (cr__check_interrupt("clamp")) return CR_EINTERRUPT;
  CR_TRY(cr__alive("clamp", x));
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
    return cr__fail(CR_EINVAL, "lincomb: takes 1 to 16 tensors, got %d", n);
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
  if (cr__check_interrupt("where")) return CR_EINTERRUPT;
  CR_TRY(cr__alive("where", condition));
  CR_TRY(cr__alive("where", a));
  CR_TRY(cr__alive("where", b));
  CR_TRY(cr__same_device("where", condition, a));
  CR_TRY(cr__same_device("where", a, b));
  if (condition->dtype != CR_BOOL && condition->dtype != CR_U8) {
    return cr__fail(CR_EINVAL, "where: the condition must be bool or u8, got %s %s",
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
