/* Convolutions in full f32 (no TF32) on small images, as the face networks have them: one or a few
 * frames at a time.
 *
 * cuDNN's f32 engines work in NCHW: each call converts x and the weight to NCHW and the result back
 * to NHWC. Their tiles are so large that such an image has only a dozen of them for 132
 * multiprocessors. Here an implicit GEMM reads NHWC memory directly, and the threads of a block
 * split the sum over k among themselves (split-K inside the block), so that a small image keeps
 * them busy.
 *
 * Invariants: all data are f32. There is one group. C is a multiple of 4. The C numbers of a pixel
 * of x are adjacent and start at a multiple of 16 bytes. The weight [O kh kw C] is dense. out and
 * residual may have any strides, and residual may be out: an element of out is written by the
 * thread that has read the residual at the same index. Each sum is added up in an order that
 * depends only on the sizes. */
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

enum { BLK_K = 16, PITCH = BLK_K + 4, STAGES = 2, THREADS = 256 };

/* Prologue: finds the first element of each of this thread's rows, which are STEP apart: first rows
 * of x (BLK_M, BLK_K), then of the weight (BLK_N, BLK_K). For a position, y0 and x0 are the corner
 * of its window. A row past the end gets coordinates that fail every bounds check. */
template <int BLK_M, int STEP, int LOADS>
__device__ __forceinline__ void locate_rows(const float *(&from)[LOADS], int32_t (&y0)[LOADS],
                                            int32_t (&x0)[LOADS], const float *x,
                                            const float *weight, const problem &p, uint32_t first_m,
                                            int32_t first_n, int row, int k_size) {
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    const int r = row + i * STEP;
    if (i * STEP < BLK_M) {
      const uint32_t m = first_m + r;
      const bool inside = m < p.positions;
      const crk_position at = crk_position_of(inside ? m : 0, p.oh, p.ow);
      from[i] = x + at.n * p.sx[0];
      y0[i] = inside ? at.y * p.stride_h - p.top : INT32_MIN / 2;
      x0[i] = at.x * p.stride_w - p.left;
    } else {
      const int32_t o = first_n + r - BLK_M;
      from[i] = weight + (int64_t)min(o, p.o - 1) * k_size;
      y0[i] = o < p.o;
    }
  }
}

/* Epilogue: adds the sums of the groups, then bias, activation and residual. Every thread of the
 * block finishes some elements of one column; neighbouring threads write neighbouring elements of
 * out. The loop is not unrolled: fetching the instructions of 32 copies of all activations would
 * take longer than the sums. */
template <int BLK_M, int BLK_N, int GROUPS, int WIDTH>
__device__ __forceinline__ void finish(float (*sums)[BLK_M][WIDTH], float *out, const float *bias,
                                       const float *residual, const float *slope, const problem &p,
                                       uint32_t first_m, int32_t first_n) {
  const int32_t n = threadIdx.x % BLK_N, o = first_n + n;
  if (o >= p.o) return;
  const float shift = bias ? bias[o] : 0.0f, leak = slope ? slope[o] : 0.0f;
#pragma unroll 1
  for (int r = threadIdx.x / BLK_N; r < BLK_M; r += THREADS / BLK_N) {
    const uint32_t m = first_m + r;
    if (m >= p.positions) break;
    float v = sums[0][r][n];
#pragma unroll
    for (int g = 1; g < GROUPS; g++) v += sums[g][r][n];
    const crk_position at = crk_position_of(m, p.oh, p.ow);
    v = crk_act(v + shift, p.act, leak);
    if (residual) v += residual[at.n * p.sr[0] + at.y * p.sr[1] + at.x * p.sr[2] + o * p.sr[3]];
    out[at.n * p.so[0] + at.y * p.so[1] + at.x * p.so[2] + o * p.so[3]] = v;
  }
}

/* A block computes a tile of BLK_M positions x BLK_N output channels; grid: x tiles of positions,
 * y tiles of channels. Its threads form GROUPS groups. Each group computes every GROUPS-th block of
 * BLK_K of k with STAGES pipeline stages of its own; at the end the sums of the groups are added. A
 * thread holds TM x TN sums. Its rows are BLK_M / TM apart and its columns BLK_N / TN: so eight
 * neighbouring threads read eight neighbouring rows, which PITCH puts into different banks. */
