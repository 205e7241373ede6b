/* GEMMs on Hopper with the whole epilogue in one kernel:
 *
 *   out[m][n] = x[m] . w[n] + bias[n] + residual[m][n]
 *
 * for f16 or bf16, and for 8-bit codes, where the sum is multiplied by x_scale[m] w_scale[n] first.
 * x [rows inner], w [width inner], bias [width], residual and out [rows width] are f16 or bf16, but
 * x and w may be codes (int8, or E4M3); the scales are f32. The sums and the epilogue are f32, and
 * the result is rounded once.
 *
 * E4M3: the tensor cores keep some 14 bits of their sums. Unless FAST, each 128 elements of K are
 * summed in a fresh accumulator, which is added to a second one in f32 registers, so that only sums
 * of 128 products lose bits. That takes 2 x BLK_N / 2 registers of each thread, so a warpgroup's
 * tile is limited to 64 x 160.
 *
 * A block has three warpgroups. One thread of the last loads 128 rows of x and BLK_N rows of w, 128
 * bytes of K each, into a pipeline of STAGES; the other two are consumers. By default they share a
 * tile, 64 rows each (cooperative, as CUTLASS calls it). With PINGPONG each has tiles of its own,
 * so that one's wgmmas keep the tensor cores busy during the other's epilogue.
 *
 * Why these tiles: 160 columns divide all widths of the UNet, and tiles of 128 x 160 fill waves of
 * 132 multiprocessors to 97 % at its sizes from 2048 rows on. They do 142 operations for each byte
 * loaded with codes, and half as many with 16-bit numbers: enough where memory is the limit anyway
 * and where bias and residual are fused. Where it is not, tiles of 256 rows, with 98 operations,
 * were still slower than cuBLAS. The narrow tile (64 columns) is for codes with so few rows that
 * there are fewer wide tiles than multiprocessors.
 *
 * A warpgroup's results are staged in shared memory as TMA tiles of 64 x 32 (64-byte rows,
 * swizzled) and are written by TMA. There are two such output buffers, used in turn, and TMA loads
 * the residual into one of them a whole tile ahead; each thread then adds its results where it
 * reads the residual, with ldmatrix, which mirrors stmatrix. `out` may be the residual: a tile's
 * residual has been read before its results are written, and no other tile is touched.
 *
 * Sizes: any number of rows; a width that is a multiple of 8; rows of x and w whose length in bytes
 * is a multiple of 16. TMA reads zeros outside of a tensor, and writes nothing there. */
#ifndef CRK_LINEAR_HOPPER_H
#define CRK_LINEAR_HOPPER_H

#include <type_traits>

#include "device/hopper.h"
#include "linear/linear.h"

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

/* part = the products over N times 32 bytes of K; waits for them. */
template <typename A, int N, int M>
__device__ __forceinline__ void multiply_and_wait(typename accumulator_of<A>::type (&part)[M][4],
                                                  uint64_t x, uint64_t w) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < N; j++) wgmma<A>(part, x + j * 2, w + j * 2, j > 0);
  wgmma_commit_and_wait();
}

/* Where a lane writes a tile of results with stmatrix: its row, which of two neighbouring 16-byte
 * units, and the row's swizzle. */
