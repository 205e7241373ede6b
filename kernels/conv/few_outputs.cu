/* 3x3 convolutions with few results a pixel (a network's last layer: 320 to 4, 128 to 3 channels).
 *
 * A library's tiles are 64 results wide or more, so most of their work would be padding; and as an
 * implicit GEMM each pixel is read nine times. Here the results are the 8 columns of an mma, and
 * each pixel is read once.
 *
 * Invariants: f16 or bf16; stride and dilation 1; one group; at most 8 results. The channels of a
 * pixel of x are dense, a multiple of 8, at multiples of 16 bytes. Out and residual may have any
 * strides, and residual may be out. */
#include "conv/conv.h"
#include "device/tensor_core.h"

/* A tile is SIDE x SIDE positions of out in one image, of which each of the block's WARPS warps
 * has ROWS rows. Channels are copied in chunks of CHUNK, STAGES of them in flight. */
enum { SIDE = 16, WARPS = 4, ROWS = SIDE / WARPS, THREADS = 32 * WARPS, CHUNK = 32, STAGES = 3 };
enum { HALO = SIDE + 2, PIXELS = HALO * HALO, COLUMNS = 8, TAPS = 9 };
enum { LINE = CHUNK * 2, STAGE = (PIXELS + TAPS * COLUMNS) * LINE }; /* bytes */

typedef struct few {
  int64_t sx[4], so[4], sr[4]; /* strides of x, out and residual */
  int32_t h, w, c, oh, ow, o, top, left, act;
  int32_t tiles_x, tiles_y;
} few;

/* The byte offset of 16-byte piece j of line p. A line is 64 bytes; the pieces are swizzled so that
 * pieces j of 8 neighbouring lines are in different banks. */
static __device__ __forceinline__ uint32_t piece(int p, int j) {
  return (uint32_t)(p * LINE + ((j ^ (p >> 1 & 3)) << 4));
}

/* Starts copying the chunk of channels from `first` on of a tile's pixels (with a border of one)
 * and of the weight. */
template <typename T>
static __device__ __forceinline__ void load_chunk(uint32_t stage, const T *x, const T *weight,
                                                  const few &p, int y0, int x0, int first) {
  for (int i = threadIdx.x; i < PIXELS * 4; i += THREADS) {
    int at = i >> 2, j = i & 3, y = y0 + at / HALO, z = x0 + at % HALO, c = first + j * 8;
    bool inside = y >= 0 && y < p.h && z >= 0 && z < p.w && c < p.c;
    crk_cp_async16(stage + piece(at, j), inside ? x + y * p.sx[1] + z * p.sx[2] + c : x, inside);
  }
  for (int i = threadIdx.x; i < TAPS * COLUMNS * 4; i += THREADS) {
    int at = i >> 2, j = i & 3, tap = at / COLUMNS, o = at % COLUMNS, c = first + j * 8;
    bool inside = o < p.o && c < p.c;
    crk_cp_async16(stage + piece(PIXELS + at, j),
                   inside ? weight + ((int64_t)o * TAPS + tap) * p.c + c : weight, inside);
  }
}

/* One block for each tile. For each chunk, a warp has the weight of all taps in registers and runs
 * over the ROWS + 2 rows of pixels that its rows of out need. 16 neighbouring pixels by 16 channels
 * are one A operand, which serves up to three rows of out before the next is loaded. So a pixel is
 * read from shared memory 3 (1 + 2 / ROWS) times instead of 9, about as fast as device memory
 * delivers it. */
