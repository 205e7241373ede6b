/* Convolutions in full f32 (no TF32) on small images, as the face networks have them: one or a few
 * frames at a time.
 *
 * cuDNN's f32 engines work in NCHW: each call converts x and the weight to NCHW and the result back
 * to NHWC. Their tiles are so large that such an image has only a dozen of them for 132
 * multiprocessors. Here an implicit GEMM reads NHWC memory directly, and the threads of a block
 * split the sum over k among themselves (split-K inside the block), so that a small image keeps
 * them busy. If there are fewer tiles than multiprocessors, several blocks share a tile (split-K):
 * the last one adds their sums up.
 *
 * Invariants: all data are f32. There is one group. C is a multiple of 4. The C numbers of a pixel
 * of x are adjacent and start at a multiple of 16 bytes. The weight [O kh kw C] is dense. out and
 * residual may have any strides, and residual may be out: an element of out is written by the
 * thread that has read the residual at the same index. Each sum is added up in an order that
 * depends only on the sizes and the card. */
#include "conv/conv.h"
#include "device/tensor_core.h"

typedef struct problem {
  uint32_t positions;          /* N * oh * ow */
  int64_t sx[4], so[4], sr[4]; /* strides of x, out and residual */
  int32_t h, w, oh, ow;        /* of x, of out */
  int32_t kh, kw, c, o;        /* of the weight */
  int32_t stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t act;
} problem;

enum { BLK_K = 16, PITCH = BLK_K + 4, THREADS = 256 };

/* The blocks that share the sum over k of a tile (grid.z of them), if there are several: `partial`
 * (tiles, grid.z, BLK_M, BLK_N) takes their sums, and `arrived` counts, for each tile, those that
 * are there; it is 0 before and after. */
typedef struct sharing {
  float *partial;
  uint32_t *arrived;
} sharing;
enum { MOST_TILES = 512 };
__device__ uint32_t arrived[CRK_STREAMS][MOST_TILES];

/* The sum of the groups for an element of the tile. */
template <int BLK_M, int GROUPS, int WIDTH>
__device__ __forceinline__ float sum_of(const float (*sums)[BLK_M][WIDTH], int r, int n) {
  float v = sums[0][r][n];
#pragma unroll
  for (int g = 1; g < GROUPS; g++) v += sums[g][r][n];
  return v;
}

/* Adds bias, activation and residual to the sums value(r, n). Every thread of the block finishes
 * some elements of one column; neighbouring threads write neighbouring elements of out. The loop is
 * not unrolled: fetching the instructions of 32 copies of all activations would take longer than
 * the sums. */
template <int BLK_M, int BLK_N, typename F>
__device__ __forceinline__ void finish(F value, float *out, const float *bias,
                                       const float *residual, const float *slope,
                                       const problem &p) {
  const int32_t n = threadIdx.x % BLK_N, o = blockIdx.y * BLK_N + n;
  if (o >= p.o) return;
  const float shift = bias ? bias[o] : 0.0f, leak = slope ? slope[o] : 0.0f;
#pragma unroll 1
  for (int r = threadIdx.x / BLK_N; r < BLK_M; r += THREADS / BLK_N) {
    const uint32_t m = blockIdx.x * BLK_M + r;
    if (m >= p.positions) break;
    const crk_position at = crk_position_of(m, p.oh, p.ow);
    float v = crk_act(value(r, n) + shift, p.act, leak);
    if (residual) v += residual[at.n * p.sr[0] + at.y * p.sr[1] + at.x * p.sr[2] + o * p.sr[3]];
    out[at.n * p.so[0] + at.y * p.so[1] + at.x * p.so[2] + o * p.so[3]] = v;
  }
}

