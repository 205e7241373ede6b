/* The public operations on quantized tensors: argument checks and the results' shapes. The device's
 * table (backend.h) does the work. Where it lacks a fused operation that makes codes, the plain
 * operation runs, then a pass that quantizes its result. */
#include <string.h>

#include "base/backend.h"
#include "ops/checks.h"

enum {
  MOST_SUMMANDS = 131072,
  GROUP = 64
}; /* 127 * 127 * 131072 < 2^31, so int8 sums fit into i32; GROUP elements share an int4 scale */

static bool same_shape(const cr_tensor *t, int32_t rank, const int32_t *shape) {
  return t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static bool narrow_float(int32_t dtype) {
  return dtype == CR_F32 || dtype == CR_F16 || dtype == CR_BF16;
}

static int check_floats(const char *name, const cr_tensor *x) {
  CR_TRY(cr__float(name, x));
  if (x->dtype == CR_F64)
    return cr__fail(CR_EINVAL, "%s: f64 is not handled: f32, f16 and bf16 are", name);
  if (x->rank < 1) return cr__fail(CR_EINVAL, "%s: at least one dimension is needed", name);
  return CR_OK;
}

static int check_result(const char *name, int32_t dtype) {
  if (narrow_float(dtype)) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the result must be f32, f16 or bf16", name);
}

/* Checks that codes and their scale (or NULL) are contiguous, of the right dtypes and on one
 * device. */
static int check_pair(const char *name, const cr_tensor *codes, const cr_tensor *scale) {
  CR_TRY(cr__alive(name, codes));
  if (scale) CR_TRY(cr__alive(name, scale));
  CR_TRY(cr__same_device(name, codes, scale));
  if ((codes->dtype != CR_U8 && codes->dtype != CR_I8) || (scale && scale->dtype != CR_F32))
    return cr__fail(CR_EINVAL, "%s: codes must be u8 or i8 and scales f32, not %s and %s", name,
                    cr_dtype_name(codes->dtype), cr_dtype_name(scale ? scale->dtype : CR_F32));
  if (codes->rank < 1 || !cr_is_contiguous(codes) || (scale && !cr_is_contiguous(scale)))
    return cr__fail(CR_EINVAL, "%s: codes %s and their scales must be contiguous", name,
                    cr__shape(codes));
  return CR_OK;
}

/* Checks an activation: it has a scale for each row, or none. */
static int check_activation(const char *name, const cr_tensor *codes, const cr_tensor *scale) {
  CR_TRY(check_pair(name, codes, scale));
  if (!scale || same_shape(scale, codes->rank - 1, codes->shape)) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: codes %s need a scale for each row, not %s", name,
                  cr__shape(codes), cr__shape(scale));
}

static bool is_int4(const cr_tensor *codes, const cr_tensor *scale) {
  return codes->dtype == CR_U8 && scale && scale->rank == codes->rank;
}

/* Checks a weight of `rank` dimensions, and gives its shape in elements (int4 has two per byte). */
static int check_weight(const char *name, const cr_tensor *codes, const cr_tensor *scale,
                        int32_t rank, cr_tensor *whole) {
  CR_TRY(cr__alive(name, scale));
  CR_TRY(check_pair(name, codes, scale));
  if (codes->rank != rank)
    return cr__fail(CR_EINVAL, "%s: a weight of %d dimensions is needed, not %s", name, rank,
                    cr__shape(codes));
  *whole = *codes;
  if (is_int4(codes, scale)) {
    whole->shape[rank - 1] *= 2;
    int32_t want[CR_MAX_RANK];
    memcpy(want, whole->shape, sizeof want);
    want[rank - 1] = (want[rank - 1] + GROUP - 1) / GROUP;
    if (same_shape(scale, rank, want)) return CR_OK;
    return cr__fail(CR_EINVAL,
                    "%s: %s has two codes per byte and needs a scale for each %d of them, not %s",
                    name, cr__shape(codes), GROUP, cr__shape(scale));
  }
  int64_t summands = 1;
  for (int32_t i = 1; i < rank; i++) summands *= codes->shape[i];
  if (codes->dtype == CR_I8 && summands > MOST_SUMMANDS)
    return cr__fail(CR_EINVAL,
                    "%s: weight %s is too large: a sum must have at most %d products to be exact",
                    name, cr__shape(codes), MOST_SUMMANDS);
  if (same_shape(scale, 1, codes->shape)) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: codes %s need a scale for each row, not %s", name,
                  cr__shape(codes), cr__shape(scale));
}

