/* 3x3 convolutions by the kernels of implicit_gemm_hopper.h: which sizes they take, and their
 * launch.
 *
 * The tiles (1 to 3, as the search and CR_CONV_HOPPER count them) have 256 pixels by 128 or 160
 * results, and 128 by 160. cudnn.cu chooses between them and the library. */
#include "conv/conv.h"
#include "conv/implicit_gemm_hopper.h"

namespace {

/* M64, WIDE, PIXEL_STAGES, WEIGHT_STAGES, OUTS */
typedef conv_hopper::tile<2, 128, 2, 5, 8> high_128;
typedef conv_hopper::tile<2, 160, 2, 5, 5> high_160;
typedef conv_hopper::tile<1, 160, 3, 6, 5> low_160;

/* Boxes of a dense tensor, `size` and `box` fastest first. */
bool describe(CUtensorMap *map, int32_t dtype, void *p, const int64_t (&size)[4],
              const int32_t (&box)[4]) {
  const int64_t step[3] = {size[0], size[0] * size[1], size[0] * size[1] * size[2]};
  return hopper::describe_boxes_4d(map, dtype, p, size, step, box);
}

template <typename T, typename C> int launch(const crk_conv *c) {
  auto kernel = conv_hopper::kernel<T, C>;
  crk_device *d = c->d;
  const int32_t *x = c->x->shape, *out = c->out->shape;
  conv_hopper::sizes s = {};
  s.o = out[3];
  s.left = c->o->pad[2], s.top = c->o->pad[0];
  s.steps = 3 * (int)crk_ceil_div(x[3], 64);
  s.columns = (int)crk_ceil_div(s.o, C::WIDE);
  s.residual = c->residual != NULL;
  /* Patches of 16 pixels across and several lines, or of 8 x 8 in several pictures: what leaves
   * less over. */
  const int units = 2 * C::M64;
  int64_t high = crk_ceil_div(out[2], 16) * crk_ceil_div(out[1], 4 * units) * out[0];
  int64_t deep = crk_ceil_div(out[2], 8) * crk_ceil_div(out[1], 8) * crk_ceil_div(out[0], units);
  if (deep < high) {
    s.wide = 8, s.tall = 8, s.deep = units, s.unit = 80 * 128, s.unit_deep = 1;
  } else {
    s.wide = 16, s.tall = 4 * units, s.deep = 1, s.unit = 64 * 128, s.unit_tall = 4;
  }
  s.line = s.wide * 128;
  s.pixel_bytes = s.line * (s.tall + 2) * s.deep;
  s.across = (int)crk_ceil_div(out[2], s.wide);
  s.down = (int)crk_ceil_div(out[1], s.tall);
  int64_t tiles = (deep < high ? deep : high) * s.columns;
  if (tiles > INT32_MAX / 2) return CR_EUNSUPPORTED;
  s.tiles = (int)tiles;

  CUtensorMap x_map, w_map, out_map, residual_map;
  const int64_t x_size[4] = {x[3], x[2], x[1], x[0]}, w_size[4] = {x[3], 3, 3, s.o};
  const int64_t out_size[4] = {s.o, out[2], out[1], out[0]};
  const int32_t x_box[4] = {64, s.wide, s.tall + 2, s.deep}, w_box[4] = {64, 1, 1, C::WIDE};
  const int32_t out_box[4] = {32, s.wide, 64 / s.wide, 1};
  if (!describe(&x_map, c->x->dtype, crk_ptr(c->x), x_size, x_box) ||
      !describe(&w_map, c->x->dtype, crk_ptr(c->weight), w_size, w_box) ||
      !describe(&out_map, c->x->dtype, crk_ptr(c->out), out_size, out_box) ||
      !describe(&residual_map, c->x->dtype, crk_ptr(s.residual ? c->residual : c->out), out_size,
                out_box))
    return CR_EUNSUPPORTED;
  CRK_TRY("conv2d", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  unsigned grid = (unsigned)(s.tiles < d->multiprocessors ? s.tiles : d->multiprocessors);
  kernel<<<grid, C::THREADS, C::BYTES, d->stream>>>(
      x_map, w_map, out_map, residual_map, c->bias ? (const T *)crk_ptr(c->bias) : NULL, s);
  return crk_launched("conv2d", d);
}

template <typename T> int run_tile(const crk_conv *c, int32_t tile) {
  switch (tile) {
  case 1:
    return launch<T, high_128>(c);
  case 2:
    return launch<T, high_160>(c);
  default:
    return launch<T, low_160>(c);
  }
}

bool dense(const cr_tensor *t, int32_t dtype) {
  return !t || (t->dtype == dtype && cr_is_contiguous(t) && (uintptr_t)crk_ptr(t) % 16 == 0);
}

} // namespace

bool crk_conv_hopper_takes(const crk_conv *c, int64_t tile) {
  const int32_t *w = c->weight->shape, dtype = c->x->dtype;
  if (tile < 1 || tile > CRK_CONV_HOPPER_TILES || !crk_conv_is_dense_3x3(c)) return false;
  if (w[3] < 64 || w[3] % 8 || w[0] < 64 || w[0] % 8 || cr_numel(c->out) == 0) return false;
  /* Places of a bulk copy are ints, and those of x may begin before it by a padding. */
  for (int i = 0; i < 4; i++)
    if (c->o->pad[i] > 1 << 20) return false;
  if (!dense(c->x, dtype) || !dense(c->weight, dtype) || !dense(c->out, dtype) ||
      !dense(c->residual, dtype) || (c->bias && c->bias->dtype != dtype))
    return false;
  static const bool compiled = hopper::compiled(conv_hopper::kernel<__half, high_128>);
  return compiled && hopper::encoder();
}

int crk_conv_hopper(const crk_conv *c, int32_t tile) {
  return c->x->dtype == CR_F16 ? run_tile<__half>(c, tile) : run_tile<__nv_bfloat16>(c, tile);
}
