/* Products by Hopper's own instructions, with all that belongs to them, of rows of 16-bit numbers:
 *
 *   out[m][n] = x[m] . w[n] + bias[n] + residual[m][n]
 *
 * and of E4M3 codes, where the sum is multiplied by x_scale[m] w_scale[n] first. x [rows inner], w
 * [width inner], bias [width], residual and out [rows width] f16 or bf16, as x and w are unless
 * they are codes; the scales f32. Sums and what stands behind them are f32 and rounded once.
 *
 * Codes: the tensor cores keep some 14 bits of a sum of theirs. Unless FAST, each 128 of the inner
 * dimension are summed afresh and added to a second set of f32 registers, so that only sums of 128
 * products are cut. That takes 2 x COLUMNS / 2 registers of each thread, whence a group has 64 x
 * 160 at most.
 *
 * Three groups of four warps. One thread of the last fetches 128 rows of x and COLUMNS of w, 128
 * bytes of each, into a ring of STAGES; the other two groups multiply 64 rows each. With TURNS they
 * have tiles of their own, one after another, so that one's products keep the tensor cores busy
 * while the other goes through its epilogue.
 *
 * 160 columns divide all widths of the UNet, and the tiles of 128 x 160 fill rounds of 132
 * multiprocessors to 97 % at its sizes from 2048 rows on. For a byte that is fetched they make 142
 * operations with codes, half as many with 16-bit numbers: enough where memory is the limit anyway
 * and bias and residual come along. Where it is not, tiles of 256 rows, with 98 operations, were
 * slower still than the library. The narrow tile (64 columns) is for few rows of codes, of which
 * there are fewer tiles than multiprocessors.
 *
 * A group's results stand in shared memory as boxes of 64 x 32 (64-byte rows, units exchanged as
 * bulk copies do it) and leave by bulk copies. There are two such places, used in turns, and the
 * residual comes into one by bulk copies a whole tile ahead; each thread then adds where it reads,
 * by the matrix loads that mirror the matrix stores. out may be residual: a tile's residual has
 * been read before its results are written, and no other tile's is touched.
 *
 * Sizes: any number of rows, width a multiple of 8, inner such that lines are multiples of 16 bytes
 * (bulk copies bring zeros for what is outside, and write none of it). */
#ifndef CRK_LINEAR_HOPPER_H
#define CRK_LINEAR_HOPPER_H

#include <type_traits>

#include "device/hopper.h"
#include "linear/linear.h"

namespace linear {

using namespace hopper;

template <int COLUMNS_, int STAGES_, int M64_ = 1, int PLACES_ = 2> struct tile {
  static constexpr int COLUMNS = COLUMNS_, STAGES = STAGES_, M64 = M64_, THREADS = 384, ROWS = 128;
  static constexpr bool TURNS = M64 == 2; /* a group has all rows of every other tile */
  static constexpr int PLACES = PLACES_;  /* of 64 rows of a group's results */
  static constexpr int X_BYTES = ROWS * 128, STAGE = X_BYTES + COLUMNS * 128;
  static constexpr int WIDE = 32, BOXES = COLUMNS / WIDE, BOX = 64 * WIDE * 2;
  static constexpr int PLACE = BOXES * BOX; /* 64 rows of a group's results */
  static constexpr int OUT_AT = STAGES * STAGE, FACTORS_AT = OUT_AT + 2 * PLACES * PLACE;
  static constexpr int BARRIERS_AT = FACTORS_AT + 2 * COLUMNS * 8;
  static constexpr int BYTES = BARRIERS_AT + (2 * STAGES + 6) * 8;
  static constexpr int GROUP = 16;      /* row tiles that take all columns before the next ones */
  static constexpr int REGISTERS = 232; /* of 168: the fetching group keeps 40 */
  static_assert(COLUMNS % 32 == 0 && COLUMNS <= 256, "boxes");
  static_assert(STAGE % 1024 == 0, "swizzled rows");
  static_assert(BYTES <= 232448, "shared memory of a block");
};

template <typename T> struct sizes {
  const float *x_scale, *w_scale; /* of codes */
  const T *bias;                  /* or NULL */
  int rows, width, inner;
  int row_tiles, column_tiles;
  int residual; /* whether there is one */
};

/* part = the products over N times 32 bytes of the inner dimension; returns when they are made. */
template <typename A, int N, int M>
__device__ __forceinline__ void pieces(typename accumulator_of<A>::type (&part)[M][4], uint64_t a,
                                       uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < N; j++) wgmma<A>(part, a + j * 2, b + j * 2, j > 0);
  wgmma_commit_and_wait();
#endif
}

