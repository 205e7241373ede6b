/* Convolutions with quantized weights: quant_conv2d and quant_upsample_conv2d of the table.
 *
 * int8: on a Hopper, 3x3 windows use the kernels of hopper.cu, with the tile that the search finds
 * fastest; those with few positions and those with strides may be GEMMs of gathered windows
 * (im2col). Elsewhere the kernel for all cards is used (device/implicit_gemm_int8.h). cuDNN's own
 * were measured on an H200: they are slower, but for 512 and 1280 channels, where they are as fast,
 * and each is compiled at run time. int4 is expanded into temporary memory for the convolution of
 * x's dtype. */
#include <stdio.h>
#include <string.h>

#include "conv/conv.h"
#include "device/algorithms.h"
#include "device/codes.h"
#include "device/implicit_gemm_int8.h"
#include "device/switches.h"

/* rows[position][tap][c] = what the window at a position of out sees; zeros outside (im2col). 16
 * codes a thread, neighbours in a warp. */
__global__ void __launch_bounds__(256)
    gather_kernel(uint4 *rows, const uint4 *x, int64_t total, int32_t pieces, int32_t h, int32_t w,
                  int32_t oh, int32_t ow, int32_t kh, int32_t kw, cr_conv o) {
  int64_t i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= total) return;
  int64_t at = i / pieces, n = at / (kh * kw);
  int32_t piece = (int32_t)(i - at * pieces), tap = (int32_t)(at - n * (kh * kw));
  const crk_position p = crk_position_of(n, oh, ow);
  int32_t y = p.y * o.stride_h + tap / kw * o.dilation_h - o.pad[0],
          x_at = p.x * o.stride_w + tap % kw * o.dilation_w - o.pad[2];
  bool there = y >= 0 && y < h && x_at >= 0 && x_at < w;
  rows[i] = there ? x[((p.n * h + y) * w + x_at) * pieces + piece] : make_uint4(0, 0, 0, 0);
}

enum { GATHERED = CRK_CONV_HOPPER_TILES + 1 }; /* gathering, as the tile after those of hopper.cu */
enum { FEW_POSITIONS = 2048, MOST_GATHERED = 256 << 20 /* bytes */ };

/* Whether the windows can be gathered for a GEMM of the Hopper kernels. */
static bool gathers(const crk_conv *c) {
  const int32_t *w = c->weight->shape;
  int64_t bytes = cr_numel(c->out) / c->out->shape[3] * w[1] * w[2] * w[3];
  return c->d->major == 9 && c->o->groups == 1 && w[3] % 16 == 0 && w[0] % 8 == 0 &&
         bytes <= MOST_GATHERED && cr_is_contiguous(c->out) &&
         (!c->residual || cr_is_contiguous(c->residual)) && (uintptr_t)crk_ptr(c->x) % 16 == 0;
}

static int by_gathering(const crk_conv *c) {
  const int32_t *x = c->x->shape, *w = c->weight->shape, *out = c->out->shape;
  int64_t n = cr_numel(c->out) / out[3];
  const int32_t shape[2] = {(int32_t)n, w[1] * w[2] * w[3]}, of_weight[2] = {w[0], shape[1]},
                of_out[2] = {shape[0], out[3]};
  cr_tensor rows = {}, weight = {}, result = {}, residual = {};
  int rc = cr_empty(&rows, 2, shape, CR_I8, c->x->device);
  if (rc >= 0) rc = cr_view(&weight, c->weight, 2, of_weight);
  if (rc >= 0) rc = cr_view(&result, c->out, 2, of_out);
  if (rc >= 0 && c->residual) rc = cr_view(&residual, c->residual, 2, of_out);
  if (rc >= 0) {
    int64_t total = n * shape[1] / 16;
    gather_kernel<<<(unsigned)crk_ceil_div(total, 256), 256, 0, c->d->stream>>>(
        (uint4 *)crk_ptr(&rows), (const uint4 *)crk_ptr(c->x), total, w[3] / 16, x[1], x[2], out[1],
        out[2], w[1], w[2], *c->o);
    rc = crk_launched("quant_conv2d", c->d);
  }
  if (rc >= 0)
    rc = cr_quant_linear(&result, &rows, NULL, &weight, c->scale, c->bias,
                         c->residual ? &residual : NULL, c->o->act, c->out->dtype);
  cr_tensor *const made[] = {&rows, &weight, &result, &residual};
  for (cr_tensor *t : made) cr_free(t);
  return rc;
}

