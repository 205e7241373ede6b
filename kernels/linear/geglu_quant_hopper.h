/* The GEMM of a GEGLU layer on Hopper, of int8 or E4M3 codes, with GEGLU in the epilogue:
 *
 *   out[m][n] = v gelu(g),  v = (x[m] . w[n]) x_scale[m] w_scale[n] + bias[n],
 *                           g = the same of w's row width + n
 *
 * x [rows inner] and w [2 width, inner] are codes (A), x_scale [rows] (NULL: 1) and w_scale
 * [2 width] are f32, bias [2 width] is f16 or bf16 (T) or NULL. out [rows width] is T, or the codes
 * that the next layer takes: of v / divisor[n] gelu(g).
 *
 * Tiles and warpgroups are those of geglu_hopper.h, at twice the operations for each byte. A
 * ping-pong schedule, where one warpgroup's GELUs overlap the other's wgmmas, would need tiles of
 * half the columns: these read and write more of shared memory than it can deliver (158 bytes a
 * cycle), and took up to twice as long on an H200.
 *
 * Results are staged in shared memory, and written by TMA. Sizes: any number of rows; the width is
 * a multiple of 8 (of 16 where results are codes), inner of 16. */
#ifndef CRK_GEGLU_QUANT_H
#define CRK_GEGLU_QUANT_H

#include "device/codes.h"
#include "device/hopper.h"
#include "linear/geglu_hopper.h"

