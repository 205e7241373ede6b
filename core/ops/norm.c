/* The public normalizations: argument checks. The device's table does the work. */
#include "base/backend.h"
#include "ops/checks.h"

int cr__check_vector(const char *name, const char *what, const cr_tensor *t, const cr_tensor *x,
                     int32_t n) {
  if (t == NULL) return CR_OK;
  CR_TRY(cr__float(name, t));
  CR_TRY(cr__same_device(name, x, t));
  if (t->rank == 1 && t->shape[0] == n) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: %s must be [%d] for %s, not %s", name, what, n, cr__shape(x),
                  cr__shape(t));
}

int cr__check_group_norm(const char *name, const cr_tensor *x, int32_t groups,
                         const cr_tensor *weight, const cr_tensor *bias, double eps,
                         const cr_tensor *bias_before) {
  CR_TRY(cr__float(name, x));
  if (x->rank < 2)
    return cr__fail(CR_EINVAL, "%s: x must be [N ... C], not %s", name, cr__shape(x));
  int32_t channels = x->shape[x->rank - 1];
  if (groups < 1 || channels % groups != 0) {
    return cr__fail(CR_EINVAL, "%s: %d channels of %s are not divisible into %d groups", name,
                    channels, cr__shape(x), groups);
  }
  if (!(eps >= 0)) return cr__fail(CR_EINVAL, "%s: eps must not be negative, but is %g", name, eps);
  CR_TRY(cr__check_vector(name, "weight", weight, x, channels));
  CR_TRY(cr__check_vector(name, "bias", bias, x, channels));
  if (bias_before == NULL) return CR_OK;
  CR_TRY(cr__float(name, bias_before));
  CR_TRY(cr__same_device(name, x, bias_before));
  if (bias_before->rank != 2 || bias_before->shape[0] != x->shape[0] ||
      bias_before->shape[1] != channels) {
    return cr__fail(CR_EINVAL, "%s: bias_before must be [%d %d] for x %s, not %s", name,
                    x->shape[0], channels, cr__shape(x), cr__shape(bias_before));
  }
  return CR_OK;
}

CR_EXPORT int cr_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups,
                            const cr_tensor *weight, const cr_tensor *bias, double eps,
                            int32_t silu, const cr_tensor *bias_before) {
  static const char name[] = "group_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__check_group_norm(name, x, groups, weight, bias, eps, bias_before));
  CR_TRY(cr__out(name, out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND(name, x->device, group_norm, out, x, groups, weight, bias, eps, silu,
                    bias_before);
}

static int check_after(const char *name, const cr_tensor *after, const cr_tensor *x) {
  if (after == NULL) return CR_OK;
  CR_TRY(cr__float(name, after));
  CR_TRY(cr__same_device(name, x, after));
  bool fits = after->rank <= x->rank;
  for (int32_t k = 1; fits && k <= after->rank; k++) {
    int32_t own = after->shape[after->rank - k];
    fits = own == 1 || own == x->shape[x->rank - k];
  }
  if (!fits) {
    return cr__fail(CR_EINVAL, "%s: `after` %s does not broadcast to x %s", name, cr__shape(after),
                    cr__shape(x));
  }
  return CR_OK;
}

int cr__check_layer_norm(const char *name, const cr_tensor *x, const cr_tensor *weight,
                         const cr_tensor *bias, double eps, const cr_tensor *after) {
  CR_TRY(cr__float(name, x));
  if (x->rank < 1) return cr__fail(CR_EINVAL, "%s: x must be [... D], not a scalar", name);
  int32_t width = x->shape[x->rank - 1];
  if (!(eps >= 0)) return cr__fail(CR_EINVAL, "%s: eps must not be negative, but is %g", name, eps);
  CR_TRY(cr__check_vector(name, "weight", weight, x, width));
  CR_TRY(cr__check_vector(name, "bias", bias, x, width));
  return check_after(name, after, x);
}

CR_EXPORT int cr_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                            const cr_tensor *bias, double eps, const cr_tensor *after) {
  static const char name[] = "layer_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__check_layer_norm(name, x, weight, bias, eps, after));
  CR_TRY(cr__out(name, out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND(name, x->device, layer_norm, out, x, weight, bias, eps, after);
}
