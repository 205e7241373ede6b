/* The GEMM of gemm_hopper.h in phases: tile and sizes, the producer's loads, the factors of the
 * epilogue, the main loop, the epilogue. Shapes stand beside tensors, in elements.
 *
 * Invariant: all functions are inlined, and register arrays have constant indices, so that a kernel
 * keeps its accumulators in registers. */
#ifndef CRK_LINEAR_GEMM_PHASES_H
#define CRK_LINEAR_GEMM_PHASES_H

#include <type_traits>

#include "device/hopper.h"

namespace linear {

using namespace hopper;

/* M64: blocks of 64 rows that a warpgroup has in a tile; 2 makes the schedule ping-pong. */
template <int BLK_N_, int STAGES_, int M64_ = 1, int OUT_BUFFERS_ = 2> struct tile {
  static constexpr int BLK_M = 128, BLK_N = BLK_N_, STAGES = STAGES_, M64 = M64_, THREADS = 384;
  static constexpr bool PINGPONG = M64 == 2; /* a warpgroup has all rows of every other tile */
  static constexpr int OUT_BUFFERS = OUT_BUFFERS_; /* of a warpgroup, 64 rows each */
  /* Whether a residual is loaded a tile ahead; else it is loaded when its own tile begins. */
  static constexpr bool AHEAD = !PINGPONG && OUT_BUFFERS == 2;
  static constexpr int X_BYTES = BLK_M * 128, STAGE_BYTES = X_BYTES + BLK_N * 128;
  static constexpr int OUT_N = 32, OUT_TILES = BLK_N / OUT_N, OUT_TILE_BYTES = 64 * OUT_N * 2;
  static constexpr int OUT_BYTES = OUT_TILES * OUT_TILE_BYTES; /* of an output buffer */
  static constexpr int OUT_AT = STAGES * STAGE_BYTES;
  static constexpr int FACTORS_AT = OUT_AT + 2 * OUT_BUFFERS * OUT_BYTES;
  static constexpr int BARRIERS_AT = FACTORS_AT + 2 * BLK_N * 8;
  static constexpr int BYTES = BARRIERS_AT + (2 * STAGES + 6) * 8;
  static constexpr int GROUP_M = 16;    /* rows of tiles before the next (tile_scheduler) */
  static constexpr int REGISTERS = 232; /* of 168: the producer keeps 40 */
  static_assert(BLK_N % OUT_N == 0 && BLK_N <= 256, "tiles of results");
  static_assert(STAGE_BYTES % 1024 == 0, "swizzled rows");
  static_assert(BYTES <= 232448, "shared memory of a block");
};

template <typename T> struct sizes {
  const float *x_scale, *w_scale; /* of codes */
  const T *bias;                  /* or NULL */
  int rows, width, inner;         /* M, N, K */
  int row_tiles, column_tiles;
  int residual; /* whether there is one */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Initializes the mbarriers, by one thread. */
template <typename C>
__device__ __forceinline__ void init_barriers(uint32_t full, uint32_t empty, uint32_t residual_full,
                                              uint32_t order) {
  pipeline_init<C::STAGES>(full, empty, C::PINGPONG ? 4 : 8);
  for (int i = 0; i < 4; i++) mbarrier_init(residual_full + i * 8, 1);
  for (int i = 0; i < 2; i++) mbarrier_init(order + i * 8, 4);
  fence_mbarrier_init();
}

/* The producer: loads tiles of x and w into one stage of the pipeline after another. */
template <typename A, typename C, typename S>
__device__ __forceinline__ void load(const CUtensorMap &x_map, const CUtensorMap &w_map, const S &s,
                                     uint32_t base, uint32_t full, uint32_t empty, int k_tiles) {
  constexpr int BLK_K = 128 / sizeof(A);
  pipeline_state<C::STAGES> in;
  for (tile_scheduler<C::GROUP_M, S> at(s); at.valid(s); at.advance(s))
    for (int k = 0; k < k_tiles; k++, in.advance()) {
      in.wait_empty(empty);
      uint32_t to = base + in.stage * C::STAGE_BYTES, barrier = full + in.stage * 8;
      mbarrier_expect(barrier, C::STAGE_BYTES);
      tma_load(to, &x_map, k * BLK_K, at.row * C::BLK_M, barrier);                 // (BLK_M, BLK_K)
      tma_load(to + C::X_BYTES, &w_map, k * BLK_K, at.column * C::BLK_N, barrier); // (BLK_N, BLK_K)
    }
}

/* Scale and bias of a thread's two columns to shared memory, for all threads of the warpgroup: {two
 * scales, two biases} of each pair of columns. */
template <bool CODES, typename C, typename T>
__device__ __forceinline__ void share_factors(float *to, const float (&scale)[2],
                                              const T (&bias)[2], int thread) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int c = thread + i * 128;
    if (c < C::BLK_N) {
      float *pair = to + c / 2 * 4 + c % 2;
      if (CODES) pair[0] = scale[i];
      pair[2] = crk_float(bias[i]);
    }
  }
}

