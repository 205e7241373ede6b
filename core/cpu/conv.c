/* Convolution on the CPU: Winograd's algorithm where it is faster (winograd.c), else oneDNN on
 * channels-last data.
 *
 * With this model's shapes, oneDNN is as fast on channels-last data as on its blocked layout. So
 * only the weights are reordered to the layout that it prefers, at each call. That reads and writes
 * them once, which takes 1 or 2 % of a convolution's time; no copy can become stale when weights
 * change in place, and a model's memory is not doubled. f64 has a plain loop, for tests; no network
 * uses it. */
#include "cpu/conv.h"
#include "cpu/dnnl.h"
#include "cpu/operands.h"
#include "cpu/winograd.h"

static int conv_f64(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                    const cr_conv *o) {
  const double *px = cr__ptr(x), *pw = cr__ptr(weight);
  const double *pb = bias ? cr__ptr(bias) : NULL, *pr = residual ? cr__ptr(residual) : NULL;
  const double *ps = slope ? cr__ptr(slope) : NULL;
  double *po = cr__ptr(out);
  int64_t h = x->shape[1], w = x->shape[2], c = x->shape[3];
  int64_t oh = out->shape[1], ow = out->shape[2], oc = out->shape[3];
  int64_t kh = weight->shape[1], kw = weight->shape[2], kc = weight->shape[3];
  int64_t per_group = oc / o->groups, positions = (int64_t)out->shape[0] * oh * ow;
#pragma omp parallel for num_threads(cr_threads())
  for (int64_t i = 0; i < positions; i++) {
    int64_t n = i / (oh * ow), top = i / ow % oh * o->stride_h - o->pad[0],
            left = i % ow * o->stride_w - o->pad[2];
    for (int64_t j = 0; j < oc; j++) {
      double sum = pb ? pb[j] : 0;
      for (int64_t ky = 0; ky < kh; ky++) {
        int64_t y = top + ky * o->dilation_h;
        for (int64_t kx = 0; kx < kw; kx++) {
          int64_t z = left + kx * o->dilation_w;
          if (y < 0 || y >= h || z < 0 || z >= w) continue;
          const double *a = px + ((n * h + y) * w + z) * c + j / per_group * kc;
          const double *b = pw + ((j * kh + ky) * kw + kx) * kc;
          for (int64_t k = 0; k < kc; k++) sum += a[k] * b[k];
        }
      }
      sum = cr__act_f64(sum, o->act, ps ? ps[j] : 0);
      po[i * oc + j] = sum + (pr ? pr[i * oc + j] : 0);
    }
  }
  return CR_OK;
}

/* Describes channels-last data as [N C H W]. */
static bool channels_last(const cr__dnnl *d, dnnl_memory_desc_t *m, const cr_tensor *t) {
  int64_t n = t->shape[0], h = t->shape[1], w = t->shape[2], c = t->shape[3];
  dnnl_dims_t size = {n, c, h, w}, step = {h * w * c, 1, w * c, c};
  return !d->memory_desc_init_by_strides(m, 4, size, cr__dnnl_type(t->dtype), step);
}

