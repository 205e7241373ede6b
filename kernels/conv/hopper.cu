/* 3x3 convolutions, and those of a doubled image of int8 codes, by the kernels of
 * implicit_gemm_hopper.h: which sizes they take, and their launch.
 *
 * The tiles (1 to 3, as the search and CR_CONV_HOPPER number them) are 256 pixels by 128 or 160
 * results, and 128 by 160. cudnn.cu chooses between them and the library, and quant.cu among those
 * for codes. */
#include "conv/conv.h"
#include "conv/implicit_gemm_hopper.h"

namespace {

/* M64, BLK_N, PIXEL_STAGES, WEIGHT_STAGES, OUTS, WINDOW */
template <int WINDOW> using high_128 = conv_hopper::tile<2, 128, 2, 5, 8, WINDOW>;
template <int WINDOW> using high_160 = conv_hopper::tile<2, 160, 2, 5, 5, WINDOW>;
template <int WINDOW> using low_160 = conv_hopper::tile<1, 160, 3, 6, 5, WINDOW>;

/* The tensor map of a dense tensor; `size` and `box` are fastest first. */
bool describe(CUtensorMap *map, int32_t dtype, void *p, const int64_t (&size)[4],
              const int32_t (&box)[4]) {
  const int64_t step[3] = {size[0], size[0] * size[1], size[0] * size[1] * size[2]};
  return hopper::make_tensor_map_4d(map, dtype, p, size, step, box);
}

template <typename A, typename T, typename C> int launch(const crk_conv *c) {
  auto kernel = conv_hopper::kernel<A, T, C>;
  const int inner = 128 / sizeof(A), border = C::WINDOW - 1;
  crk_device *d = c->d;
  const int phases = C::PHASES,
            way = phases > 1 ? 2 : 1; /* the step from a result to its neighbour */
  const int32_t *x = c->x->shape, *given = c->out->shape;
  const int32_t out[4] = {given[0], given[1] / way, given[2] / way, given[3]}; /* of one phase */
  conv_hopper::sizes s = {};
  s.c = x[3], s.o = out[3];
  s.left = c->o->pad[2], s.top = c->o->pad[0];
  s.steps = C::WINDOW * (int)crk_ceil_div(x[3], inner);
  s.columns = phases * (int)crk_ceil_div(s.o, C::BLK_N);
  s.residual = c->residual != NULL;
  /* Patches are 16 pixels across and several lines, or 8 x 8 in several images: whichever leaves
   * less unused. */
  const int units = 2 * C::M64;
  int64_t high = crk_ceil_div(out[2], 16) * crk_ceil_div(out[1], 4 * units) * out[0];
  int64_t deep = crk_ceil_div(out[2], 8) * crk_ceil_div(out[1], 8) * crk_ceil_div(out[0], units);
  if (deep < high) {
    s.wide = 8, s.tall = 8, s.deep = units, s.unit = (8 + border) * 8 * 128, s.unit_deep = 1;
  } else {
    s.wide = 16, s.tall = 4 * units, s.deep = 1, s.unit = 64 * 128, s.unit_tall = 4;
  }
  s.line = s.wide * 128;
  s.pixel_bytes = s.line * (s.tall + border) * s.deep;
  s.across = (int)crk_ceil_div(out[2], s.wide);
  s.down = (int)crk_ceil_div(out[1], s.tall);
  int64_t tiles = (deep < high ? deep : high) * s.columns;
  if (tiles > INT32_MAX / 2) return CR_EUNSUPPORTED;
  s.tiles = (int)tiles;

  CUtensorMap x_map, w_map, residual_map;
  conv_hopper::results<C::PHASES> out_maps;
  const int64_t x_size[4] = {x[3], x[2], x[1], x[0]},
                w_size[4] = {x[3], C::WINDOW, C::WINDOW, (int64_t)phases * s.o};
  const int64_t out_size[4] = {s.o, out[2], out[1], out[0]};
  const int64_t line = (int64_t)given[2] * s.o,
                out_step[3] = {(int64_t)way * s.o, way * line, given[1] * line};
  const int32_t x_box[4] = {inner, s.wide, s.tall + border, s.deep},
                w_box[4] = {inner, 1, 1, C::BLK_N};
  const int32_t out_box[4] = {32, s.wide, 64 / s.wide, 1};
  bool ok = describe(&x_map, c->x->dtype, crk_ptr(c->x), x_size, x_box) &&
            describe(&w_map, c->x->dtype, crk_ptr(c->weight), w_size, w_box);
  for (int i = 0; i < phases && ok; i++)
    ok = hopper::make_tensor_map_4d(&out_maps.of[i], c->out->dtype,
                                    (T *)crk_ptr(c->out) + i / 2 * line + i % 2 * s.o, out_size,
                                    out_step, out_box);
  residual_map = out_maps.of[0];
  if (ok && s.residual)
    ok = describe(&residual_map, c->out->dtype, crk_ptr(c->residual), out_size, out_box);
  if (!ok) return CR_EUNSUPPORTED;
  CRK_TRY("conv2d", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  unsigned grid = (unsigned)(s.tiles < d->multiprocessors ? s.tiles : d->multiprocessors);
  kernel<<<grid, C::THREADS, C::BYTES, d->stream>>>(x_map, w_map, out_maps, residual_map,
                                                    crk_conv_data<float>(c->scale),
                                                    crk_conv_data<T>(c->bias), s);
  return crk_launched("conv2d", d);
}

template <typename A, typename T, int WINDOW> int run_tile(const crk_conv *c, int32_t tile) {
  switch (tile) {
  case 1:
    return launch<A, T, high_128<WINDOW>>(c);
  case 2:
    return launch<A, T, high_160<WINDOW>>(c);
  default:
    return launch<A, T, low_160<WINDOW>>(c);
  }
}

template <typename T> int run_operands(const crk_conv *c, int32_t tile) {
  if (c->x->dtype != CR_I8) return run_tile<T, T, 3>(c, tile);
  return c->weight->shape[1] == 3 ? run_tile<int8_t, T, 3>(c, tile)
                                  : run_tile<int8_t, T, 2>(c, tile);
}

/* Whether it has a 3x3 window, stride and dilation 1 and one group, or (with codes) the 2x2 window
 * of a doubled image. */
bool has_window(const crk_conv *c) {
  const cr_conv *o = c->o;
  const int32_t *w = c->weight->shape, *x = c->x->shape, *out = c->out->shape;
  if (w[1] != w[2] || o->groups != 1 || o->stride_h != 1 || o->stride_w != 1 ||
      o->dilation_h != 1 || o->dilation_w != 1)
    return false;
  return w[1] == 3 || (w[1] == 2 && c->x->dtype == CR_I8 && !c->residual && w[0] == 4 * out[3] &&
                       out[1] == 2 * x[1] && out[2] == 2 * x[2]);
}

bool dense(const cr_tensor *t, int32_t dtype) {
  return !t || (t->dtype == dtype && cr_is_contiguous(t) && (uintptr_t)crk_ptr(t) % 16 == 0);
}

} // namespace

bool crk_conv_hopper_takes(const crk_conv *c, int64_t tile) {
  const int32_t *w = c->weight->shape, dtype = c->x->dtype, own = c->out->dtype;
  const bool codes = dtype == CR_I8;
  if (tile < 1 || tile > CRK_CONV_HOPPER_TILES || !has_window(c)) return false;
  if ((own != CR_F16 && own != CR_BF16) || (!codes && dtype != own)) return false;
  if (w[3] < 64 || w[3] % (codes ? 16 : 8) || c->out->shape[3] < 64 || c->out->shape[3] % 8 ||
      cr_numel(c->out) == 0)
    return false;
  /* TMA coordinates are ints, and those of x may begin before it by the padding. */
  for (int i = 0; i < 4; i++)
    if (c->o->pad[i] > 1 << 20) return false;
  if (!dense(c->x, dtype) || !dense(c->weight, dtype) || !dense(c->out, own) ||
      !dense(c->residual, own) || (c->bias && c->bias->dtype != own))
    return false;
  return hopper::compiled<conv_hopper::kernel<__half, __half, high_128<3>>>(c->d) &&
         hopper::tensor_map_encoder();
}

int crk_conv_hopper(const crk_conv *c, int32_t tile) {
  return c->out->dtype == CR_F16 ? run_operands<__half>(c, tile)
                                 : run_operands<__nv_bfloat16>(c, tile);
}