/* Starts loading the residual of a tile's 64 rows into output buffer p (OUT_TILES, 64, OUT_N), by
 * one thread. */
template <typename C, typename S>
__device__ __forceinline__ void load_residual(const CUtensorMap &residual_map, const S &s,
                                              const tile_scheduler<C::GROUP_M, S> &at, uint32_t p,
                                              uint32_t out, uint32_t residual_full, int warpgroup) {
  uint32_t barrier = residual_full + (warpgroup * 2 + p) * 8;
  mbarrier_expect(barrier, C::OUT_BYTES);
  for (int i = 0; i < C::OUT_TILES; i++)
    tma_load(out + p * C::OUT_BYTES + i * C::OUT_TILE_BYTES, &residual_map,
             at.column * C::BLK_N + i * 32, at.row * C::BLK_M + (C::PINGPONG ? p : warpgroup) * 64,
             barrier);
}

/* Waits for the residual of a warpgroup's tile. */
template <typename C>
__device__ __forceinline__ void wait_residual(uint32_t barrier, uint32_t tiles) {
  for (uint32_t u = 0; u < C::M64; u++)
    mbarrier_wait(barrier + u * 8, (int)(C::AHEAD ? tiles / 2 : tiles));
}

/* Loads scale and bias of a column, and the scales of row i of each 64 rows (M64). */
template <bool CODES, typename T>
__device__ __forceinline__ void load_column(float &scale, T &bias, const sizes<T> &s, int column) {
  if (CODES) scale = s.w_scale[column];
  if (s.bias) bias = s.bias[column];
}
template <bool CODES, int M64, typename T>
__device__ __forceinline__ void load_rows(float (&of_row)[M64][2], int i, const sizes<T> &s,
                                          int row) {
#pragma unroll
  for (int u = 0; u < M64; u++) {
    int r = row + u * 64;
    if (CODES && r < s.rows) of_row[u][i] = s.x_scale ? s.x_scale[r] : 1.0f;
  }
}

/* part = the products over N times 32 bytes of K; waits for them. */
template <typename A, int N, int M>
__device__ __forceinline__ void multiply_and_wait(typename accumulator_of<A>::type (&part)[M][4],
                                                  uint64_t x, uint64_t w) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < N; j++) wgmma<A>(part, x + j * 2, w + j * 2, j > 0);
  wgmma_commit_and_wait();
}

/* Without FAST, the second accumulator (BLK_N / 8, fragment): zeros, then sums of 128 products. */
template <typename Sum, int N> __device__ __forceinline__ void clear(Sum (&sum)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) sum[i][e] = 0;
}
template <typename Sum, int N>
__device__ __forceinline__ void add(Sum (&sum)[N][4], const Sum (&part)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) sum[i][e] += part[i][e];
}

/* Waits, with PINGPONG, until the other warpgroup has issued its wgmmas. The stage that is waited
 * for next is then at most one phase ahead. */
__device__ __forceinline__ void wait_turn(uint32_t order, int warpgroup, uint32_t tiles) {
  if (tiles + warpgroup > 0) mbarrier_wait(order + warpgroup * 8, (int)(tiles - 1 + warpgroup));
}

/* With FAST, the main loop over K: sum (M64, BLK_N / 8, fragment) = x (64 M64, BLK_K) of the
 * warpgroup by w (BLK_N, BLK_K) of each stage. Releases each stage when it has been read; `order`
 * lets the other warpgroup begin. */