namespace geglu_quant {

using namespace hopper;
using geglu::BLK_M;
using geglu::BLK_N;
using geglu::GROUP_M;
using geglu::OUT_AT;
using geglu::REGISTERS;
using geglu::STAGE_BYTES;
using geglu::STAGES;
using geglu::THREADS;
using geglu::X_BYTES;

enum {
  OUT_TILE_BYTES = 64 * 64, /* 64 rows by 32 results, or by 64 codes */
  OUT_TILES = 2,            /* of a warpgroup on their way out */
  FACTORS_AT = OUT_AT + 2 * OUT_TILES * OUT_TILE_BYTES,
  BARRIERS_AT = FACTORS_AT + 2 * 2 * BLK_N * 8,
  BYTES = BARRIERS_AT + 2 * STAGES * 8
};
static_assert(BYTES <= 232448, "shared memory of a block");

typedef struct sizes {
  const float *x_scale, *w_scale, *divisor; /* divisor: of results that become codes */
  int rows, width, inner;                   /* M, N, K */
  int row_tiles, column_tiles;
  bool e4m3; /* codes are E4M3, else int8 */
} sizes;

/* v gelu(g) for results that become codes, whose steps are coarser than this one's error: 3e-4 of
 * gelu plus that of tanh.approx, up to 2e-4 g. It takes a third of geglu::gelu's instructions,
 * which would take longer than the wgmmas of 320 codes. */
__device__ __forceinline__ float times_gelu(float v, float g) {
  float half = 0.5f * g, t;
  float u = g * fmaf(0.03470095f, g * g, 0.80015694f);
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
  return v * fmaf(half, t, half);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Two neighbouring results: scaled, biased and activated. `pair`: {two scales, two biases} of the
 * values' columns, `gate_pair` of the gates'; k: the row's scale. */
template <bool CODES, typename Sum>
__device__ __forceinline__ float2 activate(const Sum *v, const Sum *g, float k, const float4 &pair,
                                           const float4 &gate_pair) {
  float low = fmaf((float)v[0], k * pair.x, pair.z), high = fmaf((float)v[1], k * pair.y, pair.w);
  float low_gate = fmaf((float)g[0], k * gate_pair.x, gate_pair.z),
        high_gate = fmaf((float)g[1], k * gate_pair.y, gate_pair.w);
  if constexpr (CODES)
    return make_float2(times_gelu(low, low_gate), times_gelu(high, high_gate));
  else
    return make_float2(low * geglu::gelu(low_gate), high * geglu::gelu(high_gate));
}

/* The epilogue of part of a warpgroup's results, of_part blocks of 8 columns: activated, to the
 * output tiles at `out`. lane_at, unit and swizzle are the lane's for stmatrix. */
template <typename T, bool CODES, typename Sum>
__device__ __forceinline__ void epilogue(uint32_t out, uint32_t lane_at, uint32_t unit,
                                         uint32_t swizzle, int part, const int of_part,
                                         const Sum (&sum)[BLK_N / 4][4], const float4 *factors,
                                         const float (&of_row)[2], bool e4m3, int warp, int lane) {
#pragma unroll
  for (int j = 0; j < of_part; j += 2) {
    uint32_t r[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int c = part * of_part + j + n;
      const auto &v = sum[c], &g = sum[BLK_N / 8 + c];
      float4 f = factors[c * 4], e = factors[BLK_N / 2 + c * 4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float2 y = activate<CODES>(v + 2 * h, g + 2 * h, of_row[h], f, e);
        if constexpr (CODES) {
          uint32_t two = e4m3 ? crk_code<uint8_t>::two(y.x, y.y) : crk_code<int8_t>::two(y.x, y.y);
          int line = warp * 16 + lane / 4 + h * 8;
          uint32_t to = out + c / 8 * OUT_TILE_BYTES + line * 64 +
                        ((c % 8 / 2) ^ (line / 2 % 4)) * 16 + c % 2 * 8 + lane % 4 * 2;
          asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"((uint16_t)two) : "memory");
        } else {
          r[2 * n + h] = crk_pair<T>(y.x, y.y);
        }
      }
    }
    if constexpr (!CODES)
      stmatrix(out + j / 4 * OUT_TILE_BYTES + lane_at + ((j % 4 + unit) ^ swizzle) * 16, r);
  }
}

/* A thread's factors: of one column's value and gate, and of two rows of sums. */
template <typename T> struct thread_factors {
  float of_row[2] = {}, inverse = 0;
  T bias[2] = {};
  float scale[2] = {};
};

/* Load of the factors; their latency is hidden by the main loop. */
template <typename T, bool CODES>
__device__ __forceinline__ void load_factors(thread_factors<T> &f, const T *bias, const sizes &s,
                                             int row, int column, int thread, int warp, int lane) {
  if (column + thread < s.width) {
    int c = column + thread;
    f.scale[0] = s.w_scale[c], f.scale[1] = s.w_scale[s.width + c];
    if (bias) f.bias[0] = bias[c], f.bias[1] = bias[s.width + c];
    if (CODES) f.inverse = crk_inverse(s.divisor[c]);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int r = row + warp * 16 + lane / 4 + i * 8;
    if (r < s.rows) f.of_row[i] = s.x_scale ? s.x_scale[r] : 1.0f;
  }
}

/* The main loop over K: sum (2 BLK_N / 8, fragment) = x (64, 128) of the warpgroup by w (2 BLK_N,
 * 128) of each stage. `count` stages have been consumed so far. Releases each stage when it has
 * been read. */
template <typename A>
__device__ __forceinline__ void main_loop(typename accumulator_of<A>::type (&sum)[BLK_N / 4][4],
                                          uint32_t &count, uint32_t &last, uint32_t base,
                                          uint32_t full, uint32_t empty, int inner, int k_tiles,
                                          int warpgroup, int lane) {
  for (int k = 0; k < k_tiles; k++) {
    uint32_t stage = count % STAGES;
    mbarrier_wait(full + stage * 8, (int)(count / STAGES));
    uint64_t x = descriptor_128b(base + stage * STAGE_BYTES + warpgroup * (64 * 128)),
             w = descriptor_128b(base + stage * STAGE_BYTES + X_BYTES);
    auto multiply = [&](auto pieces) {
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < decltype(pieces)::value; j++)
        wgmma<A>(sum, x + j * 2, w + j * 2, j > 0 || k > 0);
      wgmma_commit();
    };
    /* The second half of the last 128 codes may be only zeros, as with 320. */
    if (inner - k * 128 <= 64)
      multiply(std::integral_constant<int, 2>());
    else
      multiply(std::integral_constant<int, 4>());
    if (k > 0) { /* the stage before this one has been read */
      wgmma_wait<1>();
      if (lane == 0) mbarrier_arrive(empty + last * 8);
    }
    last = stage;
    count++;
  }
  wgmma_wait<0>();
  fence_accumulators(sum);
  if (lane == 0) mbarrier_arrive(empty + last * 8);
}

/* Epilogue, first: the factors of the columns (2, BLK_N / 2, 4) go to shared memory: {two scales,
 * two biases} of each pair of values, then of gates. */
template <typename T, bool CODES>
__device__ __forceinline__ void store_factors(float *own_factors, const thread_factors<T> &f,
                                              int thread) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float *to = own_factors + i * 2 * BLK_N + thread / 2 * 4 + thread % 2;
    float factor = CODES && i == 0 ? f.inverse : 1.0f; /* a value is divided before GEGLU */
    to[0] = f.scale[i] * factor;
    to[2] = crk_float(f.bias[i]) * factor;
  }
}

/* Epilogue, second: the warpgroup's results (64, BLK_N) go through shared memory and out by TMA,
 * two output tiles (64, 32), or (64, 64) of codes, at a time. */
