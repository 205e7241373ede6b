/* Matrix products and convolutions of quantized tensors on the CPU.
 *
 * int8: sums of products in int32, which are exact; by oneDNN if the processor has exact
 * instructions for them (VNNI), else by plain loops. A matrix product is a convolution with a
 * window of one pixel; the loops first lay out the windows of some pixels as rows. E4M3: the plain
 * operation in f32 on the values of the codes. int4: the plain operation on the values of some rows
 * of the weight at a time, so that the expanded weight is never in memory as a whole. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/conv.h"
#include "cpu/dnnl.h"
#include "cpu/operands.h"
#include "cpu/quant.h"
#include "cpu/view.h"

enum { ROWS = 32, EXPANDED = 1 << 18 }; /* pixels at a time; elements of an int4 weight at a time */

/* The epilogue after the sums: out = act(sum * (row scale * scale) + bias) + residual, dense
 * f32. */
typedef struct epilogue {
  float *out;
  const float *row_scale, *scale, *bias, *residual; /* all but scale may be NULL */
  int64_t n;
  int32_t act;
} epilogue;

static inline void finish(const epilogue *e, int64_t row, int64_t j, float sum) {
  int64_t at = row * e->n + j;
  float scale = e->row_scale ? e->row_scale[row] * e->scale[j] : e->scale[j];
  float y = sum * scale + (e->bias ? e->bias[j] : 0);
  if (e->act != CR_ACT_NONE) y = (float)cr__act_f64((double)y, e->act, 0);
  e->out[at] = y + (e->residual ? e->residual[at] : 0);
}

/* ---- int8 by oneDNN ---- */

/* out = act(sums * row_scale + bias) + residual for a row. bias and residual may be NULL. */
CR_CLONES static void finish_row(float *out, const float *sums, int64_t n, float row_scale,
                                 const float *bias, const float *residual, int32_t act) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) out[j] = sums[j] * row_scale;
  if (bias)
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] += bias[j];
  switch (act) {
  case CR_ACT_NONE:
    break;
  case CR_ACT_SILU:
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] = cr__silu_f32(out[j]);
    break;
  case CR_ACT_GELU:
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] = cr__gelu_f32(out[j]);
    break;
  default:
    for (int64_t j = 0; j < n; j++) out[j] = (float)cr__act_f64((double)out[j], act, 0);
  }
  if (residual)
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] += residual[j];
}

/* The part of the epilogue that oneDNN does not support: a scale for each row, and a residual that
 * is the result itself. */
static int finish_rows(cr_tensor *out, const cr_tensor *sums, const cr_tensor *row_scale,
                       const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  int64_t n = out->shape[out->rank - 1], rows = cr_numel(out) / n;
  int threads = cr__threads_for(4 * rows * n);
  float *memory = malloc((size_t)(threads * 2 * n) * sizeof *memory);
  if (!memory) return cr__fail(CR_ENOMEM, "quantized product: out of memory");
  const float *p = cr__ptr(sums), *s = row_scale ? cr__ptr(row_scale) : NULL,
              *b = bias ? cr__ptr(bias) : NULL;
  cr__view to = cr__view_of(out, out->rank, out->shape), more = {0};
  if (residual) more = cr__view_of(residual, out->rank, out->shape);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    float *mine = memory + omp_get_thread_num() * 2 * n;
    float *y = residual
                   ? mine
                   : cr__target_f32(&to, r * n, mine); /* the residual may be the result itself */
    const float *z = residual ? cr__load_f32(&more, r * n, n, mine + n) : NULL;
    finish_row(y, p + r * n, n, s ? s[r] : 1.0f, b, z, act);
    cr__store_f32(&to, r * n, n, y);
  }
  free(memory);
  return CR_OK;
}