/* Writes this block's sums to its part of the tile; true in the block that comes last. */
template <int BLK_M, int BLK_N, typename F>
__device__ __forceinline__ bool share(F value, float *own, uint32_t *count) {
  for (int i = threadIdx.x; i < BLK_M * BLK_N; i += THREADS) own[i] = value(i / BLK_N, i % BLK_N);
  __threadfence();
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(count, 1) == gridDim.z - 1;
    if (last) *count = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

/* The rows of x and of the weight that a thread loads, 4 numbers of each per block of BLK_K of k.
 */
template <int LOADS> struct rows {
  const float *from[LOADS]; /* the first number of a row */
  int32_t y0[LOADS]; /* of a position: the corner of its window; of a weight: whether it exists */
  int32_t x0[LOADS];
  int32_t k, c, kx, ky; /* the next k, and its channel and tap */
};

/* The thread's rows are `row`, row + STEP, ... of the tile; the first BLK_M belong to x. A position
 * past the end gets coordinates that fail every bounds check. */
template <int BLK_M, int STEP, int LOADS>
__device__ __forceinline__ rows<LOADS> rows_of(const float *x, const float *weight,
                                               const problem &p, int row, int first_k) {
  rows<LOADS> w;
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    const int r = row + i * STEP;
    if (i * STEP < BLK_M) {
      const uint32_t m = blockIdx.x * BLK_M + r;
      const bool inside = m < p.positions;
      const crk_position at = crk_position_of(inside ? m : 0, p.oh, p.ow);
      w.from[i] = x + at.n * p.sx[0];
      w.y0[i] = inside ? at.y * p.stride_h - p.top : INT32_MIN / 2;
      w.x0[i] = at.x * p.stride_w - p.left;
    } else {
      const int32_t o = blockIdx.y * ((LOADS * STEP) - BLK_M) + r - BLK_M;
      w.from[i] = weight + (int64_t)min(o, p.o - 1) * (p.kh * p.kw * p.c);
      w.y0[i] = o < p.o;
    }
  }
  w.k = first_k, w.c = first_k % p.c, w.kx = first_k / p.c % p.kw, w.ky = first_k / p.c / p.kw;
  return w;
}

/* Starts to load the thread's numbers of the next block of k into a stage, and moves on by
 * `advance` in k. What lies outside is 0. */
template <int BLK_M, int STEP, int LOADS>
__device__ __forceinline__ void load(float *to, rows<LOADS> &w, const problem &p, int advance) {
  const bool more = w.k < p.kh * p.kw * p.c;
  const int32_t dy = w.ky * p.dilation_h, dx = w.kx * p.dilation_w;
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    const float *at = w.from[i];
    bool valid = more;
    if (i * STEP < BLK_M) {
      const int32_t y = w.y0[i] + dy, z = w.x0[i] + dx;
      valid = valid && y >= 0 && y < p.h && z >= 0 && z < p.w;
      if (valid) at += y * p.sx[1] + z * p.sx[2] + w.c;
    } else {
      valid = valid && w.y0[i];
      if (valid) at += w.k;
    }
    crk_cp_async16(crk_shared_address(to + i * STEP * PITCH), at, valid);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
  w.k += advance;
  for (w.c += advance; w.c >= p.c; w.c -= p.c)
    if (++w.kx == p.kw) w.kx = 0, w.ky++;
}

/* Adds the products of one stage. The thread's rows of x are `apart` rows apart, its columns
 * ACROSS. */
template <int TM, int TN>
__device__ __forceinline__ void multiply(float (*sum)[TN], const float (*a_rows)[PITCH],
                                         const float (*b_rows)[PITCH], int apart, int across) {
#pragma unroll
  for (int j = 0; j < BLK_K; j += 4) {
    float4 a[TM], b[TN];
#pragma unroll
    for (int r = 0; r < TM; r++) a[r] = *(const float4 *)&a_rows[r * apart][j];
#pragma unroll
    for (int s = 0; s < TN; s++) b[s] = *(const float4 *)&b_rows[s * across][j];
#pragma unroll
    for (int r = 0; r < TM; r++)
#pragma unroll
      for (int s = 0; s < TN; s++) {
        sum[r][s] = fmaf(a[r].x, b[s].x, sum[r][s]);
        sum[r][s] = fmaf(a[r].y, b[s].y, sum[r][s]);
        sum[r][s] = fmaf(a[r].z, b[s].z, sum[r][s]);
        sum[r][s] = fmaf(a[r].w, b[s].w, sum[r][s]);
      }
  }
}

