/* The public normalizations: checks; the work is the backend's. */
#include "ops/norm.h"

#include "base/backend.h"

/* Fails unless p (may be NULL) is a float tensor [n]. */
static int check_parameter(const char *name, const char *what, const cr_tensor *p,
                           const cr_tensor *x, int32_t n) {
  if (p == NULL) return CR_OK;
  CR_TRY(cr__float(name, p));
  CR_TRY(cr__same_device(name, x, p));
  if (p->rank != 1 || p->shape[0] != n) {
    return cr__fail(CR_EINVAL, "%s: %s must be [%d] for x %s, got %s", name, what, n, cr__shape(x),
                    cr__shape(p));
  }
  return CR_OK;
}

CR_EXPORT int cr_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups,
                            const cr_tensor *weight, const cr_tensor *bias, double eps,
                            int32_t silu, const cr_tensor *bias_before) {
  static const char name[] = "group_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__float(name, x));
  if (x->rank < 2) {
    return cr__fail(CR_EINVAL, "group_norm: x must be [N ... C], got %s", cr__shape(x));
  }
  int32_t channels = x->shape[x->rank - 1];
  if (groups < 1 || channels % groups != 0) {
    return cr__fail(CR_EINVAL, "group_norm: %d channels of %s do not divide into %d groups",
                    channels, cr__shape(x), groups);
  }
  if (!(eps >= 0)) return cr__fail(CR_EINVAL, "group_norm: eps is %g", eps);
  CR_TRY(check_parameter(name, "weight", weight, x, channels));
  CR_TRY(check_parameter(name, "bias", bias, x, channels));
  if (bias_before) {
    CR_TRY(cr__float(name, bias_before));
    CR_TRY(cr__same_device(name, x, bias_before));
    if (bias_before->rank != 2 || bias_before->shape[0] != x->shape[0] ||
        bias_before->shape[1] != channels) {
      return cr__fail(CR_EINVAL, "group_norm: bias_before must be [%d %d] for x %s, got %s",
                      x->shape[0], channels, cr__shape(x), cr__shape(bias_before));
    }
  }
  CR_TRY(cr__out(name, out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND(name, x->device, group_norm, out, x, groups, weight, bias, eps, silu,
                    bias_before);
}

int cr__check_after(const char *name, const cr_tensor *after, const cr_tensor *x) {
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

CR_EXPORT int cr_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                            const cr_tensor *bias, double eps, const cr_tensor *after) {
  static const char name[] = "layer_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__float(name, x));
  if (x->rank < 1) return cr__fail(CR_EINVAL, "layer_norm: x must be [... D], got a scalar");
  int32_t width = x->shape[x->rank - 1];
  if (!(eps >= 0)) return cr__fail(CR_EINVAL, "layer_norm: eps is %g", eps);
  CR_TRY(check_parameter(name, "weight", weight, x, width));
  CR_TRY(check_parameter(name, "bias", bias, x, width));
  CR_TRY(cr__check_after(name, after, x));
  CR_TRY(cr__out(name, out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND(name, x->device, layer_norm, out, x, weight, bias, eps, after);
}
