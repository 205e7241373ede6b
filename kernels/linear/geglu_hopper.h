/* The GEMM of a GEGLU layer on Hopper: its columns are values and gates, and the epilogue is GEGLU:
 *
 *   out[m][n] = v gelu(g),  v = x[m] . w[n] + bias[n],  g = x[m] . w[width + n] + bias[width + n]
 *
 * x [rows inner], w [2 width, inner] and out [rows width] are f16 or bf16; sums, bias and GELU are
 * f32.
 *
 * A tile takes BLK_N rows of w for values and the BLK_N rows for their gates, side by side in
 * shared memory. So a value and its gate are two registers of one thread, and only results leave
 * the multiprocessor; unfused, [rows, 2 width] is written and read again.
 *
 * A block has three warpgroups: one thread of the last loads 128-byte rows (64 elements of K) by
 * TMA into a pipeline of STAGES; the other two are consumers, which share a tile, 64 rows each and
 * the same rows of w: 85 operations for each byte loaded. The accumulators of a warpgroup fill 128
 * registers of each thread, so its GELUs (about 19 instructions for a result, two of them of the
 * special function unit) cannot overlap its own next wgmmas; what the pipeline has loaded meanwhile
 * makes up for it. Three variants were measured on an H200 and won nothing: w kept in shared memory
 * for all rows, w shared by two blocks of a cluster, and one warpgroup that starts later.
 *
 * Results are staged in shared memory as TMA tiles of 64 x 64, and are written by TMA. Sizes: any
 * number of rows; width and inner are multiples of 8 (TMA reads zeros outside of a tensor, and
 * writes nothing there). */
#ifndef CRK_LINEAR_GEGLU_H
#define CRK_LINEAR_GEGLU_H

#include "device/hopper.h"

namespace geglu {

using namespace hopper;

enum {
  THREADS = 384,
  BLK_M = 128,  /* rows of a tile, of both consumers together */
  BLK_N = 128,  /* results of a tile: as many values and as many gates */
  STAGES = 4,   /* of the pipeline */
  GROUP_M = 16, /* rows of tiles before the next (tile_scheduler) */
  X_BYTES = BLK_M * 128,
  W_BYTES = BLK_N * 128, /* of values, or of gates */
  STAGE_BYTES = X_BYTES + 2 * W_BYTES,
  OUT_AT = STAGES * STAGE_BYTES,
  OUT_BUFFERS = 2,           /* tiles of results that a warpgroup has on their way out */
  OUT_TILE_BYTES = 64 * 128, /* 64 x 64 results */
  BIAS_AT = OUT_AT + 2 * OUT_BUFFERS * OUT_TILE_BYTES,
  BARRIERS_AT = BIAS_AT + 2 * BLK_N * 8,
  BYTES = BARRIERS_AT + 2 * STAGES * 8,
  REGISTERS = 232 /* of 168: the producer keeps 40 */
};
static_assert(BYTES <= 232448, "shared memory of a block");

typedef struct sizes {
  int width, inner; /* N, K */
  int row_tiles, column_tiles;
} sizes;

/* g Phi(g). Phi(g) = 1 / (1 + 2^(g Q(g^2))), where Q is a minimax fit of GELU's error, weighted by
 * 1 / (0.001 + |gelu|). The error is at most 3e-6, and from -3 on a relative error of at most 2e-5.
 * gelu(-inf) is -0. */
__device__ __forceinline__ float gelu(float g) {
  float x, e, r;
  asm("max.NaN.f32 %0, %1, 0fC1800000;" : "=f"(x) : "f"(g)); /* -16 */
  float t = x * x;
  float q = fmaf(-3.46386842e-9f, t, 2.86828773e-7f);
  q = fmaf(q, t, -9.39482326e-6f);
  q = fmaf(q, t, 1.39244661e-4f);
  q = fmaf(q, t, 1.89768411e-4f);
  q = fmaf(q, t, -0.105027085f);
  q = fmaf(q, t, -2.30209471f);
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * q));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(e + 1.0f));
  return x * r;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* The producer's loop, for operands of type A (also those of geglu_quant_hopper.h). */
template <typename A, typename S>
__device__ __forceinline__ void load(const CUtensorMap &x_map, const CUtensorMap &w_map, const S &s,
                                     uint32_t base, uint32_t full, uint32_t empty, int k_tiles) {
  constexpr int BLK_K = 128 / sizeof(A);
  pipeline_state<STAGES> in;
  for (tile_scheduler<GROUP_M, S> at(s); at.valid(s); at.advance(s))
    for (int k = 0; k < k_tiles; k++, in.advance()) {
      in.wait_empty(empty);
      uint32_t to = base + in.stage * STAGE_BYTES, barrier = full + in.stage * 8;
      int column = at.column * BLK_N;
      mbarrier_expect(barrier, STAGE_BYTES);
      tma_load(to, &x_map, k * BLK_K, at.row * BLK_M, barrier); // (BLK_M, BLK_K)
      to += X_BYTES;
      tma_load(to, &w_map, k * BLK_K, column, barrier);                     // (BLK_N, BLK_K)
      tma_load(to + W_BYTES, &w_map, k * BLK_K, s.width + column, barrier); // (BLK_N, BLK_K)
    }
}

/* Of a warpgroup's results the 64 x 64 from column 64 `block` on, as four times four registers for
 * stmatrix. `pairs`: {two values', two gates' biases} of each pair of columns. */
