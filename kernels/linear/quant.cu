/* GEMMs of codes: quant_linear of the table.
 *
 * On a Hopper our own kernels do everything at once (gemm_hopper.h). For E4M3 so does the library,
 * which takes scales of rows and columns (as outer vectors), bias and residual. The search times
 * them and keeps the fastest for these sizes; without it, and in a recording of unknown sizes, ours
 * are used. CR_FP8_OWN=0 leaves E4M3 to the library, and 1 to 3 use our wide, narrow and ping-pong
 * tiles wherever they fit, for measurements.
 *
 * int8 on other cards, and of sizes that these do not take, uses the kernel for all cards
 * (device/implicit_gemm_int8.h). E4M3 on other cards: their libraries have no scales of rows, and
 * none takes a K that is not a multiple of 16. So the plain sums are computed in f32, by the
 * library or by f32 GEMMs of decoded numbers, and one pass of our own does the rest. int4 is
 * expanded into temporary memory for the GEMM of x's dtype. */
#include <initializer_list>
#include <stdio.h>

#include "device/algorithms.h"
#include "device/codes.h"
#include "device/implicit_gemm_int8.h"
#include "device/switches.h"
#include "linear/quant.h"

enum { FP8_CAPABILITY = 89 };

template <typename T> struct scaled_args {
  T *out;
  const float *y, *row_scale, *column_scale;
  const T *bias, *residual;
  int64_t packs, total; /* of a row; of all rows */
  int32_t act;
};

/* out = act(y * (row_scale column_scale) + bias) + residual; y is f32, and everything is dense [M
 * N]. N neighbouring numbers a thread, neighbours in a warp, so that whole sectors are accessed.
 * Memory-bound. */
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
  float own = p.row_scale ? p.row_scale[row] : 1.0f;
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

template <typename T> static void launch_scaled(crk_device *d, const crk_gemm *p, float *y) {
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

/* Launches it for p's dtype. */
static int finish_scaled(crk_device *d, const crk_gemm *p, float *y) {
  CRK_FLOAT_TYPES(p->name, p->dtype, launch_scaled<T>(d, p, y));
  return crk_launched(p->name, d);
}

/* The GEMM with the library's own scales; CRK_NOT_TAKEN where it has none for this one. */
static int scaled(crk_device *d, const crk_gemm *p) {
  if (d->major != 9 || p->dtype == CR_F32) return CRK_NOT_TAKEN;
  int steps = crk_fused_steps(d, CRK_FUSE_LINEAR, p->bias, p->act != CR_ACT_NONE, p->residual.p);
  for (;; steps = 0) {
    crk_gemm first, rest;
    crk_gemm_split(p, steps, &first, &rest);
    bool more = rest.bias || rest.act != CR_ACT_NONE || rest.residual.p;
    cr_storage *y = NULL;
    if (rest.residual.p == p->out.p) { /* which the GEMM would overwrite */
      y = cr__storage_new(p->m * p->n * cr_dtype_size(p->dtype), d->device);
      if (!y) return CR_ENOMEM;
      first.out.p = y->data;
      first.out.row_step = p->n;
    }
    int rc = crk_gemm_library(d, &first);
    if (rc == CR_OK && more) rc = crk_gemm_epilogue(d, &rest, &first.out);
    if (y) cr__release(y);
    if (rc != CRK_NOT_TAKEN || steps == 0) return rc;
  }
}

/* Plain sums, then everything else in one pass. */
static int unscaled(crk_device *d, const crk_gemm *p) {
  cr_storage *y = cr__storage_new(p->m * p->n * 4, d->device);
  if (!y) return CR_ENOMEM;
  crk_gemm sums = *p;
  sums.dtype = CR_F32;
  sums.fp8 = CRK_FP8_BARE;
  sums.out.p = y->data;
  sums.out.row_step = p->n;
  sums.bias = NULL;
  sums.residual.p = NULL;
  sums.act = CR_ACT_NONE;
  int rc = crk_gemm_library(d, &sums);
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
      rc = crk_gemm_library(d, &sums);
      if (rc == CRK_NOT_TAKEN) rc = crk_gemm_plain(d, &sums);
    }
    if (a) cr__release(a);
    if (b) cr__release(b);
  }
  if (rc >= 0) rc = finish_scaled(d, p, (float *)y->data);
  cr__release(y);
  return rc;
}