/* T: of bias, residual and results; A: of x and w, T or that of codes (hopper.h); FAST: one sum
 * over all of the inner dimension. */
template <typename T, typename A, typename C, bool FAST>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map,
           const __grid_constant__ CUtensorMap residual_map, const sizes<T> s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int STAGES = C::STAGES, COLUMNS = C::COLUMNS;
  constexpr int INNER = 128 / sizeof(A); /* of a stage */
  constexpr int M64 = C::M64;
  constexpr bool TURNS = C::TURNS;
  /* A residual comes a tile ahead; otherwise when its own tile begins. */
  constexpr bool AHEAD = !TURNS && C::PLACES == 2;
  constexpr bool CODES = sizeof(A) == 1;
  static_assert(FAST || !TURNS, "registers of a thread");
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + C::BARRIERS_AT, empty = full + STAGES * 8, brought = empty + STAGES * 8;
  uint32_t turn_of = brought + 4 * 8; /* TURNS: a group's turn to multiply */
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int group = threadIdx.x / 128;
  int steps = (s.inner + INNER - 1) / INNER;
  if (threadIdx.x == 0) {
    pipeline_init<STAGES>(full, empty, C::TURNS ? 4 : 8);
    for (int i = 0; i < 4; i++) mbarrier_init(brought + i * 8, 1);
    for (int i = 0; i < 2; i++) mbarrier_init(turn_of + i * 8, 4);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (group == 2) {
    run_producer(&x_map, &w_map, [&] {
      pipeline_state<STAGES> in;
      for (tile_scheduler<C::GROUP, sizes<T>> at(s); at.valid(s); at.advance(s))
        for (int k = 0; k < steps; k++, in.advance()) {
          in.wait_empty(empty);
          uint32_t to = base + in.stage * C::STAGE, barrier = full + in.stage * 8;
          mbarrier_expect(barrier, C::STAGE);
          tma_load(to, &x_map, k * INNER, at.row * C::ROWS, barrier);
          tma_load(to + C::X_BYTES, &w_map, k * INNER, at.column * COLUMNS, barrier);
        }
    });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    float *own_factors = (float *)(shared + C::FACTORS_AT + group * COLUMNS * 8);
    const float4 *factors = (const float4 *)own_factors + lane % 4;
    uint32_t places = base + C::OUT_AT + group * C::PLACES * C::PLACE;
    /* Of stmatrix: the lane's row, and which of two neighbouring units. */
    int row16 = warp * 16 + lane % 16;
    uint32_t lane_at = (uint32_t)row16 * 64, odd = lane / 16, turn = row16 / 2 % 4;
    uint32_t count = 0, last = 0; /* stages so far; the one to give back */
    uint32_t tiles = 0;
    auto release = [&](uint32_t stage) {
      if (lane == 0) mbarrier_arrive(empty + stage * 8);
    };
    /* By one thread: the residual of a tile's 64 rows on its way to place `p`. */
    auto bring = [&](const tile_scheduler<C::GROUP, sizes<T>> &at, uint32_t p) {
      uint32_t barrier = brought + (group * 2 + p) * 8;
      mbarrier_expect(barrier, C::PLACE);
      for (int i = 0; i < C::BOXES; i++)
        tma_load(places + p * C::PLACE + i * C::BOX, &residual_map, at.column * COLUMNS + i * 32,
                 at.row * C::ROWS + (TURNS ? p : group) * 64, barrier);
    };
    typename accumulator_of<A>::type sum[M64][COLUMNS / 8][4];
    tile_scheduler<C::GROUP, sizes<T>> at(s);
    auto skip = [&] { /* the other group's tile */
                      at.advance(s);
                      count += (uint32_t)steps;
    };
    if (TURNS && group == 1) skip();
    if (AHEAD && thread == 0 && s.residual && at.valid(s)) bring(at, 0);
    for (; at.valid(s); tiles++) {
      int row = at.row * C::ROWS + (TURNS ? 0 : group * 64), column = at.column * COLUMNS;
      /* Factors on their way while the products are made: of two columns and two rows a thread. */
      float scale[2] = {}, of_row[M64][2] = {};
      T bias[2] = {};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int c = thread + i * 128;
        if (c < COLUMNS && column + c < s.width) {
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
          for (uint32_t u = 0; u < M64; u++) bring(at, u);
        }
        __syncwarp();
      }
      if (TURNS) {
        /* Until the other group has handed in its products: what is waited for next is then the
         * ring's next phase at most. */
        if (tiles + group > 0) mbarrier_wait(turn_of + group * 8, (int)(tiles - 1 + group));
      }
      if (!FAST)
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; i++)
#pragma unroll
          for (int e = 0; e < 4; e++) sum[0][i][e] = 0;
      for (int k = 0; k < steps; k++) {
        uint32_t stage = count % STAGES;
        mbarrier_wait(full + stage * 8, (int)(count / STAGES));
        uint32_t stage_at = base + stage * C::STAGE;
        uint64_t a = descriptor_128b(stage_at + (TURNS ? 0 : group * (64 * 128))),
                 b = descriptor_128b(stage_at + C::X_BYTES);
        /* Of the last 128 bytes, the second half may be nothing but zeros: that of 320 codes. */
        bool half = CODES && s.inner - k * INNER <= INNER / 2;
        if constexpr (FAST) {
          auto multiply = [&](auto pieces) {
            wgmma_fence();
#pragma unroll
            for (int u = 0; u < M64; u++)
#pragma unroll
              for (int j = 0; j < decltype(pieces)::value; j++)
                wgmma<A>(sum[u], a + u * (64 * 128 >> 4) + j * 2, b + j * 2, j > 0 || k > 0);
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
          typename accumulator_of<A>::type part[COLUMNS / 8][4];
          if (half)
            pieces<A, 2>(part, a, b);
          else
            pieces<A, 4>(part, a, b);
          fence_accumulators(part);
          release(stage);
#pragma unroll
          for (int i = 0; i < COLUMNS / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[0][i][e] += part[i][e];
        }
        count++;
      }
      if constexpr (FAST) {
        if (TURNS && lane == 0) mbarrier_arrive(turn_of + (1 - group) * 8);
        wgmma_wait<0>();
#pragma unroll
        for (int u = 0; u < M64; u++) fence_accumulators(sum[u]);
        release(last);
      }

      /* Two places of 64 rows take turns, or (TURNS) belong to both halves of a tile. */
      uint32_t p = AHEAD ? tiles % 2 : 0;
      if (TURNS) skip();
      at.advance(s);
      if (thread == 0) {
        if (AHEAD || !s.residual)
          tma_store_wait<0>(); /* the tile before this one has left its place, as all before */
        if (AHEAD && s.residual && at.valid(s)) bring(at, 1 - p);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) { /* {two scales, two biases} of each pair of columns */
        int c = thread + i * 128;
        if (c < COLUMNS) {
          float *to = own_factors + c / 2 * 4 + c % 2;
          if (CODES) to[0] = scale[i];
          to[2] = crk_float(bias[i]);
        }
      }
      if (s.residual)
        for (uint32_t u = 0; u < M64; u++)
          mbarrier_wait(brought + (group * 2 + p + u) * 8, (int)(AHEAD ? tiles / 2 : tiles));
      named_barrier_sync(1 + group, 128);
#pragma unroll
      for (int u = 0; u < M64; u++)
#pragma unroll
        for (int box = 0; box < C::BOXES; box++)
#pragma unroll
          for (int j = 0; j < 4; j += 2) {
            uint32_t to = places + (p + u) * C::PLACE + lane_at + box * C::BOX +
                          ((j + odd) ^ turn) * 16,
                     r[4] = {};
            if (s.residual) crk_ldmatrix(r, to);
#pragma unroll
            for (int n = 0; n < 2; n++) {
              const int c = box * 4 + j + n;
              const auto &y = sum[u][c];
              float4 f = factors[c * 4];
#pragma unroll
              for (int h = 0; h < 2; h++) {
                float2 more = crk_unpair<T>(r[2 * n + h]);
                float low = (float)y[2 * h], high = (float)y[2 * h + 1];
                if constexpr (CODES) {
                  low = fmaf(low, of_row[u][h] * f.x, f.z) + more.x;
                  high = fmaf(high, of_row[u][h] * f.y, f.w) + more.y;
                } else {
                  low = low + f.z + more.x;
                  high = high + f.w + more.y;
                }
                r[2 * n + h] = crk_pair<T>(low, high);
              }
            }
            stmatrix(to, r);
          }
      fence_async_shared();
      named_barrier_sync(1 + group, 128);
      if (thread == 0)
        for (int u = 0; u < M64; u++)
          for (int i = 0; i < C::BOXES; i++)
            tma_store(&out_map, column + i * 32, row + u * 64,
                      places + (p + u) * C::PLACE + i * C::BOX);
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

/* ---- launches ---- */

/* One product of those that the maps can describe: a's and b's dense along the inner dimension,
 * all lines at multiples of 16 bytes, batch 1, no activation. */
template <typename T, typename A, typename C, bool FAST>
int launch(crk_device *d, const crk_gemm *p) {
  auto kernel = linear::kernel<T, A, C, FAST>;
  CRK_TRY(p->name, d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  sizes<T> s = {};
  s.x_scale = p->a_scale, s.w_scale = p->b_scale;
  s.bias = (const T *)p->bias;
  s.rows = (int)p->m, s.width = (int)p->n, s.inner = (int)p->k;
  s.row_tiles = (int)crk_ceil_div(p->m, C::ROWS);
  s.column_tiles = (int)crk_ceil_div(p->n, C::COLUMNS);
  s.residual = p->residual.p != NULL;
  const CUtensorMapDataType half = p->dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            own = sizeof(A) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : half;
  const int size = sizeof(A), inner = 128 / size;
  CUtensorMap x, w, out, residual;
  bool ok =
      make_tensor_map(&x, own, size, p->a.p, p->m, p->k, p->a.row_step * size, inner, C::ROWS) &&
      make_tensor_map(&w, own, size, p->b.p, p->n, p->k, p->b.column_step * size, inner,
                      C::COLUMNS) &&
      make_tensor_map(&out, half, 2, p->out.p, p->m, p->n, p->out.row_step * 2, C::WIDE, 64);
  residual = out;
  if (ok && s.residual)
    ok = make_tensor_map(&residual, half, 2, p->residual.p, p->m, p->n, p->residual.row_step * 2,
                         C::WIDE, 64);
  if (!ok)
    return cr__fail(CR_EDEVICE, "%s: the driver cannot describe %lld x %lld x %lld", p->name,
                    (long long)p->m, (long long)p->k, (long long)p->n);
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  int blocks = tiles < d->multiprocessors ? (int)tiles : d->multiprocessors;
  kernel<<<(unsigned)blocks, C::THREADS, C::BYTES, d->stream>>>(x, w, out, residual, s);
  return crk_launched(p->name, d);
}

} // namespace linear

#endif
