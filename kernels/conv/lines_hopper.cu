/* 3x3 convolutions by the kernels of lines_hopper.h: which they take, and their launch.
 *
 * There are three tiles: 64 results of at most 64 channels; 32 results of at most 160 channels; and
 * 32 results of at most 192 channels, with fewer stages. More than 32 results of more than 64
 * channels take two columns of tiles. On an H200, 64 to 64 channels at 1080p run at 630 TFLOP/s,
 * including the activation; cuDNN's kernel and a pass for the activation run at 310. */
#include "conv/conv.h"
#include "conv/lines_hopper.h"
#include "device/switches.h"

namespace {

/* OUT, CHUNK, CHUNKS, GROUPS, STAGES */
typedef conv_lines::tile<64, 64, 1, 2, 5> wide;
typedef conv_lines::tile<32, 32, 5, 2, 6> narrow;
typedef conv_lines::tile<32, 32, 6, 2, 4> deep;

enum { MOST_RESULTS = 64, MOST_CHANNELS = deep::CHUNK * deep::CHUNKS };
/* The fewest lines that a block should have; it reads two more. Measured beside cuDNN. */
enum { LEAST_LINES = 4 };

/* Whether the channels of a pixel are dense, and the other strides suit TMA. */
bool strided(const cr_tensor *t, int32_t dtype) {
  return !t ||
         (t->dtype == dtype && t->stride[3] == 1 && crk_aligned(crk_ptr(t), 3, t->stride, 2, 16) &&
          t->stride[0] > 0 && t->stride[1] > 0 && t->stride[2] > 0);
}

/* The tensor map of t [N H W C]. */
bool describe(CUtensorMap *map, const cr_tensor *t, const int32_t (&box)[4]) {
  const int64_t size[4] = {t->shape[3], t->shape[2], t->shape[1], t->shape[0]};
  const int64_t step[3] = {t->stride[2], t->stride[1], t->stride[0]};
  return hopper::make_tensor_map_4d(map, t->dtype, crk_ptr(t), size, step, box);
}

template <typename T, typename C> int launch(const crk_conv *c) {
  auto kernel = conv_lines::kernel<T, C>;
  crk_device *d = c->d;
  const int32_t *x = c->x->shape, *out = c->out->shape;
  conv_lines::sizes s = {};
  s.o = out[3];
  s.tall = out[1];
  s.strips = (int)crk_ceil_div(out[2], C::WIDE);
  s.lines = (int64_t)out[0] * out[1] * s.strips;
  s.chunks = (int)crk_ceil_div(x[3], C::CHUNK);
  s.left = c->o->pad[2], s.top = c->o->pad[0];
  s.relu = c->o->act == CR_ACT_RELU;
  s.residual = c->residual != NULL;
  int64_t columns = crk_ceil_div(s.o, C::OUT), blocks = d->multiprocessors / columns;
  s.share = crk_ceil_div(s.lines, blocks);

  CUtensorMap x_map, w_map, out_map, residual_map;
  /* The weight is seen as [dy O dx C]: a TMA tile has the results of one dy and dx. */
  const int64_t channels = x[3], w_size[4] = {channels, 3, s.o, 3};
  const int64_t w_step[3] = {channels, 9 * channels, 3 * channels};
  const int32_t x_box[4] = {C::CHUNK, C::WIDE + 2, 1, 1}, w_box[4] = {C::CHUNK, 1, C::OUT, 1};
  const int32_t out_box[4] = {32, 64, 1, 1};
  if (!describe(&x_map, c->x, x_box) ||
      !hopper::make_tensor_map_4d(&w_map, c->x->dtype, crk_ptr(c->weight), w_size, w_step, w_box) ||
      !describe(&out_map, c->out, out_box) ||
      !describe(&residual_map, s.residual ? c->residual : c->out, out_box))
    return CR_EUNSUPPORTED;
  CRK_TRY("conv2d", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  dim3 grid((unsigned)crk_ceil_div(s.lines, s.share), (unsigned)columns);
  kernel<<<grid, C::THREADS, C::BYTES, d->stream>>>(x_map, w_map, out_map, residual_map,
                                                    crk_conv_data<T>(c->bias),
                                                    crk_conv_data<T>(c->slope), s);
  return crk_launched("conv2d", d);
}

template <typename T> int run(const crk_conv *c) {
  int32_t channels = c->x->shape[3], results = c->out->shape[3];
  if (results > 32 && channels <= wide::CHUNK) return launch<T, wide>(c);
  return channels <= narrow::CHUNK * narrow::CHUNKS ? launch<T, narrow>(c) : launch<T, deep>(c);
}

bool takes(const crk_conv *c) {
  const int32_t *out = c->out->shape, dtype = c->x->dtype, act = c->o->act;
  int32_t channels = c->x->shape[3];
  if (!crk_conv_is_dense_3x3(c) || channels < 16 || channels > MOST_CHANNELS || channels % 8 ||
      out[3] < 16 || out[3] > MOST_RESULTS || out[3] % 8)
    return false;
  if (act != CR_ACT_NONE && act != CR_ACT_RELU && act != CR_ACT_PRELU) return false;
  /* Every block needs enough lines, and most strips should be full. */
  int64_t strips = crk_ceil_div(out[2], wide::WIDE), lines = strips * out[0] * out[1];
  if (lines < (int64_t)LEAST_LINES * c->d->multiprocessors ||
      out[2] * 10ll < strips * wide::WIDE * 7)
    return false;
  /* TMA coordinates are ints, and the padding makes those of x negative. */
  for (int i = 0; i < 4; i++)
    if (c->o->pad[i] > 1 << 20) return false;
  if (!strided(c->x, dtype) || !strided(c->out, dtype) || !strided(c->residual, dtype) ||
      (uintptr_t)crk_ptr(c->weight) % 16)
    return false;
  return hopper::compiled<conv_lines::kernel<__half, wide>>(c->d) && hopper::tensor_map_encoder() &&
         crk_switch_value(CRK_SWITCH_CONV_HOPPER) != 0;
}

} // namespace

int crk_conv_lines(const crk_conv *c) {
  if (!takes(c)) return CR_EUNSUPPORTED;
  return c->x->dtype == CR_F16 ? run<__half>(c) : run<__nv_bfloat16>(c);
}