template <int BLK_M, int BLK_N, int TM, int TN>
__global__ void __launch_bounds__(THREADS)
    conv_small_f32_kernel(float *out, const float *x, const float *weight, const float *bias,
                          const float *residual, const float *slope, problem p) {
  constexpr int ACROSS = BLK_N / TN, GROUP = BLK_M / TM * ACROSS, GROUPS = THREADS / GROUP;
  constexpr int ROWS = BLK_M + BLK_N, STEP = GROUP / 4, LOADS = ROWS / STEP;
  static_assert(BLK_M % STEP == 0 && ROWS % STEP == 0,
                "each load of a thread belongs to one matrix");
  /* (GROUPS, STAGES, BLK_M + BLK_N, BLK_K): rows of x, then rows of the weight */
  __shared__ __align__(16) float memory[GROUPS][STAGES][ROWS][PITCH];
  /* (GROUPS, BLK_M, BLK_N), in the memory of the stages */
  float(*sums)[BLK_M][BLK_N + ACROSS] = (float(*)[BLK_M][BLK_N + ACROSS]) memory;
  static_assert(sizeof memory >= sizeof(float) * GROUPS * BLK_M * (BLK_N + ACROSS),
                "the sums fit into the stages");

  const int group = threadIdx.x / GROUP, lane = threadIdx.x % GROUP;
  const int row = lane / 4, piece = lane % 4 * 4;
  const int k_size = p.kh * p.kw * p.c;
  const uint32_t first_m = blockIdx.x * BLK_M;
  const int32_t first_n = blockIdx.y * BLK_N;

  /* ---- prologue ---- */
  const float *from[LOADS];
  int32_t y0[LOADS], x0[LOADS];
  locate_rows<BLK_M, STEP>(from, y0, x0, x, weight, p, first_m, first_n, row, k_size);

  /* ---- load: BLK_K of k of all rows to a stage. (kx, ky) and c are the tap and the channel of the
   * 4 numbers that this thread loads next, at k. ---- */
  int32_t k = group * BLK_K + piece, c = k % p.c, kx = k / p.c % p.kw, ky = k / p.c / p.kw;
  auto load = [&](int stage) {
    const bool more = k < k_size;
    const int32_t dy = ky * p.dilation_h, dx = kx * p.dilation_w;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      float *to = &memory[group][stage][row + i * STEP][piece];
      const float *at = from[i];
      bool valid = more;
      if (i * STEP < BLK_M) {
        const int32_t y = y0[i] + dy, z = x0[i] + dx;
        valid = valid && y >= 0 && y < p.h && z >= 0 && z < p.w;
        if (valid) at += y * p.sx[1] + z * p.sx[2] + c;
      } else {
        valid = valid && y0[i];
        if (valid) at += k;
      }
      crk_cp_async16(crk_shared_address(to), at, valid);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    k += GROUPS * BLK_K;
    for (c += GROUPS * BLK_K; c >= p.c; c -= p.c)
      if (++kx == p.kw) kx = 0, ky++;
  };

  /* ---- main loop over k: products of one stage, while the other is loaded ---- */
  const int tm = lane / ACROSS, tn = lane % ACROSS;
  const int steps = (k_size + GROUPS * BLK_K - 1) / (GROUPS * BLK_K);
  float sum[TM][TN] = {};
  load(0);
  for (int step = 0; step < steps; step++) {
    const int stage = step % STAGES;
    if (step + 1 < steps) {
      load(1 - stage);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < BLK_K; j += 4) {
      float4 a[TM], b[TN]; // (TM, 4), (TN, 4): of x, of the weight
#pragma unroll
      for (int r = 0; r < TM; r++)
        a[r] = *(const float4 *)&memory[group][stage][tm + r * (BLK_M / TM)][j];
#pragma unroll
      for (int s = 0; s < TN; s++)
        b[s] = *(const float4 *)&memory[group][stage][BLK_M + tn + s * ACROSS][j];
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
    __syncthreads();
  }

  /* ---- epilogue: the sums of all groups are added through shared memory ---- */
#pragma unroll
  for (int i = 0; i < TM * TN; i++)
    sums[group][tm + i / TN * (BLK_M / TM)][tn + i % TN * ACROSS] = sum[i / TN][i % TN];
  __syncthreads();
  finish<BLK_M, BLK_N, GROUPS>(sums, out, bias, residual, slope, p, first_m, first_n);
}

template <int BLK_M, int BLK_N, int TM, int TN>
static void launch(const crk_conv *c, const problem *p) {
  dim3 grid((unsigned)crk_ceil_div(p->positions, BLK_M), (unsigned)crk_ceil_div(p->o, BLK_N));
  conv_small_f32_kernel<BLK_M, BLK_N, TM, TN><<<grid, THREADS, 0, c->d->stream>>>(
      (float *)crk_ptr(c->out), crk_conv_data<float>(c->x), crk_conv_data<float>(c->weight),
      crk_conv_data<float>(c->bias), crk_conv_data<float>(c->residual),
      crk_conv_data<float>(c->slope), *p);
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
  if (large >= c->d->multiprocessors && p.o > 32)
    launch<64, 64, 8, 4>(c, &p);
  else
    launch<32, 32, 4, 4>(c, &p);
  return crk_launched("conv2d", c->d);
}