/* int8 by the kernel for all cards. */
template <typename T> static int launch_general(crk_device *d, const crk_gemm *p) {
  crk_implicit_gemm_int8 q = {};
  q.x = (const int8_t *)p->a.p, q.w = (const int8_t *)p->b.p;
  q.x_scale = p->a_scale, q.scale = p->b_scale;
  q.bias = p->bias, q.residual = p->residual.p, q.out = p->out.p;
  q.so[0] = p->out.row_step, q.so[3] = 1;
  q.sr[0] = p->residual.row_step, q.sr[3] = 1;
  q.positions = p->m;
  q.h = q.w_ = q.oh = q.ow = q.groups = q.kh = q.kw = 1;
  q.stride_h = q.stride_w = q.dilation_h = q.dilation_w = 1;
  q.c = (int32_t)p->k, q.o = (int32_t)p->n;
  q.act = p->act;
  return implicit_gemm_int8::launch<T>(p->name, d, &q);
}

static int general(crk_device *d, const crk_gemm *p) {
  CRK_FLOAT_TYPES(p->name, p->dtype, return launch_general<T>(d, p));
  return CR_OK;
}

/* ---- the choice between them ---- */

/* The candidates, whose numbers the store remembers: the tiles, then the library. */
enum { LIBRARY = CRK_TILE_PINGPONG + 1, CANDIDATES };

static int run_candidate(void *arg, int i) {
  crk_gemm_job *j = (crk_gemm_job *)arg;
  bool int8 = j->p.fp8 == CRK_INT8;
  if (i == LIBRARY) {
    int rc = int8 ? (int)CRK_NOT_TAKEN : scaled(j->d, &j->p);
    return rc == CRK_NOT_TAKEN ? (int)CR_EUNSUPPORTED : rc;
  }
  if (i == CRK_TILE_PINGPONG && !int8 && !j->d->fp8_fast) return CR_EUNSUPPORTED;
  return crk_gemm_quant(j->d, &j->p, i);
}

static void key_text(const crk_device *d, const crk_gemm *p, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu codes 2 %s %s%s %lldx%lldx%lld bias %d residual %d in place %d rows %d",
           cublasLtGetVersion(), p->fp8 == CRK_INT8 ? "int8" : "e4m3", cr_dtype_name(p->dtype),
           d->fp8_fast && p->fp8 != CRK_INT8 ? " fast" : "", (long long)p->m, (long long)p->k,
           (long long)p->n, p->bias != NULL, p->residual.p != NULL, p->residual.p == p->out.p,
           p->a_scale != NULL);
}

/* The choice without measurements: the narrow tile where the wide one would leave half of the card
 * idle. */
static int unmeasured(const crk_device *d, const crk_gemm *p) {
  return crk_ceil_div(p->m, 128) * crk_ceil_div(p->n, 160) * 2 <= d->multiprocessors
             ? CRK_TILE_NARROW
             : CRK_TILE_WIDE;
}

static int choose(crk_device *d, const crk_gemm *p) {
  static const int of_switch[] = {LIBRARY, CRK_TILE_WIDE, CRK_TILE_NARROW, CRK_TILE_PINGPONG};
  int forced = crk_switch_value(CRK_SWITCH_FP8_OWN);
  if (forced > 0 || (forced == 0 && p->fp8 != CRK_INT8)) return of_switch[forced];
  if (!d->search) return unmeasured(d, p);
  char text[CRK_ALGORITHM_KEY + 1];
  key_text(d, p, text);
  int i = crk_gemm_autotune(d, p, text, CANDIDATES, LIBRARY, run_candidate);
  return i < 0 ? unmeasured(d, p) : i;
}

/* The GEMM in one kernel of our own, or by the library; CRK_NOT_TAKEN if neither can do it. Steps
 * whose fusion is disabled are left to the library. */