/* A block computes a tile of BLK_M positions x BLK_N output channels; grid: x tiles of positions,
 * y tiles of channels, z blocks that share a tile. Its threads form GROUPS groups. Of z GROUPS
 * blocks of BLK_K of k, each group computes one, with STAGES pipeline stages and a named barrier of
 * its own; at the end the sums of the groups are added. A thread holds TM x TN sums. Its rows are
 * BLK_M / TM apart and its columns BLK_N / TN: so eight neighbouring threads read eight
 * neighbouring rows, which PITCH puts into different banks. */
template <int BLK_M, int BLK_N, int TM, int TN, int STAGES>
__global__ void __launch_bounds__(THREADS)
    conv_small_f32_kernel(float *out, const float *x, const float *weight, const float *bias,
                          const float *residual, const float *slope, problem p, sharing of) {
  constexpr int ACROSS = BLK_N / TN, GROUP = BLK_M / TM * ACROSS, GROUPS = THREADS / GROUP;
  constexpr int ROWS = BLK_M + BLK_N, STEP = GROUP / 4, LOADS = ROWS / STEP;
  static_assert(BLK_M % STEP == 0 && ROWS % STEP == 0,
                "each load of a thread belongs to one matrix");
  /* (GROUPS, STAGES, BLK_M + BLK_N, BLK_K): rows of x, then rows of the weight */
  extern __shared__ __align__(16) char shared[];
  float(*memory)[ROWS][PITCH] = (float(*)[ROWS][PITCH])shared;
  /* (GROUPS, BLK_M, BLK_N), in the memory of the stages */
  float(*sums)[BLK_M][BLK_N + ACROSS] = (float(*)[BLK_M][BLK_N + ACROSS]) shared;
  static_assert(STAGES * ROWS * PITCH >= BLK_M * (BLK_N + ACROSS), "the sums fit into the stages");

  const int group = threadIdx.x / GROUP, lane = threadIdx.x % GROUP;
  const int row = lane / 4, piece = lane % 4 * 4;
  const int advance = gridDim.z * GROUPS * BLK_K; /* of k, between two blocks of a group */
  rows<LOADS> w =
      rows_of<BLK_M, STEP, LOADS>(x, weight, p, row, (blockIdx.z * GROUPS + group) * BLK_K + piece);
  memory += group * STAGES;

  /* ---- main loop: the stage that was read last is filled again ---- */
  const int tm = lane / ACROSS, tn = lane % ACROSS;
  const int steps = (p.kh * p.kw * p.c + advance - 1) / advance;
  float sum[TM][TN] = {};
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++)
    load<BLK_M, STEP>(&memory[stage][row][piece], w, p, advance);
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(GROUP) : "memory");
    load<BLK_M, STEP>(&memory[(step + STAGES - 1) % STAGES][row][piece], w, p, advance);
    multiply<TM, TN>(sum, &memory[step % STAGES][tm], &memory[step % STAGES][BLK_M + tn],
                     BLK_M / TM, ACROSS);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  /* ---- epilogue ---- */
#pragma unroll
  for (int i = 0; i < TM * TN; i++)
    sums[group][tm + i / TN * (BLK_M / TM)][tn + i % TN * ACROSS] = sum[i / TN][i % TN];
  __syncthreads();
  auto value = [&](int r, int n) { return sum_of<BLK_M, GROUPS>(sums, r, n); };
  if (gridDim.z == 1) {
    finish<BLK_M, BLK_N>(value, out, bias, residual, slope, p);
    return;
  }
  const uint32_t tile = blockIdx.y * gridDim.x + blockIdx.x;
  float *parts = of.partial + tile * gridDim.z * (BLK_M * BLK_N);
  if (!share<BLK_M, BLK_N>(value, parts + blockIdx.z * (BLK_M * BLK_N), of.arrived + tile)) return;
  auto all = [&](int r, int n) {
    float v = 0.0f;
    for (uint32_t z = 0; z < gridDim.z; z++)
      v += __ldcg(parts + z * (BLK_M * BLK_N) + r * BLK_N + n);
    return v;
  };
  finish<BLK_M, BLK_N>(all, out, bias, residual, slope, p);
}

/* How many blocks share a tile: as many as run at once, two on a multiprocessor, if each has at
 * least two blocks of k for each group. */
