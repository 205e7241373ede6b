/* Products of 8-bit floats: quant_linear of the table.
 *
 * On a Hopper, kernels of our own do all in one (gemm_hopper.h), or the library, which takes the
 * scales of rows and columns (as outer vectors), bias and residual along too: the search times them
 * and keeps the fastest under the sizes; without it, and in a recording of sizes that are not
 * known, ours are taken. CR_FP8_OWN=0 leaves all to the library, 1 and 2 take our wide and narrow
 * tiles wherever they fit, for measuring.
 *
 * Other cards' libraries know no such vectors, and none takes inner sizes that are not multiples of
 * 16: there the bare sums come out as f32 - of the library, or of f32 products of decoded numbers -
 * and one pass of our own does the rest. */
#include <initializer_list>
#include <stdio.h>

#include "device/algorithms.h"
#include "device/switches.h"
#include "linear/fp8.h"
#include "linear/linear.h"

enum { FP8_CAPABILITY = 89 };

template <typename T> struct scaled_args {
  T *out;
  const float *y, *row_scale, *column_scale;
  const T *bias, *residual;
  int64_t packs, total; /* of a row, of all */
  int32_t act;
};

/* out = act(y * (row_scale column_scale) + bias) + residual; y f32 and all others dense [M N]. N
 * neighbouring numbers a thread, neighbours in a warp: whole sectors. Memory-bound. */
template <typename T, int N> __global__ void scaled_kernel(scaled_args<T> p) {
  typedef crk_pack<T, N> pack;
  typedef crk_pack<float, N> floats;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.total) return;
  int64_t row = i / p.packs, column = (i - row * p.packs) * N;
  floats y = *(const floats *)(p.y + i * N), scale = *(const floats *)(p.column_scale + column);
  pack bias = {}, residual = {}, out;
  if (p.bias) bias = *(const pack *)(p.bias + column);
  if (p.residual) residual = *(const pack *)(p.residual + i * N);
  float own = p.row_scale[row];
#pragma unroll
  for (int e = 0; e < N; e++) {
    float x = y.v[e] * (own * scale.v[e]);
    if (p.bias) x += crk_float(bias.v[e]);
    x = crk_act(x, p.act, 0);
    if (p.residual) x += crk_float(residual.v[e]);
    out.v[e] = crk_from<T>(x);
  }
  *(pack *)(p.out + i * N) = out;
}

template <typename T> static void launch_scaled(crk_device *d, const crk_product *p, float *y) {
  scaled_args<T> args = {};
  args.out = (T *)p->out.p;
  args.y = y;
  args.row_scale = p->a_scale, args.column_scale = p->b_scale;
  args.bias = (const T *)p->bias, args.residual = (const T *)p->residual.p;
  args.packs = p->n, args.total = p->m * p->n;
  args.act = p->act;
  bool wide = p->n % 4 == 0;
  const void *all[] = {args.out, args.column_scale, args.bias, args.residual};
  for (const void *q : all) wide = wide && (uintptr_t)q % 16 == 0;
  if (wide) args.packs /= 4, args.total /= 4;
  unsigned blocks = (unsigned)crk_ceil_div(args.total, 256);
  if (wide)
    scaled_kernel<T, 4><<<blocks, 256, 0, d->stream>>>(args);
  else
    scaled_kernel<T, 1><<<blocks, 256, 0, d->stream>>>(args);
}

/* By type; ends with what was launched. */
static int finish_scaled(crk_device *d, const crk_product *p, float *y) {
  CRK_FLOAT_TYPES(p->name, p->dtype, launch_scaled<T>(d, p, y));
  return crk_launched(p->name, d);
}