static cr__primitive *make(const char *name, const cr__dnnl *d, const cr__key *key,
                           const cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                           bool bias, bool factor, bool residual, const cr_conv *o) {
  dnnl_memory_desc_t mx, mw, any, mb, mo, channels;
  int64_t oc = weight->shape[0], kh = weight->shape[1], kw = weight->shape[2],
          ic = weight->shape[3], g = o->groups;
  dnnl_dims_t size = {oc, ic, kh, kw}, step = {kh * kw * ic, 1, kw * ic, ic};
  dnnl_dims_t grouped = {g, oc / g, ic, kh, kw},
              grouped_step = {oc / g * kh * kw * ic, kh * kw * ic, 1, kw * ic, ic};
  dnnl_dims_t vector = {oc}, dense = {1}, each = {1, oc, 1, 1}, each_step = {oc, 1, oc, oc};
  int rank = g > 1 ? 5 : 4;
  dnnl_data_type_t type = cr__dnnl_type(weight->dtype);
  bool ok =
      channels_last(d, &mx, x) && channels_last(d, &mo, out) &&
      !d->memory_desc_init_by_strides(&mw, rank, g > 1 ? grouped : size, type,
                                      g > 1 ? grouped_step : step) &&
      !d->memory_desc_init_by_tag(&any, rank, g > 1 ? grouped : size, type, dnnl_format_tag_any) &&
      !d->memory_desc_init_by_strides(&mb, 1, vector, dnnl_f32, dense) &&
      !d->memory_desc_init_by_strides(&channels, 4, each, dnnl_f32, each_step);
  dnnl_dims_t stride = {o->stride_h, o->stride_w};
  dnnl_dims_t dilation = {o->dilation_h - 1, o->dilation_w - 1};
  /* oneDNN requires that result, kernel and padding match exactly, but a stride may leave input
   * unused: the padding after the input is adjusted. */
  dnnl_dims_t before = {o->pad[0], o->pad[2]};
  dnnl_dims_t after = {(out->shape[1] - 1) * (int64_t)o->stride_h + (kh - 1) * o->dilation_h + 1 -
                           x->shape[1] - o->pad[0],
                       (out->shape[2] - 1) * (int64_t)o->stride_w + (kw - 1) * o->dilation_w + 1 -
                           x->shape[2] - o->pad[2]};
  dnnl_convolution_desc_t desc;
  bool own = bias && !factor; /* the convolution's own bias, not one after the factor */
  if (!ok || d->dilated_convolution_forward_desc_init(
                 &desc, dnnl_forward_inference, dnnl_convolution_auto, &mx, &any, own ? &mb : NULL,
                 &mo, stride, dilation, before, after)) {
    cr__fail(CR_EUNSUPPORTED, "%s: oneDNN does not support %s with weight %s", name, cr__shape(x),
             cr__shape(weight));
    return NULL;
  }
  cr__fused fused = {.channels = factor ? &channels : NULL, .added = bias, .act = o->act};
  if (residual) fused.residual = CR_RESIDUAL_SEPARATE;
  cr__primitive_arg args[4] = {
      {DNNL_ARG_SRC, &mx}, {DNNL_ARG_WEIGHTS, &mw}, {DNNL_ARG_DST, &mo}, {DNNL_ARG_BIAS, &mb}};
  return cr__primitive_add(name, key, &desc, fused, &mo, own ? 4 : 3, args);
}

int cr__conv_dnnl(const char *name, cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *factor, const cr_tensor *bias, const cr_tensor *residual,
                  const cr_conv *o) {
  const cr__dnnl *d = cr__dnnl_get(name);
  if (d == NULL) return cr__last_code();
  cr__key key;
  cr__key_begin(&key, CR_KEY_CONV);
  cr__key_put(&key, x->dtype * CR_DTYPES + out->dtype);
  for (int i = 0; i < 4; i++) cr__key_put(&key, x->shape[i]);
  for (int i = 0; i < 3; i++) cr__key_put(&key, weight->shape[i]);
  for (int i = 0; i < 4; i++) cr__key_put(&key, o->pad[i]);
  cr__key_put(&key, o->stride_h);
  cr__key_put(&key, o->stride_w);
  cr__key_put(&key, o->dilation_h);
  cr__key_put(&key, o->dilation_w);
  cr__key_put(&key, o->groups);
  cr__key_put(&key, o->act);
  cr__key_put(&key, (bias != NULL) + 2 * (factor != NULL) + 4 * (residual != NULL));
  cr__primitive *p = cr__primitive_find(&key);
  if (p == NULL)
    p = make(name, d, &key, out, x, weight, bias != NULL, factor != NULL, residual != NULL, o);
  if (p == NULL) return cr__last_code();
  void *data[CR_PRIMITIVE_ARGS] = {cr__ptr(x), cr__ptr(weight), cr__ptr(out)};
  int n = 3;
  if (factor) data[n++] = cr__ptr(factor);
  if (bias) data[n++] = cr__ptr(bias);
  if (residual) data[n++] = cr__ptr(residual);
  return cr__primitive_run(name, p, data);
}