/* The candidates of the search: the tiles of hopper.cu, and gathering. */
static int run_tile(void *arg, int i) {
  const crk_conv *c = (const crk_conv *)arg;
  return i + 1 == GATHERED ? by_gathering(c) : crk_conv_hopper(c, i + 1);
}

/* The fastest tile, or a guess where it may not be timed: tiles of 160 where they divide the
 * results, and of half the pixels where larger ones would leave most of the card idle. */
static int tile_of(const crk_conv *c) {
  const int32_t *x = c->x->shape, *w = c->weight->shape, *out = c->out->shape;
  int forced = crk_switch_value(CRK_SWITCH_CONV_HOPPER);
  if (forced > 0) return forced;
  int64_t pixels = (int64_t)x[0] * x[1] * x[2];
  int guess = out[3] % 160                                                         ? 1
              : pixels / 256 * crk_ceil_div(w[0], 160) < 2 * c->d->multiprocessors ? 3
                                                                                   : 2;
  if (!c->d->search) return guess;
  char key[CRK_ALGORITHM_KEY + 1];
  snprintf(key, sizeof key, "conv2d 2 int8 %s %d %d %d %d window %d results %d residual %d bias %d",
           cr_dtype_name(c->out->dtype), x[0], x[1], x[2], x[3], w[1], w[0], c->residual != NULL,
           c->bias != NULL);
  int32_t best;
  bool few = w[1] == 3 && (int64_t)out[0] * out[1] * out[2] <= FEW_POSITIONS && gathers(c);
  int candidates = few ? (int)GATHERED : (int)CRK_CONV_HOPPER_TILES;
  if (crk_algorithm_find(c->d, key, &best, sizeof best) && best >= 1 && best <= candidates)
    return best;
  if (!crk_may_search(c->d) || (c->residual && c->residual->storage == c->out->storage))
    return guess;
  if (few && by_gathering(c) < 0) return guess; /* its GEMM's own search is done then */
  best = crk_fastest("conv2d", c->d, candidates, run_tile, (void *)c, 25);
  if (best < 0) return guess;
  best++;
  crk_algorithm_remember(c->d, key, &best, sizeof best);
  return best;
}

template <typename T> static int launch_general(const crk_conv *c) {
  crk_implicit_gemm_int8 p = {};
  const int32_t *x = c->x->shape, *w = c->weight->shape, *out = c->out->shape;
  const cr_conv *o = c->o;
  p.x = (const int8_t *)crk_ptr(c->x), p.w = (const int8_t *)crk_ptr(c->weight);
  p.scale = crk_conv_data<float>(c->scale);
  p.bias = crk_conv_data<T>(c->bias), p.residual = crk_conv_data<T>(c->residual);
  p.out = crk_ptr(c->out);
  crk_conv_strides(c, NULL, p.so, p.sr);
  p.h = x[1], p.w_ = x[2], p.c = w[3];
  p.oh = out[1], p.ow = out[2], p.o = w[0] / o->groups;
  p.positions = (int64_t)out[0] * out[1] * out[2];
  p.groups = o->groups, p.kh = w[1], p.kw = w[2], p.top = o->pad[0], p.left = o->pad[2];
  p.stride_h = o->stride_h, p.stride_w = o->stride_w;
  p.dilation_h = o->dilation_h, p.dilation_w = o->dilation_w, p.act = o->act;
  return implicit_gemm_int8::launch<T>("quant_conv2d", c->d, &p);
}

static int general(const crk_conv *c) {
  CRK_FLOAT_TYPES("quant_conv2d", c->out->dtype, return launch_general<T>(c));
  return CR_OK;
}