/* Returns t [rows n], dense, as an image [1 1 rows n], or a weight as [n 1 1 k]. */
static cr_tensor as_image(const cr_tensor *t, bool weight) {
  int64_t n = t->shape[t->rank - 1];
  int32_t rows = (int32_t)(cr_numel(t) / n);
  cr_tensor view = *t;
  view.rank = 4;
  view.shape[0] = weight ? rows : 1, view.shape[1] = 1;
  view.shape[2] = weight ? 1 : rows, view.shape[3] = (int32_t)n;
  view.stride[0] = weight ? n : rows * n, view.stride[1] = weight ? n : rows * n;
  view.stride[2] = n, view.stride[3] = 1;
  return view;
}

static const cr_conv one_pixel = {
    .stride_h = 1, .stride_w = 1, .dilation_h = 1, .dilation_w = 1, .groups = 1};

/* Returns CR_EUNSUPPORTED if oneDNN does not support it or is not exact. */
static int int8_dnnl(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                     const cr_tensor *weight, const cr_tensor *scale, const cr_tensor *bias,
                     const cr_tensor *residual, const cr_conv *o, int32_t act) {
  const char *name = o ? "quant_conv2d" : "quant_linear";
  if (!cr__dnnl_int8()) return CR_EUNSUPPORTED;
  bool direct = !x_scale && cr_is_contiguous(out) && out->dtype != CR_F16 &&
                (!residual || (residual->dtype == out->dtype && cr_is_contiguous(residual) &&
                               cr__ptr(residual) != cr__ptr(out)));
  cr__operands op = {0};
  bias = cr__operand(&op, bias, CR_F32);
  cr_tensor apart = {0}, *to = out;
  if (!direct) {
    if (op.rc >= 0) op.rc = cr_empty(&apart, out->rank, out->shape, CR_F32, CR_CPU);
    to = &apart;
  }
  if (op.rc >= 0) {
    cr_conv own = o ? *o : one_pixel;
    own.act = direct ? act : CR_ACT_NONE;
    cr_tensor px = o ? *x : as_image(x, false), pw = o ? *weight : as_image(weight, true),
              po = o ? *to : as_image(to, false), pr = {0};
    if (residual && direct) pr = o ? *residual : as_image(residual, false);
    op.rc = cr__conv_dnnl(name, &po, &px, &pw, scale, direct ? bias : NULL,
                          residual && direct ? &pr : NULL, &own);
  }
  if (op.rc >= 0 && !direct) op.rc = finish_rows(out, to, x_scale, bias, residual, act);
  int rc = cr__operands_end(&op, out, op.rc);
  cr_free(&apart);
  return rc;
}

/* ---- int8 by loops ---- */

CR_CLONES static int32_t dot(const int8_t *a, const int8_t *b, int64_t n) {
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (int32_t)a[i] * (int32_t)b[i];
  return sum;
}

typedef struct windows {
  const int8_t *x;
  int64_t h, w, c, out_h, out_w, kernel_h, kernel_w, channels; /* channels: of a group */
  const cr_conv *o;
} windows;

/* Gathers the window of the result's pixel i, channels from `from` on, as a row. */
static void gather(int8_t *row, const windows *s, int64_t i, int64_t from) {
  const cr_conv *o = s->o;
  int64_t n = i / (s->out_h * s->out_w), top = i / s->out_w % s->out_h * o->stride_h - o->pad[0],
          left = i % s->out_w * o->stride_w - o->pad[2];
  for (int64_t ky = 0; ky < s->kernel_h; ky++)
    for (int64_t kx = 0; kx < s->kernel_w; kx++, row += s->channels) {
      int64_t y = top + ky * o->dilation_h, x = left + kx * o->dilation_w;
      if (y < 0 || y >= s->h || x < 0 || x >= s->w)
        memset(row, 0, (size_t)s->channels);
      else
        memcpy(row, s->x + ((n * s->h + y) * s->w + x) * s->c + from, (size_t)s->channels);
    }
}