/* Checks x for a weight: codes of the weight's format, or floats for int4. `dtype` is the
 * result's. */
static int check_input(const char *name, const cr_tensor *x, const cr_tensor *x_scale,
                       const cr_tensor *weight, const cr_tensor *scale, int32_t dtype) {
  CR_TRY(check_result(name, dtype));
  CR_TRY(cr__alive(name, x));
  CR_TRY(cr__same_device(name, x, weight));
  if (is_int4(weight, scale)) {
    if (x_scale) return cr__fail(CR_EINVAL, "%s: an int4 weight takes floats, not codes", name);
    return check_floats(name, x);
  }
  if (x->dtype != weight->dtype)
    return cr__fail(CR_EINVAL, "%s: a weight of %s codes takes inputs of the same codes, not %s",
                    name, cr_dtype_name(weight->dtype), cr_dtype_name(x->dtype));
  return check_activation(name, x, x_scale);
}

/* ---- making codes ---- */

static int check_divisor(const char *name, const cr_tensor *divisor, const cr_tensor *x,
                         int32_t width) {
  if (divisor == NULL) return CR_OK;
  CR_TRY(cr__alive(name, divisor));
  CR_TRY(cr__same_device(name, x, divisor));
  if (divisor->dtype == CR_F32 && same_shape(divisor, 1, &width) && cr_is_contiguous(divisor))
    return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the divisor must be f32 [%d], not %s %s", name, width,
                  cr_dtype_name(divisor->dtype), cr__shape(divisor));
}

/* Makes the results: codes of `shape`, and scale unless it is NULL. */
static int make_codes(const char *name, cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                      const int32_t *shape, const cr_tensor *divisor, int32_t dtype) {
  if (dtype != CR_I8 && dtype != CR_U8)
    return cr__fail(CR_EINVAL, "%s: codes must be i8 or u8, not %s", name, cr_dtype_name(dtype));
  if (!scale && !divisor) return cr__fail(CR_EINVAL, "%s: codes need scales or a divisor", name);
  CR_TRY(check_divisor(name, divisor, x, shape[x->rank - 1]));
  bool made = codes->storage == NULL;
  CR_TRY(cr__out(name, codes, x->rank, shape, dtype, x->device));
  int rc = scale ? cr__out(name, scale, x->rank - 1, shape, CR_F32, x->device) : CR_OK;
  if (rc >= 0) rc = check_activation(name, codes, scale);
  if (rc < 0 && made) cr_free(codes);
  return rc;
}

/* Quantizes y, the result of the plain operation, and frees it. */
static int quantize_made(const char *name, int rc, cr_tensor *codes, cr_tensor *scale, cr_tensor *y,
                         const cr_tensor *divisor) {
  if (rc >= 0) rc = CR_BACKEND(name, y->device, quantize, codes, scale, y, divisor);
  cr_free(y);
  return rc;
}

/* Whether a device has its own fused operation. */
#define HAS(name, device, field)                                                                   \
  (cr__backend_for(name, device) && cr__backend_for(name, device)->field)

CR_EXPORT int cr_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                          const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "quantize";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  CR_TRY(make_codes(name, codes, scale, x, x->shape, divisor, dtype));
  if (cr_numel(codes) == 0 && (!scale || cr_numel(scale) == 0)) return CR_OK;
  return CR_BACKEND(name, x->device, quantize, codes, scale, x, divisor);
}