template <typename T, bool CODES, typename Sum>
__device__ __forceinline__ void
store_results(const CUtensorMap &out_map, uint32_t out, uint32_t lane_at, uint32_t unit,
              uint32_t swizzle, const Sum (&sum)[BLK_N / 4][4], const float4 *factors,
              const float (&of_row)[2], bool e4m3, int row, int column, int warpgroup, int thread,
              int warp, int lane) {
  if (thread == 0) tma_store_wait<0>();
  named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
  for (int part = 0; part < (CODES ? 1 : 2); part++) {
    if (part > 0) {
      if (thread == 0) tma_store_wait<0>();
      named_barrier_sync(1 + warpgroup, 128);
    }
    const int of_part = CODES ? BLK_N / 8 : BLK_N / 16; /* blocks of 8 columns */
    epilogue<T, CODES>(out, lane_at, unit, swizzle, part, of_part, sum, factors, of_row, e4m3, warp,
                       lane);
    fence_async_shared();
    named_barrier_sync(1 + warpgroup, 128);
    if (thread == 0)
      for (int i = 0; i < OUT_TILES; i++)
        tma_store(&out_map, column + (CODES ? i * 64 : part * 64 + i * 32), row,
                  out + i * OUT_TILE_BYTES);
  }
}
#endif

/* CODES: the results are codes. */
template <typename A, typename T, bool CODES>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map, const T *bias, const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + BARRIERS_AT, empty = full + STAGES * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int warpgroup = threadIdx.x / 128;
  int k_tiles = (s.inner + 127) / 128;
  if (threadIdx.x == 0) {
    pipeline_init<STAGES>(full, empty);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warpgroup == 2) {
    run_producer(&x_map, &w_map,
                 [&] { geglu::load<A>(x_map, w_map, s, base, full, empty, k_tiles); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)REGISTERS));
    float *own_factors = (float *)(shared + FACTORS_AT + warpgroup * 2 * BLK_N * 8);
    const float4 *factors = (const float4 *)own_factors + lane % 4;
    uint32_t out = base + OUT_AT + warpgroup * OUT_TILES * OUT_TILE_BYTES;
    /* For stmatrix: the lane's row of 64 bytes, which of two neighbouring units, the swizzle. */
    int row16 = warp * 16 + lane % 16;
    uint32_t lane_at = (uint32_t)row16 * 64, unit = lane / 16, swizzle = row16 / 2 % 4;
    uint32_t count = 0, last = 0; /* pipeline stages consumed so far; the one to release next */
    typename accumulator_of<A>::type sum[BLK_N / 4][4]; // (2 BLK_N / 8, fragment): values, gates
    for (tile_scheduler<GROUP_M, sizes> at(s); at.valid(s); at.advance(s)) {
      int row = at.row * BLK_M + warpgroup * 64, column = at.column * BLK_N;
      thread_factors<T> f;
      load_factors<T, CODES>(f, bias, s, row, column, thread, warp, lane);
      main_loop<A>(sum, count, last, base, full, empty, s.inner, k_tiles, warpgroup, lane);
      store_factors<T, CODES>(own_factors, f, thread);
      store_results<T, CODES>(out_map, out, lane_at, unit, swizzle, sum, factors, f.of_row, s.e4m3,
                              row, column, warpgroup, thread, warp, lane);
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

/* One GEMM; out_codes is 0 for results of T, else CR_I8 or CR_U8. */
template <typename A, typename T> struct job {
  const A *x, *w;
  const T *bias;
  void *out;
  int out_codes;
  sizes s;
};

template <typename A, typename T, bool CODES> int launch(crk_device *d, job<A, T> j) {
  static const char name[] = "linear_geglu";
  auto kernel = geglu_quant::kernel<A, T, CODES>;
  CRK_TRY(name, d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  sizes &s = j.s;
  s.row_tiles = (int)crk_ceil_div(s.rows, BLK_M);
  s.column_tiles = (int)crk_ceil_div(s.width, BLK_N);
  s.e4m3 = j.out_codes == CR_U8;
  const CUtensorMapDataType bytes = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                            own = CODES ? bytes
                                  : std::is_same<T, __half>::value
                                      ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int size = CODES ? 1 : 2;
  CUtensorMap x, w, out;
  if (!make_tensor_map(&x, bytes, 1, (void *)j.x, s.rows, s.inner, s.inner, 128, BLK_M) ||
      !make_tensor_map(&w, bytes, 1, (void *)j.w, 2 * (int64_t)s.width, s.inner, s.inner, 128,
                       BLK_N) ||
      !make_tensor_map(&out, own, size, j.out, s.rows, s.width, (int64_t)s.width * size, 64 / size,
                       64))
    return cr__fail(CR_EDEVICE, "%s: the driver refuses tensor maps for %d x %d x %d", name, s.rows,
                    s.inner, s.width);
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  unsigned blocks = (unsigned)(tiles < d->multiprocessors ? tiles : d->multiprocessors);
  kernel<<<blocks, THREADS, BYTES, d->stream>>>(x, w, out, j.bias, s);
  return crk_launched(name, d);
}

} // namespace geglu_quant

#endif
