/* 3x3 convolutions of images with few channels (a network's first layer: 3 to 128, 4 to 320).
 *
 * A library's tiles take 8 channels a tap or more, and reach a quarter of the speed at which the
 * result can be written. Here the taps of all channels side by side are the k of one GEMM: 9 C
 * numbers, padded to a multiple of 16, in the weight's order.
 *
 * Invariants: f16 or bf16; stride and dilation 1; one group; 1 to 5 channels; results a multiple of
 * 8. The results of a pixel are dense in out and residual, at multiples of 16 bytes. x may have any
 * strides, and residual may be out. */
#include "conv/conv.h"
#include "device/tensor_core.h"

/* A tile is WIDE x TALL positions of out in one image, and RESULTS of its channels; each of the
 * WARPS warps has ROWS rows of it. A tile writes 128 KiB of results and reads 7 KiB of weight; the
 * rest is negligible. */
enum { WIDE = 32, TALL = 16, WARPS = 8, ROWS = TALL / WARPS, THREADS = 32 * WARPS };
enum { RESULTS = 128, GROUP = 32, TAPS = 9, HALO_WIDE = WIDE + 2, HALO_TALL = TALL + 2 };

typedef struct few {
  int64_t sx[4], so[4], sr[4]; /* strides of x, out and residual */
  int32_t h, w, oh, ow, o, top, left, act;
  int32_t tiles_x, tiles_y;
} few;

/* Packs two numbers into a register of the mma's A operand. */
template <typename T> static __device__ __forceinline__ uint32_t two(T low, T high) {
  union {
    T v[2];
    uint32_t bits;
  } r;
  r.v[0] = low;
  r.v[1] = high;
  return r.bits;
}

/* Grid: x tiles (images slowest), y parts of RESULTS channels. The tile's pixels with a border of
 * one, and the rows of the weight, go to shared memory. A warp takes a row of WIDE positions as two
 * A operands, gathered from the pixels once, and computes the results in groups of 32: four B
 * operands of 8 columns, in such an order that a lane has 8 neighbouring results of a position, 16
 * bytes, and four lanes have 64 bytes. Rows of the weight are padded by 16 bytes, so that the 32
 * lanes' words of a B operand are in 32 banks. Bound by writing the result. */
