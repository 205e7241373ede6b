/* The public operations that only diffusion needs: argument checks. The device's table does the
 * work. */
#include <string.h>

#include "base/backend.h"
#include "base/dtype.h"

CR_EXPORT int cr_timestep_embedding(cr_tensor *out, const cr_tensor *t, int32_t dim,
                                    int32_t dtype) {
  static const char name[] = "timestep_embedding";
  CR_TRY(cr__begin(name, t));
  if (t->rank != 1 || t->dtype == CR_BOOL) {
    return cr__fail(CR_EINVAL, "%s: the timesteps must be numbers [T], not %s %s", name,
                    cr_dtype_name(t->dtype), cr__shape(t));
  }
  if (dim < 1)
    return cr__fail(CR_EINVAL, "%s: the embedding's width is %d, but must be at least 1", name,
                    dim);
  if (dtype < 0 || !cr__is_float(dtype)) {
    return cr__fail(CR_EINVAL, "%s: the result must have a float dtype, not %s", name,
                    cr_dtype_name(dtype));
  }
  int32_t shape[2] = {t->shape[0], dim};
  CR_TRY(cr__out(name, out, 2, shape, dtype, t->device));
  return CR_BACKEND(name, t->device, timestep_embedding, out, t);
}

CR_EXPORT int cr_posterior_sample(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                                  const cr_tensor *noise, double scale) {
  static const char name[] = "posterior_sample";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__float(name, mean));
  int32_t dtype = mean->dtype;
  const cr_tensor *others[2] = {logvar, noise};
  for (int i = 0; i < 2; i++) {
    const cr_tensor *x = others[i];
    if (i == 1 && x == NULL) continue;
    CR_TRY(cr__float(name, x));
    CR_TRY(cr__same_device(name, mean, x));
    if (x->rank != mean->rank ||
        memcmp(x->shape, mean->shape, (size_t)mean->rank * sizeof mean->shape[0]) != 0) {
      return cr__fail(CR_EINVAL, "%s: shapes differ: mean %s, %s %s", name, cr__shape(mean),
                      i == 0 ? "logvar" : "noise", cr__shape(x));
    }
    dtype = cr__promote(dtype, x->dtype);
  }
  CR_TRY(cr__out(name, out, mean->rank, mean->shape, dtype, mean->device));
  return CR_BACKEND(name, mean->device, posterior_sample, out, mean, logvar, noise, scale);
}