template <typename T>
__device__ __forceinline__ void activate(uint32_t (&r)[4][4], const float (&acc)[BLK_N / 4][4],
                                         const float4 *pairs, int block) {
#pragma unroll
  for (int j = 0; j < 8; j += 2)
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int c = block * 8 + j + n;
      const float(&v)[4] = acc[c], (&g)[4] = acc[BLK_N / 8 + c];
      float4 add = pairs[c * 4];
#pragma unroll
      for (int h = 0; h < 2; h++)
        r[j / 2][2 * n + h] = crk_pair<T>((v[2 * h] + add.x) * gelu(g[2 * h] + add.z),
                                          (v[2 * h + 1] + add.y) * gelu(g[2 * h + 1] + add.w));
    }
}

/* The main loop over K: acc (2 BLK_N / 8, fragment) = x (64, BLK_K) of the warpgroup by w (2 BLK_N,
 * BLK_K) of each stage. `count` stages have been consumed so far; `last` is the one to release
 * next. */
template <typename T>
__device__ __forceinline__ void main_loop(float (&acc)[BLK_N / 4][4], uint32_t &count,
                                          uint32_t &last, uint32_t base, uint32_t full,
                                          uint32_t empty, int k_tiles, int warpgroup, int lane) {
  auto release = [&](uint32_t stage) {
    if (lane == 0) mbarrier_arrive(empty + stage * 8);
  };
  for (int k = 0; k < k_tiles; k++) {
    uint32_t stage = count % STAGES;
    mbarrier_wait(full + stage * 8, (int)(count / STAGES));
    uint32_t x_at = base + stage * STAGE_BYTES;
    uint64_t x = descriptor_128b(x_at + warpgroup * (64 * 128)), // (64, BLK_K)
        w = descriptor_128b(x_at + X_BYTES);                     // (2 BLK_N, BLK_K)
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<T>(acc, x + j * 2, w + j * 2, j > 0 || k > 0);
    wgmma_commit();
    if (k > 0) { /* the stage before this one has been read */
      wgmma_wait<1>();
      release(last);
    }
    last = stage;
    count++;
  }
  wgmma_wait<0>();
  fence_accumulators(acc);
  release(last);
}

/* The end of the epilogue: the warpgroup's results (64, BLK_N), a tile (64, 64) at a time, go
 * through output buffers in turn, and out by TMA. */
template <typename T>
__device__ __forceinline__ void
store_results(const CUtensorMap &out_map, uint32_t out, uint32_t &buffer, uint32_t out_row,
              uint32_t unit, uint32_t swizzle, const float (&acc)[BLK_N / 4][4],
              const float4 *pairs, int row, int first_column, int warpgroup, int thread) {
#pragma unroll
  for (int block = 0; block < BLK_N / 64; block++) {
    uint32_t to = out + buffer * OUT_TILE_BYTES, r[4][4];
    activate<T>(r, acc, pairs, block);
    if (thread == 0) tma_store_wait<OUT_BUFFERS - 1>();
    named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
    for (int j = 0; j < 4; j++) stmatrix(to + out_row + ((2 * j + unit) ^ swizzle) * 16, r[j]);
    fence_async_shared();
    named_barrier_sync(1 + warpgroup, 128);
    if (thread == 0) tma_store(&out_map, first_column + block * 64, row, to);
    buffer = (buffer + 1) % OUT_BUFFERS;
  }
}
#endif

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map, const T *bias, const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + BARRIERS_AT, empty = full + STAGES * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int warpgroup = threadIdx.x / 128;
  int k_tiles = (s.inner + 63) / 64;
  if (threadIdx.x == 0) {
    pipeline_init<STAGES>(full, empty);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warpgroup == 2) {
    run_producer(&x_map, &w_map, [&] { load<T>(x_map, w_map, s, base, full, empty, k_tiles); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)REGISTERS));
    const float4 *pairs = (const float4 *)(shared + BIAS_AT + warpgroup * BLK_N * 8) + lane % 4;
    float *own_bias = (float *)(shared + BIAS_AT + warpgroup * BLK_N * 8);
    uint32_t out = base + OUT_AT + warpgroup * OUT_BUFFERS * OUT_TILE_BYTES, buffer = 0;
    /* For stmatrix: the lane's row, which of two neighbouring 16-byte units, and the swizzle. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 128, unit = lane / 16,
             swizzle = lane % 8;
    uint32_t count = 0, last = 0; /* pipeline stages consumed so far; the one to release next */
    float acc[BLK_N / 4][4];      // (2 BLK_N / 8, fragment): values, then gates
    int bias_of = -1;             /* the column whose biases stand in shared memory */
    for (tile_scheduler<GROUP_M, sizes> at(s); at.valid(s); at.advance(s)) {
      /* ---- biases: each thread loads those of one column while the main loop runs ---- */
      int first_column = at.column * BLK_N;
      bool other = first_column != bias_of, inside = bias && first_column + thread < s.width;
      T of_value{}, of_gate{};
      if (other && inside) {
        of_value = bias[first_column + thread];
        of_gate = bias[s.width + first_column + thread];
      }
      main_loop<T>(acc, count, last, base, full, empty, k_tiles, warpgroup, lane);

      /* ---- epilogue: biases of the columns, then results ---- */
      if (other) {
        bias_of = first_column;
        float *to = own_bias + thread / 2 * 4 + thread % 2;
        to[0] = crk_float(of_value);
        to[2] = crk_float(of_gate);
        named_barrier_sync(1 + warpgroup, 128);
      }
      store_results<T>(out_map, out, buffer, out_row, unit, swizzle, acc, pairs,
                       at.row * BLK_M + warpgroup * 64, first_column, warpgroup, thread);
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

} // namespace geglu

#endif