/* By the library's own scales; CRK_NOT_TAKEN where it has none for this. */
static int scaled(crk_device *d, const crk_product *p) {
  if (d->major != 9 || p->dtype == CR_F32) return CRK_NOT_TAKEN;
  int steps = crk_fused_steps(d, CRK_FUSE_LINEAR, p->bias, p->act != CR_ACT_NONE, p->residual.p);
  for (;; steps = 0) {
    crk_product first, rest;
    crk_product_split(p, steps, &first, &rest);
    bool more = rest.bias || rest.act != CR_ACT_NONE || rest.residual.p;
    cr_storage *y = NULL;
    if (rest.residual.p == p->out.p) { /* which the product would write over */
      y = cr__storage_new(p->m * p->n * cr_dtype_size(p->dtype), d->device);
      if (!y) return CR_ENOMEM;
      first.out.p = y->data;
      first.out.row_step = p->n;
    }
    int rc = crk_product_library(d, &first);
    if (rc == CR_OK && more) rc = crk_product_finish(d, &rest, &first.out);
    if (y) cr__release(y);
    if (rc != CRK_NOT_TAKEN || steps == 0) return rc;
  }
}

/* Bare sums, then everything else. */
static int unscaled(crk_device *d, const crk_product *p) {
  cr_storage *y = cr__storage_new(p->m * p->n * 4, d->device);
  if (!y) return CR_ENOMEM;
  crk_product sums = *p;
  sums.dtype = CR_F32;
  sums.fp8 = CRK_FP8_BARE;
  sums.out.p = y->data;
  sums.out.row_step = p->n;
  sums.bias = NULL;
  sums.residual.p = NULL;
  sums.act = CR_ACT_NONE;
  int rc = crk_product_library(d, &sums);
  if (rc == CRK_NOT_TAKEN) {
    cr_storage *a = cr__storage_new(p->m * p->k * 4, d->device),
               *b = cr__storage_new(p->n * p->k * 4, d->device);
    rc = a && b ? CR_OK : CR_ENOMEM;
    if (rc >= 0) {
      crk_fp8_numbers(d, (float *)a->data, (const uint8_t *)p->a.p, p->m * p->k);
      crk_fp8_numbers(d, (float *)b->data, (const uint8_t *)p->b.p, p->n * p->k);
      sums.fp8 = CRK_FP8_NONE;
      sums.a.p = a->data;
      sums.b.p = b->data;
      rc = crk_product_library(d, &sums);
      if (rc == CRK_NOT_TAKEN) rc = crk_product_plain(d, &sums);
    }
    if (a) cr__release(a);
    if (b) cr__release(b);
  }
  if (rc >= 0) rc = finish_scaled(d, p, (float *)y->data);
  cr__release(y);
  return rc;
}

/* ---- the choice between them ---- */

/* The candidates, under whose numbers the store remembers one. */
enum { OWN_WIDE, OWN_NARROW, LIBRARY, CANDIDATES };

static int run_candidate(void *arg, int i) {
  crk_product_job *j = (crk_product_job *)arg;
  if (i == LIBRARY) {
    int rc = scaled(j->d, &j->p);
    return rc == CRK_NOT_TAKEN ? (int)CR_EUNSUPPORTED : rc;
  }
  return crk_fp8_gemm(j->d, &j->p, i == OWN_NARROW ? CRK_FP8_NARROW : CRK_FP8_WIDE);
}

static void key_text(const crk_device *d, const crk_product *p, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu codes 1 %s%s %lldx%lldx%lld bias %d residual %d in place %d",
           cublasLtGetVersion(), cr_dtype_name(p->dtype), d->fp8_fast ? " fast" : "",
           (long long)p->m, (long long)p->k, (long long)p->n, p->bias != NULL,
           p->residual.p != NULL, p->residual.p == p->out.p);
}

/* Unmeasured: the narrow tiles where the wide ones leave half of the card idle. */
static int unmeasured(const crk_device *d, const crk_product *p) {
  return crk_ceil_div(p->m, 128) * crk_ceil_div(p->n, 160) * 2 <= d->multiprocessors ? OWN_NARROW
                                                                                     : OWN_WIDE;
}

