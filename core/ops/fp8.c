/* The public operations on 8-bit floating point: what is asked of the arguments, and the results'
 * shapes. The work itself is the device's (backend.h). */
#include <string.h>

#include "base/backend.h"
#include "ops/norm.h"

static bool same_shape(const cr_tensor *t, int32_t rank, const int32_t *shape) {
  return t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static int check_floats(const char *name, const cr_tensor *x) {
  CR_TRY(cr__float(name, x));
  if (x->dtype == CR_F64)
    return cr__fail(CR_EINVAL, "%s: f64 is not handled: f32, f16, bf16", name);
  if (x->rank < 1) return cr__fail(CR_EINVAL, "%s: one dimension at least is needed", name);
  return CR_OK;
}

/* A quantized tensor: codes [... K], scale [...] of all but the last dimension. */
static int check_codes(const char *name, const cr_tensor *codes, const cr_tensor *scale) {
  CR_TRY(cr__alive(name, codes));
  CR_TRY(cr__alive(name, scale));
  CR_TRY(cr__same_device(name, codes, scale));
  if (codes->dtype != CR_U8 || scale->dtype != CR_F32)
    return cr__fail(CR_EINVAL, "%s: codes are u8 and scales f32, not %s and %s", name,
                    cr_dtype_name(codes->dtype), cr_dtype_name(scale->dtype));
  if (codes->rank < 1 || !same_shape(scale, codes->rank - 1, codes->shape))
    return cr__fail(CR_EINVAL, "%s: codes %s need a scale for each row, not %s", name,
                    cr__shape(codes), cr__shape(scale));
  if (!cr_is_contiguous(codes) || !cr_is_contiguous(scale))
    return cr__fail(CR_EINVAL, "%s: codes %s and their scales must be contiguous", name,
                    cr__shape(codes));
  return CR_OK;
}

/* codes and scale as results of `rank` and `shape`; `fixed`: the scale is there. */
static int make_codes(const char *name, cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                      const int32_t *shape, bool fixed) {
  bool made = codes->storage == NULL;
  CR_TRY(cr__out(name, codes, x->rank, shape, CR_U8, x->device));
  int rc = fixed ? CR_OK : cr__out(name, scale, x->rank - 1, shape, CR_F32, x->device);
  if (rc >= 0) rc = check_codes(name, codes, scale);
  if (rc < 0 && made) cr_free(codes);
  return rc;
}

CR_EXPORT int cr_fp8_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                              int32_t fixed) {
  static const char name[] = "fp8_quantize";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  if (fixed) {
    CR_TRY(cr__alive(name, scale));
    CR_TRY(cr__same_device(name, x, scale));
  }
  CR_TRY(make_codes(name, codes, scale, x, x->shape, fixed));
  if (cr_numel(scale) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, fp8_quantize, codes, scale, x, fixed);
}

CR_EXPORT int cr_fp8_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                                int32_t dtype) {
  static const char name[] = "fp8_dequantize";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_codes(name, codes, scale));
  if (dtype != CR_F32 && dtype != CR_F16 && dtype != CR_BF16)
    return cr__fail(CR_EINVAL, "%s: the result is f32, f16 or bf16", name);
  CR_TRY(cr__out(name, out, codes->rank, codes->shape, dtype, codes->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, codes->device, fp8_dequantize, out, codes, scale);
}

CR_EXPORT int cr_fp8_geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x) {
  static const char name[] = "fp8_geglu";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  if (x->shape[x->rank - 1] % 2)
    return cr__fail(CR_EINVAL, "%s: the last dimension of %s is not even", name, cr__shape(x));
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] /= 2;
  CR_TRY(make_codes(name, codes, scale, x, shape, false));
  if (cr_numel(scale) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, fp8_geglu, codes, scale, x);
}

static int check_vector(const char *name, const char *what, const cr_tensor *t, const cr_tensor *x,
                        int32_t n) {
  if (t == NULL) return CR_OK;
  CR_TRY(cr__float(name, t));
  CR_TRY(cr__same_device(name, x, t));
  if (t->rank != 1 || t->shape[0] != n)
    return cr__fail(CR_EINVAL, "%s: %s must be [%d], not %s", name, what, n, cr__shape(t));
  return CR_OK;
}

CR_EXPORT int cr_fp8_layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                                const cr_tensor *weight, const cr_tensor *bias, double eps,
                                const cr_tensor *after) {
  static const char name[] = "fp8_layer_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  int32_t width = x->shape[x->rank - 1];
  if (!(eps >= 0)) return cr__fail(CR_EINVAL, "%s: eps is %g", name, eps);
  CR_TRY(check_vector(name, "weight", weight, x, width));
  CR_TRY(check_vector(name, "bias", bias, x, width));
  CR_TRY(cr__check_after(name, after, x));
  CR_TRY(make_codes(name, codes, scale, x, x->shape, false));
  if (cr_numel(codes) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, fp8_layer_norm, codes, scale, x, weight, bias, eps, after);
}

CR_EXPORT int cr_fp8_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                            const cr_tensor *weight, const cr_tensor *weight_scale,
                            const cr_tensor *bias, const cr_tensor *residual, int32_t act,
                            int32_t dtype) {
  static const char name[] = "fp8_linear";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_codes(name, weight, weight_scale));
  if (x_scale)
    CR_TRY(check_codes(name, x, x_scale));
  else
    CR_TRY(check_floats(name, x));
  if (!x_scale) dtype = x->dtype;
  if (dtype != CR_F32 && dtype != CR_F16 && dtype != CR_BF16)
    return cr__fail(CR_EINVAL, "%s: the result is f32, f16 or bf16", name);
  CR_TRY(cr__same_device(name, x, weight));
  if (weight->rank != 2)
    return cr__fail(CR_EINVAL, "%s: x [... K] and weight [N K] are needed, not %s and %s", name,
                    cr__shape(x), cr__shape(weight));
  if (x->shape[x->rank - 1] != weight->shape[1] || weight->shape[1] == 0)
    return cr__fail(CR_EINVAL, "%s: inner sizes differ or are 0: %s x weight %s", name,
                    cr__shape(x), cr__shape(weight));
  if (act < 0 || act >= CR_ACTS || act == CR_ACT_PRELU)
    return cr__fail(CR_EINVAL, "%s: there is no activation %d", name, act);
  CR_TRY(check_vector(name, "bias", bias, x, weight->shape[0]));
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] = weight->shape[0];
  if (residual) {
    CR_TRY(cr__float(name, residual));
    CR_TRY(cr__same_device(name, x, residual));
    if (!same_shape(residual, x->rank, shape))
      return cr__fail(CR_EINVAL, "%s: the residual %s does not fit %s x weight %s", name,
                      cr__shape(residual), cr__shape(x), cr__shape(weight));
  }
  CR_TRY(cr__out(name, out, x->rank, shape, dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, fp8_linear, out, x, x_scale, weight, weight_scale, bias,
                    residual, act);
}