template <typename T>
__global__ void __launch_bounds__(THREADS, 3)
    conv_few_outputs_kernel(T *out, const T *x, const T *weight, const T *bias, const T *residual,
                            const T *slope, few p) {
  extern __shared__ __align__(128) unsigned char shared[];
  uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
  int tile = blockIdx.x, tx = tile % p.tiles_x, ty = tile / p.tiles_x % p.tiles_y;
  int64_t n = tile / p.tiles_x / p.tiles_y;
  x += n * p.sx[0];
  int y0 = ty * SIDE - p.top, x0 = tx * SIDE - p.left;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = (p.c + CHUNK - 1) / CHUNK;

#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < chunks) load_chunk(base + i * STAGE, x, weight, p, y0, x0, i * CHUNK);
    asm volatile("cp.async.commit_group;");
  }
  float sum[ROWS][4] = {};
  for (int k = 0; k < chunks; k++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads(); /* chunk k has arrived, and all threads have read chunk k - 1 */
    int next = k + STAGES - 1;
    if (next < chunks) load_chunk(base + next % STAGES * STAGE, x, weight, p, y0, x0, next * CHUNK);
    asm volatile("cp.async.commit_group;");

    uint32_t stage = base + k % STAGES * STAGE;
    uint32_t b[TAPS][4]; /* 8 results by channels 0-7, 8-15, 16-23, 24-31 of the chunk */
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
      crk_ldmatrix(b[tap], stage + piece(PIXELS + tap * COLUMNS + lane % 8, lane / 8));
#pragma unroll
    for (int row = 0; row < ROWS + 2; row++)
#pragma unroll
      for (int kx = 0; kx < 3; kx++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          uint32_t a[4];
          crk_ldmatrix(
              a, stage + piece((warp * ROWS + row) * HALO + kx + lane % 16, half * 2 + lane / 16));
#pragma unroll
          for (int r = 0; r < ROWS; r++) {
            int ky = row - r;
            if (ky >= 0 && ky < 3)
              crk_mma<T>(sum[r], a, b[ky * 3 + kx][half * 2], b[ky * 3 + kx][half * 2 + 1]);
          }
        }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int oy = ty * SIDE + warp * ROWS + r, ox = tx * SIDE + lane / 4 + i / 2 * 8;
      int o = lane % 4 * 2 + i % 2;
      if (oy >= p.oh || ox >= p.ow || o >= p.o) continue;
      float v = sum[r][i];
      if (bias) v += crk_float(bias[o]);
      v = crk_act(v, p.act, slope ? crk_float(slope[o]) : 0.0f);
      if (residual)
        v += crk_float(residual[n * p.sr[0] + oy * p.sr[1] + ox * p.sr[2] + o * p.sr[3]]);
      out[n * p.so[0] + oy * p.so[1] + ox * p.so[2] + o * p.so[3]] = crk_from<T>(v);
    }
}

template <typename T> static int launch(const crk_conv *c, const few *p, int64_t tiles) {
  CRK_TRY("conv2d", c->d,
          cudaFuncSetAttribute(conv_few_outputs_kernel<T>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * STAGE));
  conv_few_outputs_kernel<T><<<(unsigned)tiles, THREADS, STAGES * STAGE, c->d->stream>>>(
      (T *)crk_ptr(c->out), crk_conv_data<T>(c->x), crk_conv_data<T>(c->weight),
      crk_conv_data<T>(c->bias), crk_conv_data<T>(c->residual), crk_conv_data<T>(c->slope), *p);
  return crk_launched("conv2d", c->d);
}

int crk_conv_few_outputs(const crk_conv *c) {
  const cr_tensor *x = c->x, *w = c->weight;
  few p = {};
  int64_t tiles = crk_conv_tiles(c, SIDE, SIDE, &p.tiles_x, &p.tiles_y);
  if (!crk_conv_is_dense_3x3(c) || w->shape[0] > COLUMNS || x->shape[3] % 8 || x->shape[3] < 8 ||
      tiles > INT32_MAX || x->stride[3] != 1 || x->stride[0] % 8 || x->stride[1] % 8 ||
      x->stride[2] % 8 || ((uintptr_t)crk_ptr(x) | (uintptr_t)crk_ptr(w)) % 16 ||
      c->d->shared_memory < STAGES * STAGE)
    return CR_EUNSUPPORTED;
  crk_conv_sizes(c, &p);
  p.c = x->shape[3];
  p.o = w->shape[0];
  return x->dtype == CR_F16 ? launch<__half>(c, &p, tiles) : launch<__nv_bfloat16>(c, &p, tiles);
}