static void some_pixels(const epilogue *e, const windows *s, const int8_t *weight, int8_t *rows,
                        int64_t first, int64_t count) {
  int64_t k = s->kernel_h * s->kernel_w * s->channels, per_group = e->n / s->o->groups;
  for (int64_t g = 0; g < s->o->groups; g++) {
    for (int64_t r = 0; r < count; r++) gather(rows + r * k, s, first + r, g * s->channels);
    for (int64_t j = g * per_group; j < (g + 1) * per_group; j++)
      for (int64_t r = 0; r < count; r++)
        finish(e, first + r, j, (float)dot(rows + r * k, weight + j * k, k));
  }
}

static int plain_int8(const epilogue *e, const windows *s, const int8_t *weight, int64_t pixels) {
  int64_t k = s->kernel_h * s->kernel_w * s->channels;
  int threads = cr__threads_for(pixels * e->n * k);
  int8_t *memory = malloc((size_t)(threads * ROWS * k));
  if (!memory) return cr__fail(CR_ENOMEM, "quantized product: out of memory");
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < pixels; first += ROWS)
    some_pixels(e, s, weight, memory + omp_get_thread_num() * ROWS * k, first,
                pixels - first < ROWS ? pixels - first : ROWS);
  free(memory);
  return CR_OK;
}

/* ---- E4M3 ---- */

/* The operation on f32 tensors, with cr__cpu_linear or cr__cpu_conv2d. */
static int plain_operation(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                           const cr_tensor *bias, const cr_tensor *residual, const cr_conv *o,
                           int32_t act) {
  if (!o) return cr__cpu_linear(out, x, weight, bias, residual, act);
  cr_conv own = *o;
  own.act = act;
  return cr__cpu_conv2d(out, x, weight, bias, residual, NULL, &own);
}

/* Makes the values of codes in f32. */
static int values_of(cr_tensor *out, const cr_tensor *codes) {
  CR_TRY(cr_empty(out, codes->rank, codes->shape, CR_F32, CR_CPU));
  cr__code_values(cr__ptr(out), codes, NULL);
  return CR_OK;
}

static int decoded(const epilogue *e, const cr_tensor *result, const cr_tensor *x,
                   const cr_tensor *weight, const cr_conv *o) {
  cr_tensor a = {0}, b = {0}, y = {0};
  int rc = values_of(&a, x);
  if (rc >= 0) rc = values_of(&b, weight);
  if (rc >= 0) rc = cr_empty(&y, result->rank, result->shape, CR_F32, CR_CPU);
  if (rc >= 0) rc = plain_operation(&y, &a, &b, NULL, NULL, o, CR_ACT_NONE);
  if (rc >= 0) {
    const float *sums = cr__ptr(&y);
    int64_t rows = cr_numel(&y) / e->n;
#pragma omp parallel for num_threads(cr__threads_for(4 * rows * e->n))
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < e->n; j++) finish(e, r, j, sums[r * e->n + j]);
  }
  cr_free(&a);
  cr_free(&b);
  cr_free(&y);
  return rc;
}

/* ---- int4 ---- */

/* Returns the part of t that begins at `first` of dimension d, as a view that retains nothing. */
static cr_tensor part(const cr_tensor *t, int32_t d, int64_t first, int64_t count) {
  cr_tensor view = *t;
  view.offset += first * t->stride[d];
  view.shape[d] = (int32_t)count;
  return view;
}

/* Computes the columns of the result that belong to rows first ... first + count - 1 of the
 * weight. */