template <typename T, int C>
__global__ void __launch_bounds__(THREADS, 2)
    conv_few_inputs_kernel(T *out, const T *x, const T *weight, const T *bias, const T *residual,
                           const T *slope, few p) {
  constexpr int K = TAPS * C, STEPS = (K + 15) / 16, PITCH = STEPS * 16 + 8, LINE = HALO_WIDE * C;
  __shared__ T pixels[HALO_TALL * LINE];
  __shared__ __align__(16) T rows[RESULTS * PITCH];
  int tile = blockIdx.x, tx = tile % p.tiles_x, ty = tile / p.tiles_x % p.tiles_y;
  int64_t n = tile / p.tiles_x / p.tiles_y;
  int first = blockIdx.y * RESULTS, count = min((int)RESULTS, p.o - first);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const T zero = crk_from<T>(0.0f);

  x += n * p.sx[0];
  for (int i = threadIdx.x; i < HALO_TALL * LINE; i += THREADS) {
    int y = ty * TALL - p.top + i / LINE, z = tx * WIDE - p.left + i % LINE / C, c = i % C;
    bool inside = y >= 0 && y < p.h && z >= 0 && z < p.w;
    pixels[i] = inside ? x[y * p.sx[1] + z * p.sx[2] + c * p.sx[3]] : zero;
  }
  /* Row 8 j + i of a group is the result that is column i of B operand j. */
  for (int i = threadIdx.x; i < RESULTS * STEPS * 16; i += THREADS) {
    int row = i / (STEPS * 16), k = i % (STEPS * 16), column = row % 8;
    int o = row / GROUP * GROUP + column / 2 * 8 + row % GROUP / 8 * 2 + column % 2;
    rows[row * PITCH + k] = k < K && o < count ? weight[(int64_t)(first + o) * K + k] : zero;
  }
  __syncthreads();

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    int y = warp * ROWS + r, oy = ty * TALL + y;
    uint32_t a[2][STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int k = s * 16 + half * 8 + t * 2, k1 = k + 1;
        int at = k / (3 * C) * LINE + k % (3 * C), at1 = k1 / (3 * C) * LINE + k1 % (3 * C);
#pragma unroll
        for (int i = 0; i < 4; i++) { /* positions g, g + 8, g + 16, g + 24 */
          const T *window = pixels + y * LINE + (g + i * 8) * C;
          T low = k < K ? window[at] : zero, high = k1 < K ? window[at1] : zero;
          a[i / 2][s][half * 2 + i % 2] = two(low, high);
        }
      }
    for (int group = 0; group < count; group += GROUP) {
      float sum[2][4][4] = {};
#pragma unroll
      for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const T *row = rows + (group + j * 8 + g) * PITCH + s * 16 + t * 2;
          uint32_t b0 = *(const uint32_t *)row, b1 = *(const uint32_t *)(row + 8);
#pragma unroll
          for (int m = 0; m < 2; m++) crk_mma<T>(sum[m][j], a[m][s], b0, b1);
        }
      int o = first + group + t * 8;
      if (oy >= p.oh || o >= p.o) continue;
      crk_pack<T, 8> add, turn, more, v;
      if (bias) add = *(const crk_pack<T, 8> *)(bias + o);
      if (slope) turn = *(const crk_pack<T, 8> *)(slope + o);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int ox = tx * WIDE + g + i * 8;
        if (ox >= p.ow) continue;
        if (residual)
          more =
              *(const crk_pack<T, 8> *)(residual + n * p.sr[0] + oy * p.sr[1] + ox * p.sr[2] + o);
#pragma unroll
        for (int e = 0; e < 8; e++) {
          float f = sum[i / 2][e / 2][i % 2 * 2 + e % 2];
          if (bias) f += crk_float(add.v[e]);
          f = crk_act(f, p.act, slope ? crk_float(turn.v[e]) : 0.0f);
          if (residual) f += crk_float(more.v[e]);
          v.v[e] = crk_from<T>(f);
        }
        *(crk_pack<T, 8> *)(out + n * p.so[0] + oy * p.so[1] + ox * p.so[2] + o) = v;
      }
    }
  }
}

template <typename T, int C> static void launch(const crk_conv *c, const few *p, dim3 grid) {
  conv_few_inputs_kernel<T, C><<<grid, THREADS, 0, c->d->stream>>>(
      (T *)crk_ptr(c->out), crk_conv_data<T>(c->x), crk_conv_data<T>(c->weight),
      crk_conv_data<T>(c->bias), crk_conv_data<T>(c->residual), crk_conv_data<T>(c->slope), *p);
}

template <typename T> static void launch_channels(const crk_conv *c, const few *p, dim3 grid) {
  switch (c->x->shape[3]) {
  case 1:
    return launch<T, 1>(c, p, grid);
  case 2:
    return launch<T, 2>(c, p, grid);
  case 3:
    return launch<T, 3>(c, p, grid);
  case 4:
    return launch<T, 4>(c, p, grid);
  default:
    return launch<T, 5>(c, p, grid);
  }
}

/* Whether the results of every pixel are dense and aligned to 16 bytes. */
static bool runs(const cr_tensor *t) {
  return !t || (t->stride[3] == 1 && crk_aligned(crk_ptr(t), 3, t->stride, 2, 16));
}

int crk_conv_few_inputs(const crk_conv *c) {
  const cr_tensor *x = c->x, *w = c->weight;
  few p = {};
  int64_t tiles = crk_conv_tiles(c, WIDE, TALL, &p.tiles_x, &p.tiles_y);
  if (!crk_conv_is_dense_3x3(c) || x->shape[3] < 1 || x->shape[3] > 5 || w->shape[0] % 8 ||
      tiles > INT32_MAX || crk_ceil_div(w->shape[0], RESULTS) > 65535 || !runs(c->out) ||
      !runs(c->residual))
    return CR_EUNSUPPORTED;
  crk_conv_sizes(c, &p);
  p.o = w->shape[0];
  dim3 grid((unsigned)tiles, (unsigned)crk_ceil_div(p.o, RESULTS));
  if (x->dtype == CR_F16)
    launch_channels<__half>(c, &p, grid);
  else
    launch_channels<__nv_bfloat16>(c, &p, grid);
  return crk_launched("conv2d", c->d);
}