/* The convolution by hopper.cu, and in one more pass what that leaves: an activation, or a residual
 * of any strides. */
static int by_hopper(const crk_conv *c) {
  crk_conv first = *c, rest = *c;
  cr_conv plain = *c->o;
  bool act = plain.act != CR_ACT_NONE;
  bool apart = act || (c->residual && !cr_is_contiguous(c->residual));
  plain.act = CR_ACT_NONE;
  first.o = &plain;
  if (apart) first.residual = NULL;
  if (apart && c->residual && c->residual->storage == c->out->storage) return CR_EUNSUPPORTED;
  if (crk_switch_value(CRK_SWITCH_CONV_HOPPER) == 0 || !crk_conv_hopper_takes(&first, 1))
    return CR_EUNSUPPORTED;
  int tile = tile_of(&first);
  if (c->d->fault[0]) return CR_EDEVICE;
  CR_TRY(run_tile(&first, tile - 1));
  rest.bias = NULL;
  return apart ? crk_conv_epilogue(&rest, c->out) : CR_OK;
}

static int by_int4(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *weight_scale, const cr_tensor *bias, const cr_tensor *residual,
                   const cr_conv *options) {
  cr_tensor numbers = {}, y = {};
  bool same = out->dtype == x->dtype;
  int rc = cr_dequantize(&numbers, weight, weight_scale, NULL, x->dtype);
  if (rc >= 0) rc = cr_conv2d(same ? out : &y, x, &numbers, bias, residual, NULL, options);
  if (rc >= 0 && !same) rc = cr_copy(out, &y);
  cr_free(&numbers);
  cr_free(&y);
  return rc;
}

/* Converts bias and residual to out's dtype, then runs one of the two kernels; `doubled`: only the
 * first one can do it. */
static int by_int8(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *weight_scale, const cr_tensor *bias, const cr_tensor *residual,
                   const cr_conv *options, bool doubled) {
  CRK_DEVICE(d, "quant_conv2d", x);
  cr_tensor temp[2] = {};
  int rc = CR_OK;
  if (bias && !(bias = cr__dense(bias, out->dtype, &temp[0]))) rc = cr__last_code();
  if (rc >= 0 && residual && residual->dtype != out->dtype &&
      !(residual = cr__dense(residual, out->dtype, &temp[1])))
    rc = cr__last_code();
  crk_conv c = {d, out, x, weight, bias, residual, NULL, options, weight_scale};
  if (rc >= 0) rc = by_hopper(&c);
  if (rc == CR_EUNSUPPORTED && !doubled)
    rc = crk_switch_value(CRK_SWITCH_CONV_HOPPER) != 0 && gathers(&c) ? by_gathering(&c)
                                                                      : general(&c);
  for (int i = 0; i < 2; i++) cr_free(&temp[i]);
  return rc;
}

static int quant_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *weight_scale, const cr_tensor *bias,
                        const cr_tensor *residual, const cr_conv *options) {
  if (crk_is_int4(weight, weight_scale))
    return by_int4(out, x, weight, weight_scale, bias, residual, options);
  if (weight->dtype == CR_U8)
    return cr__fail(
        CR_EUNSUPPORTED,
        "quant_conv2d: there are no convolutions in 8-bit floating point on a card; quantize the "
        "weight to int8 or int4");
  return by_int8(out, x, weight, weight_scale, bias, residual, options, false);
}

static int quant_upsample_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                                 const cr_tensor *weight_scale, const cr_tensor *bias) {
  cr_conv o = {};
  o.stride_h = o.stride_w = o.dilation_h = o.dilation_w = o.groups = 1;
  for (int i = 0; i < 4; i++) o.pad[i] = 1;
  if (weight->dtype != CR_I8) return CR_EUNSUPPORTED;
  return by_int8(out, x, weight, weight_scale, bias, NULL, &o, true);
}

void crk_fill_quant_conv(cr__backend *b) {
  b->quant_conv2d = quant_conv2d;
  b->quant_upsample_conv2d = quant_upsample_conv2d;
}