struct stmatrix_lane {
  uint32_t row, unit, swizzle;
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
#endif

/* T: type of bias, residual and results. A: type of x and w, which is T or the codes' (hopper.h).
 * FAST: one sum over all of K. */
template <typename T, typename A, typename C, bool FAST>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map,
           const __grid_constant__ CUtensorMap residual_map, const sizes<T> s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int STAGES = C::STAGES, BLK_N = C::BLK_N, BLK_K = 128 / sizeof(A), M64 = C::M64;
  constexpr bool PINGPONG = C::PINGPONG, AHEAD = C::AHEAD, CODES = sizeof(A) == 1;
  static_assert(FAST || !PINGPONG, "registers of a thread");
  typedef typename accumulator_of<A>::type sum_type;
  /* mbarriers: (STAGES), (STAGES), (2 warpgroups, 2 output buffers), (2 warpgroups) */
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + C::BARRIERS_AT, empty = full + STAGES * 8;
  uint32_t residual_full = empty + STAGES * 8, order = residual_full + 4 * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int warpgroup = threadIdx.x / 128;
  int k_tiles = (s.inner + BLK_K - 1) / BLK_K;
  if (threadIdx.x == 0) {
    pipeline_init<STAGES>(full, empty, PINGPONG ? 4 : 8);
    for (int i = 0; i < 4; i++) mbarrier_init(residual_full + i * 8, 1);
    for (int i = 0; i < 2; i++) mbarrier_init(order + i * 8, 4);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warpgroup == 2) {
    run_producer(&x_map, &w_map, [&] { load<A, C>(x_map, w_map, s, base, full, empty, k_tiles); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    float *own_factors = (float *)(shared + C::FACTORS_AT + warpgroup * BLK_N * 8);
    const float4 *columns = (const float4 *)own_factors + lane % 4;
    uint32_t out = base + C::OUT_AT + warpgroup * C::OUT_BUFFERS * C::OUT_BYTES;
    int row16 = warp * 16 + lane % 16;
    const stmatrix_lane own = {(uint32_t)row16 * 64, (uint32_t)(lane / 16),
                               (uint32_t)(row16 / 2 % 4)};
    uint32_t count = 0, last = 0; /* pipeline stages consumed so far; the one to release next */
    uint32_t tiles = 0;
    auto release = [&](uint32_t stage) {
      if (lane == 0) mbarrier_arrive(empty + stage * 8);
    };
    /* By one thread: starts loading the residual of a tile's 64 rows into output buffer p. */
    auto load_residual = [&](const tile_scheduler<C::GROUP_M, sizes<T>> &at, uint32_t p) {
      uint32_t barrier = residual_full + (warpgroup * 2 + p) * 8;
      mbarrier_expect(barrier, C::OUT_BYTES);
      for (int i = 0; i < C::OUT_TILES; i++)
        tma_load(out + p * C::OUT_BYTES + i * C::OUT_TILE_BYTES, &residual_map,
                 at.column * BLK_N + i * 32, at.row * C::BLK_M + (PINGPONG ? p : warpgroup) * 64,
                 barrier);
    };
    sum_type sum[M64][BLK_N / 8][4]; // (M64, BLK_N / 8, fragment)
    tile_scheduler<C::GROUP_M, sizes<T>> at(s);
    /* Skips the other warpgroup's tile. */
    auto skip = [&] {
      at.advance(s);
      count += (uint32_t)k_tiles;
    };
    if (PINGPONG && warpgroup == 1) skip();
    if (AHEAD && thread == 0 && s.residual && at.valid(s)) load_residual(at, 0);
    for (; at.valid(s); tiles++) {
      int row = at.row * C::BLK_M + (PINGPONG ? 0 : warpgroup * 64), column = at.column * BLK_N;
      /* ---- the epilogue's factors, of two columns and of this thread's rows in the accumulator,
       * are loaded while the main loop runs ---- */
      float scale[2] = {}, of_row[M64][2] = {};
      T bias[2] = {};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int c = thread + i * 128;
        if (c < BLK_N && column + c < s.width) {
          if (CODES) scale[i] = s.w_scale[column + c];
          if (s.bias) bias[i] = s.bias[column + c];
        }
#pragma unroll
        for (int u = 0; u < M64; u++) {
          int r = row + u * 64 + warp * 16 + lane / 4 + i * 8;
          if (CODES && r < s.rows) of_row[u][i] = s.x_scale ? s.x_scale[r] : 1.0f;
        }
      }
      if (!AHEAD) {
        if (thread == 0 && s.residual) {
          tma_store_wait<0>();
          for (uint32_t u = 0; u < M64; u++) load_residual(at, u);
        }
        __syncwarp();
      }
      if (PINGPONG) {
        /* Waits until the other warpgroup has issued its wgmmas. The stage that is waited for next
         * is then at most one phase ahead. */
        if (tiles + warpgroup > 0)
          mbarrier_wait(order + warpgroup * 8, (int)(tiles - 1 + warpgroup));
      }

      /* ---- main loop ---- */
      if (!FAST)
#pragma unroll
        for (int i = 0; i < BLK_N / 8; i++)
#pragma unroll
          for (int e = 0; e < 4; e++) sum[0][i][e] = 0;
      for (int k = 0; k < k_tiles; k++) {
        uint32_t stage = count % STAGES;
        mbarrier_wait(full + stage * 8, (int)(count / STAGES));
        uint32_t stage_at = base + stage * C::STAGE_BYTES;
        uint64_t x = descriptor_128b(stage_at + (PINGPONG ? 0 : warpgroup * (64 * 128))),
                 w = descriptor_128b(stage_at + C::X_BYTES);
        /* The second half of the last 128 bytes may be only zeros, as with 320 codes. */
        bool half = CODES && s.inner - k * BLK_K <= BLK_K / 2;
        if constexpr (FAST) {
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
        } else {
          sum_type part[BLK_N / 8][4];
          if (half)
            multiply_and_wait<A, 2>(part, x, w);
          else
            multiply_and_wait<A, 4>(part, x, w);
          fence_accumulators(part);
          release(stage);
#pragma unroll
          for (int i = 0; i < BLK_N / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[0][i][e] += part[i][e];
        }
        count++;
      }
      if constexpr (FAST) {
        if (PINGPONG && lane == 0) mbarrier_arrive(order + (1 - warpgroup) * 8);
        wgmma_wait<0>();
#pragma unroll
        for (int u = 0; u < M64; u++) fence_accumulators(sum[u]);
        release(last);
      }

      /* ---- epilogue: output buffers take turns, or (PINGPONG) are the two halves of a tile ----
       */
      uint32_t p = AHEAD ? tiles % 2 : 0;
      if (PINGPONG) skip();
      at.advance(s);
      if (thread == 0) {
        if (AHEAD || !s.residual)
          tma_store_wait<0>(); /* all tiles before this one have left their output buffers */
        if (AHEAD && s.residual && at.valid(s)) load_residual(at, 1 - p);
      }
      share_factors<CODES, C>(own_factors, scale, bias, thread);
      if (s.residual)
        for (uint32_t u = 0; u < M64; u++)
          mbarrier_wait(residual_full + (warpgroup * 2 + p + u) * 8,
                        (int)(AHEAD ? tiles / 2 : tiles));
      named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
      for (int u = 0; u < M64; u++)
        epilogue<CODES, T, C>(out + (p + u) * C::OUT_BYTES, own, s.residual, sum[u], of_row[u],
                              columns);
      fence_async_shared();
      named_barrier_sync(1 + warpgroup, 128);
      if (thread == 0)
        for (int u = 0; u < M64; u++)
          for (int i = 0; i < C::OUT_TILES; i++)
            tma_store(&out_map, column + i * 32, row + u * 64,
                      out + (p + u) * C::OUT_BYTES + i * C::OUT_TILE_BYTES);
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

/* ---- launches ---- */

/* Queues one GEMM that tensor maps can describe: a and b are dense along K, all rows begin at
 * multiples of 16 bytes, the batch is 1, and there is no activation. */
template <typename T, typename A, typename C, bool FAST>
int launch(crk_device *d, const crk_gemm *p) {
  auto kernel = linear::kernel<T, A, C, FAST>;
  CRK_TRY(p->name, d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  sizes<T> s = {};
  s.x_scale = p->a_scale, s.w_scale = p->b_scale;
  s.bias = (const T *)p->bias;
  s.rows = (int)p->m, s.width = (int)p->n, s.inner = (int)p->k;
  s.row_tiles = (int)crk_ceil_div(p->m, C::BLK_M);
  s.column_tiles = (int)crk_ceil_div(p->n, C::BLK_N);
  s.residual = p->residual.p != NULL;
  const CUtensorMapDataType half = p->dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            own = sizeof(A) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : half;
  const int size = sizeof(A), inner = 128 / size;
  CUtensorMap x, w, out, residual;
  bool ok =
      make_tensor_map(&x, own, size, p->a.p, p->m, p->k, p->a.row_step * size, inner, C::BLK_M) &&
      make_tensor_map(&w, own, size, p->b.p, p->n, p->k, p->b.column_step * size, inner,
                      C::BLK_N) &&
      make_tensor_map(&out, half, 2, p->out.p, p->m, p->n, p->out.row_step * 2, C::OUT_N, 64);
  residual = out;
  if (ok && s.residual)
    ok = make_tensor_map(&residual, half, 2, p->residual.p, p->m, p->n, p->residual.row_step * 2,
                         C::OUT_N, 64);
  if (!ok)
    return cr__fail(CR_EDEVICE, "%s: the driver refuses tensor maps for %lld x %lld x %lld",
                    p->name, (long long)p->m, (long long)p->k, (long long)p->n);
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  int blocks = tiles < d->multiprocessors ? (int)tiles : d->multiprocessors;
  kernel<<<(unsigned)blocks, C::THREADS, C::BYTES, d->stream>>>(x, w, out, residual, s);
  return crk_launched(p->name, d);
}

} // namespace linear

#endif