CR_EXPORT int cr_quant_geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                             const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "quant_geglu";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  int32_t shape[CR_MAX_RANK];
  CR_TRY(check_floats(name, x));
  CR_TRY(cr__check_geglu(name, x, shape));
  CR_TRY(make_codes(name, codes, scale, x, shape, divisor, dtype));
  if (cr_numel(codes) == 0) return CR_OK;
  if (HAS(name, x->device, quant_geglu))
    return CR_BACKEND(name, x->device, quant_geglu, codes, scale, x, divisor);
  cr_tensor y = {0};
  return quantize_made(name, cr_geglu(&y, x), codes, scale, &y, divisor);
}

CR_EXPORT int cr_quant_layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                                  const cr_tensor *weight, const cr_tensor *bias, double eps,
                                  const cr_tensor *after, const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "quant_layer_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  CR_TRY(cr__check_layer_norm(name, x, weight, bias, eps, after));
  CR_TRY(make_codes(name, codes, scale, x, x->shape, divisor, dtype));
  if (cr_numel(codes) == 0) return CR_OK;
  if (HAS(name, x->device, quant_layer_norm))
    return CR_BACKEND(name, x->device, quant_layer_norm, codes, scale, x, weight, bias, eps, after,
                      divisor);
  cr_tensor y = {0};
  return quantize_made(name, cr_layer_norm(&y, x, weight, bias, eps, after), codes, scale, &y,
                       divisor);
}

CR_EXPORT int cr_quant_group_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                                  int32_t groups, const cr_tensor *weight, const cr_tensor *bias,
                                  double eps, int32_t silu, const cr_tensor *bias_before,
                                  const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "quant_group_norm";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_floats(name, x));
  CR_TRY(cr__check_group_norm(name, x, groups, weight, bias, eps, bias_before));
  CR_TRY(make_codes(name, codes, scale, x, x->shape, divisor, dtype));
  if (cr_numel(codes) == 0) return CR_OK;
  if (HAS(name, x->device, quant_group_norm))
    return CR_BACKEND(name, x->device, quant_group_norm, codes, scale, x, groups, weight, bias, eps,
                      silu, bias_before, divisor);
  cr_tensor y = {0};
  return quantize_made(name, cr_group_norm(&y, x, groups, weight, bias, eps, silu, bias_before),
                       codes, scale, &y, divisor);
}

CR_EXPORT int cr_quant_attention(cr_tensor *codes, cr_tensor *scale, const cr_tensor *q,
                                 const cr_tensor *k, const cr_tensor *v, int32_t heads,
                                 double attention_scale, const cr_tensor *mask,
                                 const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "quant_attention";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  int32_t shape[CR_MAX_RANK];
  CR_TRY(cr__check_attention(name, q, k, v, heads, &attention_scale, mask, shape));
  /* Strided codes are copied from dense ones, unless a kernel writes them directly. */
  bool gaps = codes->storage && !scale && !cr_is_contiguous(codes);
  cr_tensor dense = {0}, y = {0};
  CR_TRY(make_codes(name, gaps ? &dense : codes, scale, q, shape, divisor, dtype));
  int rc = gaps ? cr__out(name, codes, q->rank, shape, dtype, q->device) : CR_OK;
  if (rc >= 0 && cr_numel(codes) > 0) {
    rc = CR_EUNSUPPORTED;
    if (HAS(name, q->device, quant_attention))
      rc = CR_BACKEND(name, q->device, quant_attention, codes, scale, q, k, v, heads,
                      attention_scale, mask, divisor);
    if (rc == CR_EUNSUPPORTED) {
      rc = quantize_made(name, cr_attention(&y, q, k, v, heads, attention_scale, mask),
                         gaps ? &dense : codes, scale, &y, divisor);
      if (rc >= 0 && gaps) rc = cr_copy(codes, &dense);
    }
  }
  cr_free(&dense);
  return rc;
}

/* ---- using codes ---- */