template <typename A, typename C>
__device__ __forceinline__ void
main_loop(typename accumulator_of<A>::type (&sum)[C::M64][C::BLK_N / 8][4], uint32_t &count,
          uint32_t &last, uint32_t order, uint32_t base, uint32_t full, uint32_t empty, int inner,
          int k_tiles, int warpgroup, int lane) {
  constexpr int STAGES = C::STAGES, BLK_K = 128 / sizeof(A), M64 = C::M64;
  constexpr bool PINGPONG = C::PINGPONG, CODES = sizeof(A) == 1;
  auto release = [&](uint32_t stage) {
    if (lane == 0) mbarrier_arrive(empty + stage * 8);
  };
  for (int k = 0; k < k_tiles; k++) {
    uint32_t stage = count % STAGES;
    mbarrier_wait(full + stage * 8, (int)(count / STAGES));
    uint32_t stage_at = base + stage * C::STAGE_BYTES;
    uint64_t x = descriptor_128b(stage_at + (PINGPONG ? 0 : warpgroup * (64 * 128))),
             w = descriptor_128b(stage_at + C::X_BYTES);
    /* The second half of the last 128 bytes may be only zeros, as with 320 codes. */
    bool half = CODES && inner - k * BLK_K <= BLK_K / 2;
    auto multiply = [&](auto pieces) {
      wgmma_fence();
#pragma unroll
      for (int u = 0; u < M64; u++)
#pragma unroll
        for (int j = 0; j < decltype(pieces)::value; j++)
          wgmma<A>(sum[u], x + u * (64 * 128 >> 4) + j * 2, w + j * 2, j > 0 || k > 0);
      wgmma_commit();
    };
    if (half)
      multiply(std::integral_constant<int, 2>());
    else
      multiply(std::integral_constant<int, 4>());
    if (k > 0) { /* the stage before this one has been read */
      wgmma_wait<1>();
      release(last);
    }
    last = stage;
    count++;
  }
  if (PINGPONG && lane == 0) mbarrier_arrive(order + (1 - warpgroup) * 8);
  wgmma_wait<0>();
#pragma unroll
  for (int u = 0; u < M64; u++) fence_accumulators(sum[u]);
  release(last);
}

/* Where a lane writes a tile of results with stmatrix: its row, which of two neighbouring 16-byte
 * units, and the row's swizzle. */
struct stmatrix_lane {
  uint32_t row, unit, swizzle;
  static __device__ __forceinline__ stmatrix_lane of(int warp, int lane) {
    int row = warp * 16 + lane % 16;
    return {(uint32_t)row * 64, (uint32_t)(lane / 16), (uint32_t)(row / 2 % 4)};
  }
};

/* The epilogue of 64 rows: results to an output buffer, with the residual that stands there. */
template <bool CODES, typename T, typename C, typename Sum>
__device__ __forceinline__ void epilogue(uint32_t out, const stmatrix_lane &at, bool residual,
                                         const Sum (&sum)[C::BLK_N / 8][4],
                                         const float (&of_row)[2], const float4 *columns) {
#pragma unroll
  for (int i = 0; i < C::OUT_TILES; i++)
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t to = out + at.row + i * C::OUT_TILE_BYTES + ((j + at.unit) ^ at.swizzle) * 16,
               r[4] = {};
      if (residual) crk_ldmatrix(r, to);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int c = i * 4 + j + n;
        const auto &y = sum[c];
        float4 f = columns[c * 4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float2 more = crk_unpair<T>(r[2 * n + h]);
          float low = (float)y[2 * h], high = (float)y[2 * h + 1];
          if constexpr (CODES) {
            low = fmaf(low, of_row[h] * f.x, f.z) + more.x;
            high = fmaf(high, of_row[h] * f.y, f.w) + more.y;
          } else {
            low = low + f.z + more.x;
            high = high + f.w + more.y;
          }
          r[2 * n + h] = crk_pair<T>(low, high);
        }
      }
      stmatrix(to, r);
    }
}

/* The end of the epilogue: the warpgroup's results (64 M64, BLK_N) to output buffers p and
 * following, and out by TMA. */
template <bool CODES, typename T, typename C, typename Sum>
__device__ __forceinline__ void
store_results(const CUtensorMap &out_map, uint32_t out, uint32_t p, const stmatrix_lane &own,
              bool residual, const Sum (&sum)[C::M64][C::BLK_N / 8][4],
              const float (&of_row)[C::M64][2], const float4 *columns, int row, int column,
              int warpgroup, int thread) {
  constexpr int M64 = C::M64;
  named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
  for (int u = 0; u < M64; u++)
    epilogue<CODES, T, C>(out + (p + u) * C::OUT_BYTES, own, residual, sum[u], of_row[u], columns);
  fence_async_shared();
  named_barrier_sync(1 + warpgroup, 128);
  if (thread == 0)
    for (int u = 0; u < M64; u++)
      for (int i = 0; i < C::OUT_TILES; i++)
        tma_store(&out_map, column + i * 32, row + u * 64,
                  out + (p + u) * C::OUT_BYTES + i * C::OUT_TILE_BYTES);
}
#endif

} // namespace linear

#endif