static int on_hopper(crk_device *d, const crk_gemm *p) {
  bool together = crk_fused_steps(d, CRK_FUSE_LINEAR, p->bias, false, p->residual.p != NULL) == 3;
  if (!together || !crk_gemm_quant_takes(d, p)) return scaled(d, p);
  int i = choose(d, p);
  if (d->fault[0]) return CR_EDEVICE;
  if (i == LIBRARY) return scaled(d, p);
  crk_gemm_job j = {d, *p};
  return run_candidate(&j, i);
}

/* int8, with an activation in a pass after the fast kernels; these must not have overwritten the
 * residual then. */
static int by_int8(crk_device *d, const crk_gemm *p) {
  bool apart = p->act != CR_ACT_NONE;
  crk_gemm_job j = {d};
  crk_gemm rest;
  crk_gemm_split(p, apart ? 1 : 3, &j.p, &rest);
  if (!crk_gemm_quant_takes(d, &j.p) || (apart && p->residual.p == p->out.p)) return general(d, p);
  int i = choose(d, &j.p);
  if (d->fault[0]) return CR_EDEVICE;
  CR_TRY(run_candidate(&j, i));
  return apart ? crk_gemm_epilogue(d, &rest, &p->out) : CR_OK;
}

typedef struct made { /* temporary tensors, freed at the end: the work that reads them is queued by
                         then */
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
  crk_gemm p = {};
  p.name = "quant_linear";
  p.dtype = dtype;
  p.fp8 = weight->dtype == CR_I8 ? CRK_INT8 : CRK_FP8_SCALED;
  p.n = weight->shape[0], p.k = weight->shape[1], p.m = cr_numel(x) / p.k;
  p.batch = 1;
  p.a = (crk_matrix){crk_ptr(x), p.k, 1, 0};
  p.b = (crk_matrix){crk_ptr(weight), 1, p.k, 0};
  p.out = (crk_matrix){crk_ptr(to), p.n, 1, 0};
  if (residual) p.residual = (crk_matrix){crk_ptr(residual), p.n, 1, 0};
  p.bias = bias ? crk_ptr(bias) : NULL;
  p.a_scale = x_scale ? (const float *)crk_ptr(x_scale) : NULL;
  p.b_scale = (const float *)crk_ptr(weight_scale);
  p.act = act;
  int rc = p.fp8 == CRK_INT8 ? by_int8(d, &p) : on_hopper(d, &p);
  if (rc == CRK_NOT_TAKEN) rc = unscaled(d, &p);
  return rc >= 0 && to != out ? cr_copy(out, to) : rc;
}

/* An int4 weight, expanded to x's dtype. */
static int by_int4(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *weight_scale, const cr_tensor *bias, const cr_tensor *residual,
                   int32_t act) {
  cr_tensor numbers = {}, y = {};
  bool same = out->dtype == x->dtype;
  int rc = cr_dequantize(&numbers, weight, weight_scale, NULL, x->dtype);
  if (rc >= 0) rc = cr_linear(same ? out : &y, x, &numbers, bias, residual, act);
  if (rc >= 0 && !same) rc = cr_copy(out, &y);
  cr_free(&numbers);
  cr_free(&y);
  return rc;
}

static int check_fp8(const char *name, const crk_device *d, const cr_tensor *weight) {
  if (weight->dtype == CR_I8 || d->major * 10 + d->minor >= FP8_CAPABILITY) return CR_OK;
  return cr__fail(
      CR_EUNSUPPORTED,
      "%s: %s (capability %d.%d) has no 8-bit floating point; cards from capability 8.9 "
      "on have (RTX 40 series, H100)",
      name, d->name, d->major, d->minor);
}

static int quant_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                        const cr_tensor *weight, const cr_tensor *weight_scale,
                        const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  CRK_DEVICE(d, "quant_linear", x);
  if (crk_is_int4(weight, weight_scale))
    return by_int4(out, x, weight, weight_scale, bias, residual, act);
  CR_TRY(check_fp8("quant_linear", d, weight));
  made t = {};
  int rc = run(d, out, x, x_scale, weight, weight_scale, bias, residual, act, &t);
  for (cr_tensor *x : {&t.bias, &t.residual, &t.out}) cr_free(x);
  return rc;
}

void crk_fill_quant(cr__backend *b) { b->quant_linear = quant_linear; }