static int choose(crk_device *d, const crk_product *p) {
  static const int of_switch[] = {LIBRARY, OWN_WIDE, OWN_NARROW};
  int forced = crk_switch_value(CRK_SWITCH_FP8_OWN);
  if (forced >= 0) return of_switch[forced];
  if (!d->search) return unmeasured(d, p);
  char text[CRK_ALGORITHM_KEY + 1];
  key_text(d, p, text);
  int i = crk_product_autotune(d, p, text, CANDIDATES, LIBRARY, run_candidate);
  return i < 0 ? unmeasured(d, p) : i;
}

/* In one kernel of our own or by the library; CRK_NOT_TAKEN if neither has one. Steps that the
 * card's options want apart are left to the library. */
static int on_hopper(crk_device *d, const crk_product *p) {
  bool together = crk_fused_steps(d, CRK_FUSE_LINEAR, p->bias, false, p->residual.p != NULL) == 3;
  if (!together || !crk_fp8_gemm_takes(d, p)) return scaled(d, p);
  int i = choose(d, p);
  if (d->fault[0]) return CR_EDEVICE;
  if (i == LIBRARY) return scaled(d, p);
  crk_product_job j = {d, *p};
  return run_candidate(&j, i);
}

typedef struct made { /* on the way, freed at the end: what reads them is queued by then */
  cr_tensor bias, residual, out;
} made;

static int run(crk_device *d, cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
               const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
               const cr_tensor *residual, int32_t act, made *t) {
  int32_t dtype = out->dtype;
  if (bias && !(bias = cr__dense(bias, dtype, &t->bias))) return cr__last_code();
  if (residual && !(residual = cr__dense(residual, dtype, &t->residual))) return cr__last_code();
  cr_tensor *to = out;
  if (!cr_is_contiguous(out)) {
    CR_TRY(cr_empty(&t->out, out->rank, out->shape, dtype, d->device));
    to = &t->out;
  }
  crk_product p = {};
  p.name = "quant_linear";
  p.dtype = dtype;
  p.fp8 = CRK_FP8_SCALED;
  p.m = cr_numel(x_scale), p.n = weight->shape[0], p.k = weight->shape[1];
  p.batch = 1;
  p.a = (crk_matrix){crk_ptr(x), p.k, 1, 0};
  p.b = (crk_matrix){crk_ptr(weight), 1, p.k, 0};
  p.out = (crk_matrix){crk_ptr(to), p.n, 1, 0};
  if (residual) p.residual = (crk_matrix){crk_ptr(residual), p.n, 1, 0};
  p.bias = bias ? crk_ptr(bias) : NULL;
  p.a_scale = (const float *)crk_ptr(x_scale);
  p.b_scale = (const float *)crk_ptr(weight_scale);
  p.act = act;
  int rc = on_hopper(d, &p);
  if (rc == CRK_NOT_TAKEN) rc = unscaled(d, &p);
  return rc >= 0 && to != out ? cr_copy(out, to) : rc;
}

int crk_fp8_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                   const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                   const cr_tensor *residual, int32_t act) {
  CRK_DEVICE(d, "quant_linear", x);
  CR_TRY(crk_fp8_only("quant_linear", x, x_scale && weight_scale->rank == 1, NULL));
  if (d->major * 10 + d->minor < FP8_CAPABILITY)
    return cr__fail(CR_EUNSUPPORTED,
                    "quant_linear: %s (capability %d.%d) has no 8-bit floating point; cards from "
                    "capability 8.9 on have (RTX 40 series, H100)",
                    d->name, d->major, d->minor);
  made t = {};
  int rc = run(d, out, x, x_scale, weight, weight_scale, bias, residual, act, &t);
  for (cr_tensor *x : {&t.bias, &t.residual, &t.out}) cr_free(x);
  return rc;
}