static int some_rows(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                     const cr_tensor *scale, const cr_tensor *bias, const cr_tensor *residual,
                     const cr_conv *o, int32_t act, int64_t first, int64_t count) {
  cr_tensor codes = part(weight, 0, first, count), scales = part(scale, 0, first, count);
  int32_t last = out->rank - 1;
  cr_tensor to = part(out, last, first, count), b, r, numbers = {0}, whole = codes;
  if (bias) b = part(bias, 0, first, count);
  if (residual) r = part(residual, last, first, count);
  whole.shape[weight->rank - 1] *= 2;
  int rc = cr_empty(&numbers, whole.rank, whole.shape, CR_F32, CR_CPU);
  if (rc >= 0) cr__code_values(cr__ptr(&numbers), &codes, &scales);
  if (rc >= 0)
    rc = plain_operation(&to, x, &numbers, bias ? &b : NULL, residual ? &r : NULL, o, act);
  cr_free(&numbers);
  return rc;
}

static int expanded(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *scale, const cr_tensor *bias, const cr_tensor *residual,
                    const cr_conv *o, int32_t act) {
  int64_t n = weight->shape[0], groups = o ? o->groups : 1;
  int64_t step = EXPANDED * n / (2 * cr_numel(weight));
  step = groups > 1 ? n : step < 1 ? 1 : step; /* groups of channels are not split */
  for (int64_t first = 0; first < n; first += step)
    CR_TRY(some_rows(out, x, weight, scale, bias, residual, o, act, first,
                     n - first < step ? n - first : step));
  return CR_OK;
}

/* ---- the operations ---- */

static int product(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                   const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                   const cr_tensor *residual, const cr_conv *o, int32_t act) {
  if (weight->dtype == CR_I8) {
    int rc = int8_dnnl(out, x, x_scale, weight, weight_scale, bias, residual, o, act);
    if (rc != CR_EUNSUPPORTED) return rc;
  }
  cr__operands op = {0};
  bool floats = cr__int4(weight, weight_scale);
  x = floats ? cr__operand(&op, x, CR_F32) : x;
  bias = cr__operand(&op, bias, CR_F32);
  residual = cr__operand(&op, residual, CR_F32);
  cr_tensor *result = cr__result(&op, out, CR_F32);
  if (op.rc < 0) return cr__operands_end(&op, out, op.rc);
  epilogue e = {.out = cr__ptr(result),
                .row_scale = x_scale ? cr__ptr(x_scale) : NULL,
                .scale = cr__ptr(weight_scale),
                .bias = bias ? cr__ptr(bias) : NULL,
                .residual = residual ? cr__ptr(residual) : NULL,
                .n = weight->shape[0],
                .act = act};
  int rc;
  if (floats) {
    rc = expanded(result, x, weight, weight_scale, bias, residual, o, act);
  } else if (weight->dtype == CR_U8) {
    rc = decoded(&e, result, x, weight, o);
  } else {
    int64_t pixels = cr_numel(result) / e.n;
    windows s = {.x = cr__ptr(x),
                 .h = 1,
                 .w = pixels,
                 .c = weight->shape[1],
                 .out_h = 1,
                 .out_w = pixels,
                 .kernel_h = 1,
                 .kernel_w = 1,
                 .channels = weight->shape[1],
                 .o = &one_pixel};
    if (o)
      s = (windows){.x = s.x,
                    .h = x->shape[1],
                    .w = x->shape[2],
                    .c = x->shape[3],
                    .out_h = out->shape[1],
                    .out_w = out->shape[2],
                    .kernel_h = weight->shape[1],
                    .kernel_w = weight->shape[2],
                    .channels = weight->shape[3],
                    .o = o};
    rc = plain_int8(&e, &s, cr__ptr(weight), pixels);
  }
  return cr__operands_end(&op, out, rc);
}

int cr__cpu_quant_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                         const cr_tensor *weight, const cr_tensor *weight_scale,
                         const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  return product(out, x, x_scale, weight, weight_scale, bias, residual, NULL, act);
}

int cr__cpu_quant_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                         const cr_tensor *weight_scale, const cr_tensor *bias,
                         const cr_tensor *residual, const cr_conv *options) {
  return product(out, x, NULL, weight, weight_scale, bias, residual, options, options->act);
}
