/* The public matrix operations: argument checks and the result's shape. The device's table
 * (backend.h) does the work. */
#include <math.h>
#include <string.h>

#include "base/backend.h"
#include "ops/checks.h"

/* Broadcasts the leading dimensions (all but the last `tail`) of a and b into `shape`. Returns
 * their number, or -1 if they do not broadcast. */
static int32_t broadcast_leading(const cr_tensor *a, const cr_tensor *b, int32_t tail,
                                 int32_t *shape) {
  int32_t na = a->rank - tail, nb = b->rank - tail;
  int32_t n = na > nb ? na : nb;
  for (int32_t i = 0; i < n; i++) {
    int32_t ka = i - (n - na), kb = i - (n - nb);
    int32_t sa = ka < 0 ? 1 : a->shape[ka], sb = kb < 0 ? 1 : b->shape[kb];
    if (sa != sb && sa != 1 && sb != 1) return -1;
    shape[i] = sa == 1 ? sb : sa;
  }
  return n;
}

static bool same_shape(const cr_tensor *t, int32_t rank, const int32_t *shape) {
  if (t->rank != rank) return false;
  for (int32_t i = 0; i < rank; i++)
    if (t->shape[i] != shape[i]) return false;
  return true;
}

CR_EXPORT int cr_matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b) {
  if (cr__check_interrupt("matmul")) return CR_EINTERRUPT;
  CR_TRY(cr__float("matmul", a));
  CR_TRY(cr__float("matmul", b));
  CR_TRY(cr__same_device("matmul", a, b));
  if (a->rank < 2 || b->rank < 2)
    return cr__fail(CR_EINVAL, "matmul: at least two dimensions are needed: %s x %s", cr__shape(a),
                    cr__shape(b));
  if (a->dtype != b->dtype)
    return cr__fail(CR_EINVAL, "matmul: dtypes differ: %s %s x %s %s", cr_dtype_name(a->dtype),
                    cr__shape(a), cr_dtype_name(b->dtype), cr__shape(b));
  if (a->shape[a->rank - 1] != b->shape[b->rank - 2])
    return cr__fail(CR_EINVAL, "matmul: inner sizes differ: %s x %s", cr__shape(a), cr__shape(b));
  int32_t shape[CR_MAX_RANK];
  int32_t leading = broadcast_leading(a, b, 2, shape);
  if (leading < 0)
    return cr__fail(CR_EINVAL, "matmul: leading sizes differ: %s x %s", cr__shape(a), cr__shape(b));
  shape[leading] = a->shape[a->rank - 2];
  shape[leading + 1] = b->shape[b->rank - 1];
  CR_TRY(cr__out("matmul", out, leading + 2, shape, a->dtype, a->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("matmul", a->device, matmul, out, a, b);
}

CR_EXPORT int cr_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  if (cr__check_interrupt("linear")) return CR_EINTERRUPT;
  CR_TRY(cr__float("linear", x));
  CR_TRY(cr__float("linear", weight));
  CR_TRY(cr__same_device("linear", x, weight));
  if (weight->rank != 2 || x->rank < 1)
    return cr__fail(CR_EINVAL, "linear: x [... K] and weight [N K] are needed, not %s and %s",
                    cr__shape(x), cr__shape(weight));
  if (x->shape[x->rank - 1] != weight->shape[1])
    return cr__fail(CR_EINVAL, "linear: inner sizes differ: %s x weight %s", cr__shape(x),
                    cr__shape(weight));
  if (act < 0 || act >= CR_ACTS || act == CR_ACT_PRELU)
    return cr__fail(CR_EINVAL, "linear: there is no activation %d", act);
  if (bias) {
    CR_TRY(cr__float("linear", bias));
    CR_TRY(cr__same_device("linear", x, bias));
    if (bias->rank != 1 || bias->shape[0] != weight->shape[0])
      return cr__fail(CR_EINVAL, "linear: the bias %s does not fit weight %s", cr__shape(bias),
                      cr__shape(weight));
  }
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] = weight->shape[0];
  if (residual) {
    CR_TRY(cr__float("linear", residual));
    CR_TRY(cr__same_device("linear", x, residual));
    if (!same_shape(residual, x->rank, shape))
      return cr__fail(CR_EINVAL, "linear: the residual %s does not fit %s x weight %s",
                      cr__shape(residual), cr__shape(x), cr__shape(weight));
  }
  CR_TRY(cr__out("linear", out, x->rank, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("linear", x->device, linear, out, x, weight, bias, residual, act);
}

/* Fails unless the leading dimensions of k (or v) equal q's or are 1. */
static int check_keys(const char *name, const cr_tensor *q, const cr_tensor *k, const char *what) {
  bool ok = k->rank == q->rank;
  for (int32_t i = 0; ok && i < q->rank - 2; i++)
    ok = k->shape[i] == q->shape[i] || k->shape[i] == 1;
  if (ok) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the leading sizes of q %s and %s %s differ", name, cr__shape(q),
                  what, cr__shape(k));
}

int cr__check_attention(const char *name, const cr_tensor *q, const cr_tensor *k,
                        const cr_tensor *v, int32_t heads, double *scale, const cr_tensor *mask,
                        int32_t *shape) {
  const cr_tensor *inputs[3] = {q, k, v};
  for (int i = 0; i < 3; i++) {
    CR_TRY(cr__float(name, inputs[i]));
    CR_TRY(cr__same_device(name, q, inputs[i]));
    if (inputs[i]->dtype == CR_F64 || inputs[i]->dtype != q->dtype)
      return cr__fail(CR_EINVAL, "%s: q, k and v must all be f32, f16 or bf16, not %s %s %s", name,
                      cr_dtype_name(q->dtype), cr_dtype_name(k->dtype), cr_dtype_name(v->dtype));
    if (inputs[i]->rank < 2)
      return cr__fail(CR_EINVAL, "%s: q, k and v must be [... T D], not %s", name,
                      cr__shape(inputs[i]));
  }
  CR_TRY(check_keys(name, q, k, "k"));
  CR_TRY(check_keys(name, q, v, "v"));
  int32_t n = q->rank, width = q->shape[n - 1];
  if (k->shape[n - 1] != width)
    return cr__fail(CR_EINVAL, "%s: widths differ: q %s, k %s", name, cr__shape(q), cr__shape(k));
  if (k->shape[n - 2] != v->shape[n - 2])
    return cr__fail(CR_EINVAL, "%s: lengths differ: k %s, v %s", name, cr__shape(k), cr__shape(v));
  if (heads < 1 || width % heads || v->shape[n - 1] % heads)
    return cr__fail(CR_EINVAL, "%s: %d heads do not divide q %s, v %s", name, heads, cr__shape(q),
                    cr__shape(v));
  if (width == 0 || k->shape[n - 2] == 0)
    return cr__fail(CR_EINVAL, "%s: q or k is empty: q %s, k %s", name, cr__shape(q), cr__shape(k));
  for (int i = 0; i < 3; i++)
    if (inputs[i]->shape[n - 1] > 1 && inputs[i]->stride[n - 1] != 1)
      return cr__fail(CR_EINVAL,
                      "%s: the last dimension of %s must be dense: copy the tensor first", name,
                      cr__shape(inputs[i]));
  memcpy(shape, q->shape, sizeof q->shape);
  if (mask) {
    CR_TRY(cr__float(name, mask));
    CR_TRY(cr__same_device(name, q, mask));
    bool ok = mask->dtype == CR_F32 && mask->rank <= n;
    shape[n - 1] = k->shape[n - 2];
    for (int32_t i = 1; ok && i <= mask->rank; i++)
      ok = mask->shape[mask->rank - i] == 1 || mask->shape[mask->rank - i] == shape[n - i];
    if (!ok)
      return cr__fail(CR_EINVAL, "%s: the mask %s %s does not fit q %s, k %s", name,
                      cr_dtype_name(mask->dtype), cr__shape(mask), cr__shape(q), cr__shape(k));
  }
  int32_t size = width / heads;
  if (!(*scale > 0)) *scale = 1.0 / sqrt(size);
  shape[n - 1] = v->shape[n - 1];
  return CR_OK;
}

CR_EXPORT int cr_attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k,
                           const cr_tensor *v, int32_t heads, double scale, const cr_tensor *mask) {
  static const char name[] = "attention";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  int32_t shape[CR_MAX_RANK];
  CR_TRY(cr__check_attention(name, q, k, v, heads, &scale, mask, shape));
  CR_TRY(cr__out(name, out, q->rank, shape, q->dtype, q->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, q->device, attention, out, q, k, v, heads, scale, mask);
}

int cr__check_geglu(const char *name, const cr_tensor *x, int32_t *shape) {
  CR_TRY(cr__float(name, x));
  if (x->rank < 1 || x->shape[x->rank - 1] % 2)
    return cr__fail(CR_EINVAL, "%s: the last dimension of %s is not even", name, cr__shape(x));
  memcpy(shape, x->shape, sizeof x->shape);
  shape[x->rank - 1] /= 2;
  return CR_OK;
}

CR_EXPORT int cr_geglu(cr_tensor *out, const cr_tensor *x) {
  static const char name[] = "geglu";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  int32_t shape[CR_MAX_RANK];
  CR_TRY(cr__check_geglu(name, x, shape));
  CR_TRY(cr__out(name, out, x->rank, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, geglu, out, x);
}

CR_EXPORT int cr_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                              const cr_tensor *bias) {
  if (cr__check_interrupt("linear_geglu")) return CR_EINTERRUPT;
  CR_TRY(cr__float("linear_geglu", x));
  CR_TRY(cr__float("linear_geglu", weight));
  CR_TRY(cr__same_device("linear_geglu", x, weight));
  if (weight->rank != 2 || x->rank < 1 || weight->shape[0] % 2)
    return cr__fail(CR_EINVAL,
                    "linear_geglu: x [... K] and weight [2D K] are needed, not %s and %s",
                    cr__shape(x), cr__shape(weight));
  if (x->shape[x->rank - 1] != weight->shape[1])
    return cr__fail(CR_EINVAL, "linear_geglu: inner sizes differ: %s x weight %s", cr__shape(x),
                    cr__shape(weight));
  if (bias) {
    CR_TRY(cr__float("linear_geglu", bias));
    CR_TRY(cr__same_device("linear_geglu", x, bias));
    if (bias->rank != 1 || bias->shape[0] != weight->shape[0])
      return cr__fail(CR_EINVAL, "linear_geglu: the bias %s does not fit weight %s",
                      cr__shape(bias), cr__shape(weight));
  }
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] = weight->shape[0] / 2;
  CR_TRY(cr__out("linear_geglu", out, x->rank, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  const cr__backend *backend = cr__backend_for("linear_geglu", x->device);
  if (!backend) return CR_EDEVICE;
  if (backend->linear_geglu) return backend->linear_geglu(out, x, weight, bias);
  cr_tensor both = {0};
  int rc = cr_linear(&both, x, weight, bias, NULL, CR_ACT_NONE);
  if (rc >= 0) rc = cr_geglu(out, &both);
  cr_free(&both);
  return rc;
}

CR_EXPORT int cr_softmax(cr_tensor *out, const cr_tensor *x) {
  if (cr__check_interrupt("softmax")) return CR_EINTERRUPT;
  CR_TRY(cr__float("softmax", x));
  if (x->rank < 1) return cr__fail(CR_EINVAL, "softmax: at least one dimension is needed");
  CR_TRY(cr__out("softmax", out, x->rank, x->shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("softmax", x->device, softmax, out, x);
}