static int sharers(const crk_conv *c, const problem *p, int64_t tiles, int step) {
  const int64_t room = 2 * c->d->multiprocessors / tiles,
                most = crk_ceil_div(p->kh * p->kw * p->c, step) / 2;
  const int64_t n = room < most ? room : most;
  return n < 1 || tiles > MOST_TILES ? 1 : n > 8 ? 8 : (int)n;
}

template <int BLK_M, int BLK_N, int TM, int TN, int STAGES>
static int launch(const crk_conv *c, const problem *p) {
  constexpr int GROUPS = THREADS / (BLK_M / TM * (BLK_N / TN));
  constexpr int BYTES = GROUPS * STAGES * (BLK_M + BLK_N) * PITCH * (int)sizeof(float);
  auto kernel = conv_small_f32_kernel<BLK_M, BLK_N, TM, TN, STAGES>;
  dim3 grid((unsigned)crk_ceil_div(p->positions, BLK_M), (unsigned)crk_ceil_div(p->o, BLK_N));
  const int64_t tiles = (int64_t)grid.x * grid.y;
  grid.z = (unsigned)sharers(c, p, tiles, GROUPS * BLK_K);
  CRK_TRY("conv2d", c->d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  sharing of = {};
  cr_storage *partial = NULL;
  if (grid.z > 1) {
    partial = cr__storage_new(tiles * grid.z * BLK_M * BLK_N * 4, c->d->device);
    if (!partial) return CR_ENOMEM;
    void *counts = NULL;
    cudaError_t e = cudaGetSymbolAddress(&counts, arrived);
    if (e != cudaSuccess) {
      cr__release(partial);
      return crk_check("conv2d", c->d, e);
    }
    of.partial = (float *)partial->data;
    of.arrived = (uint32_t *)counts + crk_stream * MOST_TILES;
  }
  kernel<<<grid, THREADS, BYTES, c->d->stream>>>(
      (float *)crk_ptr(c->out), crk_conv_data<float>(c->x), crk_conv_data<float>(c->weight),
      crk_conv_data<float>(c->bias), crk_conv_data<float>(c->residual),
      crk_conv_data<float>(c->slope), *p, of);
  int rc = crk_launched("conv2d", c->d);
  if (partial) cr__release(partial);
  return rc;
}

/* The number of 64 x 64 tiles for each multiprocessor above which the library is faster: its tiles
 * are then full, and its layout conversions cost little compared with the sums. */
enum { BLOCKS_EACH = 16 };

int crk_conv_small_f32(const crk_conv *c) {
  const cr_conv *o = c->o;
  const int64_t *sx = c->x->stride;
  problem p = {};
  const int64_t positions = (int64_t)c->out->shape[0] * c->out->shape[1] * c->out->shape[2];
  p.o = c->weight->shape[0], p.kh = c->weight->shape[1], p.kw = c->weight->shape[2];
  p.c = c->weight->shape[3];
  const int64_t large = crk_ceil_div(positions, 64) * crk_ceil_div(p.o, 64);
  if (c->x->dtype != CR_F32 || c->out->dtype != CR_F32 || c->d->tf32 || o->groups != 1 ||
      p.c % 4 != 0 || sx[3] != 1 || (sx[0] | sx[1] | sx[2]) % 4 != 0 || positions == 0 ||
      p.o == 0 || c->out->storage == c->x->storage ||
      large > (int64_t)BLOCKS_EACH * c->d->multiprocessors ||
      ((uintptr_t)crk_ptr(c->x) | (uintptr_t)crk_ptr(c->weight)) % 16 != 0)
    return CR_EUNSUPPORTED;
  p.positions = (uint32_t)positions;
  crk_conv_sizes(c, &p);
  p.stride_h = o->stride_h, p.stride_w = o->stride_w;
  p.dilation_h = o->dilation_h, p.dilation_w = o->dilation_w;
  /* Large tiles read less, small ones keep more multiprocessors busy. */
  if (large >= c->d->multiprocessors && p.o > 32) return launch<64, 64, 8, 4, 3>(c, &p);
  const int64_t small = crk_ceil_div(positions, 32) * crk_ceil_div(p.o, 32);
  if (small >= 2 * c->d->multiprocessors) return launch<64, 32, 8, 4, 3>(c, &p);
  return launch<32, 32, 4, 4, 4>(c, &p);
}