CR_EXPORT int cr_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                            const cr_tensor *divisor, int32_t dtype) {
  static const char name[] = "dequantize";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(check_pair(name, codes, scale));
  CR_TRY(check_result(name, dtype));
  int32_t shape[CR_MAX_RANK], last = codes->rank - 1;
  memcpy(shape, codes->shape, sizeof shape);
  if (is_int4(codes, scale)) {
    cr_tensor whole = {0};
    CR_TRY(check_weight(name, codes, scale, codes->rank, &whole));
    shape[last] = whole.shape[last];
  } else if (scale && (scale->rank > last || !same_shape(scale, scale->rank, codes->shape))) {
    return cr__fail(CR_EINVAL, "%s: scales %s are not the leading dimensions of codes %s", name,
                    cr__shape(scale), cr__shape(codes));
  }
  CR_TRY(check_divisor(name, divisor, codes, shape[last]));
  CR_TRY(cr__out(name, out, codes->rank, shape, dtype, codes->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, codes->device, dequantize, out, codes, scale, divisor);
}

CR_EXPORT int cr_quant_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                              const cr_tensor *weight, const cr_tensor *weight_scale,
                              const cr_tensor *bias, const cr_tensor *residual, int32_t act,
                              int32_t dtype) {
  static const char name[] = "quant_linear";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  cr_tensor whole = {0};
  CR_TRY(check_weight(name, weight, weight_scale, 2, &whole));
  CR_TRY(check_input(name, x, x_scale, weight, weight_scale, dtype));
  if (x->shape[x->rank - 1] != whole.shape[1] || whole.shape[1] == 0)
    return cr__fail(CR_EINVAL, "%s: inner sizes differ or are 0: %s x weight %s", name,
                    cr__shape(x), cr__shape(&whole));
  if (act < 0 || act >= CR_ACTS || act == CR_ACT_PRELU)
    return cr__fail(CR_EINVAL, "%s: there is no activation %d", name, act);
  CR_TRY(cr__check_vector(name, "bias", bias, x, weight->shape[0]));
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] = weight->shape[0];
  if (residual) {
    CR_TRY(cr__float(name, residual));
    CR_TRY(cr__same_device(name, x, residual));
    if (!same_shape(residual, x->rank, shape))
      return cr__fail(CR_EINVAL, "%s: the residual %s does not fit %s x weight %s", name,
                      cr__shape(residual), cr__shape(x), cr__shape(&whole));
  }
  CR_TRY(cr__out(name, out, x->rank, shape, dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, quant_linear, out, x, x_scale, weight, weight_scale, bias,
                    residual, act);
}

CR_EXPORT int cr_quant_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                              const cr_tensor *weight_scale, const cr_tensor *bias,
                              const cr_tensor *residual, const cr_conv *options, int32_t dtype) {
  static const char name[] = "quant_conv2d";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  cr_tensor whole = {0};
  int32_t shape[4];
  CR_TRY(check_weight(name, weight, weight_scale, 4, &whole));
  CR_TRY(check_input(name, x, NULL, weight, weight_scale, dtype));
  CR_TRY(cr__check_conv2d(name, x, &whole, bias, residual, options, shape));
  if (options->act == CR_ACT_PRELU || whole.shape[3] == 0)
    return cr__fail(CR_EINVAL, "%s: PReLU and windows without channels are not supported", name);
  CR_TRY(cr__out(name, out, 4, shape, dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, quant_conv2d, out, x, weight, weight_scale, bias, residual,
                    options);
}

CR_EXPORT int cr_quant_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                                    const cr_tensor *weight, const cr_tensor *weight_scale,
                                    const cr_tensor *bias, const cr_tensor *divisor, int32_t dtype,
                                    int32_t codes) {
  static const char name[] = "quant_linear_geglu";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  cr_tensor whole = {0};
  CR_TRY(check_weight(name, weight, weight_scale, 2, &whole));
  CR_TRY(check_input(name, x, x_scale, weight, weight_scale, dtype));
  if (x->shape[x->rank - 1] != whole.shape[1] || whole.shape[1] == 0 || weight->shape[0] % 2)
    return cr__fail(
        CR_EINVAL,
        "%s: the inner sizes differ or are 0, or the number of rows is odd: %s x weight %s", name,
        cr__shape(x), cr__shape(&whole));
  CR_TRY(cr__check_vector(name, "bias", bias, x, weight->shape[0]));
  int32_t shape[CR_MAX_RANK], last = x->rank - 1;
  memcpy(shape, x->shape, sizeof shape);
  shape[last] = weight->shape[0] / 2;
  if (!codes != !divisor)
    return cr__fail(CR_EINVAL, "%s: codes as the result need a divisor, and floats take none",
                    name);
  if (codes) {
    CR_TRY(make_codes(name, out, NULL, x, shape, divisor, codes));
  } else {
    CR_TRY(cr__out(name, out, x->rank, shape, dtype, x->device));
  }
  if (cr_numel(out) == 0) return CR_OK;
  if (HAS(name, x->device, quant_linear_geglu)) {
    int rc = CR_BACKEND(name, x->device, quant_linear_geglu, out, x, x_scale, weight, weight_scale,
                        bias, divisor, dtype);
    if (rc != CR_EUNSUPPORTED) return rc;
  }
  cr_tensor y = {0};
  int rc = cr_quant_linear(&y, x, x_scale, weight, weight_scale, bias, NULL, CR_ACT_NONE, dtype);
  if (rc >= 0) rc = codes ? cr_quant_geglu(out, NULL, &y, divisor, codes) : cr_geglu(out, &y);
  cr_free(&y);
  return rc;
}