static int conv_and_act(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias, const cr_conv *o) {
  return cr__conv_dnnl("conv2d", out, x, weight, NULL, bias, NULL, o);
}

/* Applies what oneDNN does not: PReLU's slopes and the residual, in one pass over the result. */
static void finish(float *out, const float *y, const float *slope, const float *residual,
                   int64_t positions, int64_t channels) {
#pragma omp parallel for num_threads(cr_threads()) if (positions * channels > 10000)
  for (int64_t i = 0; i < positions; i++) {
    int64_t at = i * channels;
    if (slope)
      for (int64_t j = 0; j < channels; j++)
        out[at + j] = y[at + j] < 0 ? y[at + j] * slope[j] : y[at + j];
    else if (out != y)
      for (int64_t j = 0; j < channels; j++) out[at + j] = y[at + j];
    if (residual)
      for (int64_t j = 0; j < channels; j++) out[at + j] += residual[at + j];
  }
}

/* The residual is added in a separate pass, since oneDNN 2.6 has faults: a separate residual tensor
 * gives wrong sums in one implementation (few channels, a result of another size than x), a sum
 * into the result crashes in another one (strides with an activation before it), and its fastest
 * implementation supports neither. PReLU's slopes are applied there too: with them only oneDNN's
 * reference loops remain, which are about a hundred times slower. */
static int conv_dnnl(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                     const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                     const cr_conv *o) {
  if (!(x->dtype == CR_BF16 && cr__dnnl_amx()) && cr__winograd_fits(out, x, weight, o))
    return cr__winograd(out, x, weight, bias, residual, slope, o);
  if (x->dtype == CR_BF16) return cr__conv_dnnl("conv2d", out, x, weight, NULL, bias, residual, o);
  cr_conv plain = *o;
  if (slope) plain.act = CR_ACT_NONE;
  if (!residual && !slope) return conv_and_act(out, x, weight, bias, o);
  cr_tensor apart = {0}, *y = out;
  if (residual && cr__ptr(residual) == cr__ptr(out)) {
    CR_TRY(cr_empty(&apart, 4, out->shape, CR_F32, CR_CPU));
    y = &apart;
  }
  int rc = conv_and_act(y, x, weight, bias, &plain);
  if (rc >= 0)
    finish(cr__ptr(out), cr__ptr(y), slope ? cr__ptr(slope) : NULL,
           residual ? cr__ptr(residual) : NULL, cr_numel(out) / out->shape[3], out->shape[3]);
  cr_free(&apart);
  return rc;
}

/* bf16 if the processor supports it, except where Winograd's algorithm in f32 is faster, or oneDNN
 * cannot fuse the rest. */
static int32_t conv_dtype(const cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                          const cr_tensor *residual, const cr_tensor *slope) {
  if (x->dtype == CR_F64) return CR_F64;
  bool narrow = x->dtype == CR_BF16 && weight->dtype == CR_BF16 && out->dtype == CR_BF16 &&
                (!residual || residual->dtype == CR_BF16) && !slope && cr__dnnl_bf16();
  return narrow && !(residual && cr__ptr(residual) == cr__ptr(out)) ? CR_BF16 : CR_F32;
}

int cr__cpu_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                   const cr_conv *o) {
  int32_t dtype = conv_dtype(out, x, weight, residual, slope);
  cr__operands op = {0};
  x = cr__operand(&op, x, dtype);
  weight = cr__operand(&op, weight, dtype);
  bias = cr__operand(&op, bias, dtype == CR_F64 ? CR_F64 : CR_F32);
  residual = cr__operand(&op, residual, dtype);
  slope = cr__operand(&op, slope, dtype);
  cr_tensor *result = cr__result(&op, out, dtype);
  int rc = op.rc;
  if (rc >= 0)
    rc = (dtype == CR_F64 ? conv_f64 : conv_dnnl)(result, x, weight, bias, residual, slope, o);
  return cr__operands_end(&op, out, rc);
}