/* out [N 2H 2W O] = y, the results of the four phases, dense [N H+1 W+1 4O], interleaved: phase (a,
 * b) is y's H x W pixels from row a and column b on. */
static int interleave(cr_tensor *out, const cr_tensor *y) {
  int32_t h = y->shape[1] - 1, w = y->shape[2] - 1, o = y->shape[3] / 4;
  cr_tensor to = *out, from = *y;
  int64_t pixel = y->shape[3], line = (w + 1) * pixel;
  const int32_t shape[6] = {y->shape[0], h, 2, w, 2, o};
  const int64_t source[6] = {(h + 1) * line, line, line + 2 * o, pixel, pixel + o, 1};
  const int64_t goal[6] = {out->stride[0],     2 * out->stride[1], out->stride[1],
                           2 * out->stride[2], out->stride[2],     out->stride[3]};
  to.rank = from.rank = 6;
  memcpy(to.shape, shape, sizeof shape);
  memcpy(from.shape, shape, sizeof shape);
  memcpy(from.stride, source, sizeof source);
  memcpy(to.stride, goal, sizeof goal);
  return cr_copy(&to, &from);
}

CR_EXPORT int cr_quant_upsample_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                                       const cr_tensor *weight_scale, const cr_tensor *bias,
                                       int32_t dtype) {
  static const char name[] = "quant_upsample_conv2d";
  static const cr_conv around = {.stride_h = 1,
                                 .stride_w = 1,
                                 .dilation_h = 1,
                                 .dilation_w = 1,
                                 .pad = {1, 1, 1, 1},
                                 .groups = 1};
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  cr_tensor whole = {0};
  int32_t shape[4];
  CR_TRY(check_weight(name, weight, weight_scale, 4, &whole));
  CR_TRY(check_input(name, x, NULL, weight, weight_scale, dtype));
  CR_TRY(cr__check_conv2d(name, x, &whole, bias, NULL, &around, shape));
  if (whole.shape[0] % 4 || whole.shape[1] != 2 || whole.shape[2] != 2 || whole.shape[3] == 0)
    return cr__fail(CR_EINVAL, "%s: a folded weight [4O 2 2 C] is needed, not %s", name,
                    cr__shape(&whole));
  const int32_t doubled[4] = {x->shape[0], 2 * x->shape[1], 2 * x->shape[2], whole.shape[0] / 4};
  CR_TRY(cr__out(name, out, 4, doubled, dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  if (HAS(name, x->device, quant_upsample_conv2d)) {
    int rc = CR_BACKEND(name, x->device, quant_upsample_conv2d, out, x, weight, weight_scale, bias);
    if (rc != CR_EUNSUPPORTED) return rc;
  }
  cr_tensor y = {0};
  int rc = cr_quant_conv2d(&y, x, weight, weight_scale, bias, NULL, &around, dtype);
  if (rc >= 0) rc = interleave(out, &y);
  cr_free(&y);
  return rc;
}
