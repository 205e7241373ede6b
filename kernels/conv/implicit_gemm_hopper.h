/* 3x3 convolutions on Hopper as implicit GEMMs:
 *
 *   out[n][y][x][o] = sum over c, dy, dx of x[n][y + dy - top][x + dx - left][c] w[o][dy][dx][c]
 *                     + bias[o] + residual[n][y][x][o]
 *
 * x [N H W C], w [O 3 3 C], out and residual [N OH OW O] are f16 or bf16; sums, bias and residual
 * are added in f32 and rounded once. The zeros around x are what TMA reads outside of a tensor. x
 * and w may be int8 codes (A): their sums are int32, and are first multiplied by scale[o].
 *
 * With a window of 2x2 (WINDOW) it is the convolution of a doubled image, as its four phases (a,
 * b), the parities of rows and columns of the result: w [4O 2 2 C], out [N 2H 2W O],
 *
 *   out[n][2y + a][2x + b][o] = sum of x[n][y + dy - 1 + a][x + dx - 1 + b][c] w[(2a + b) O + o]...
 *
 * A tile is a patch of pixels by BLK_N results. The patch consists of units of 64 pixels: 16 x 4,
 * one below the other, or 8 x 8, one in each image. A block has three warpgroups: one thread of
 * the last is the producer; the other two are consumers, M64 units each, and run over K = 9 C.
 *
 * The producer has two pipelines. For 128 bytes of channels and each dx it loads the patch with one
 * more line above and below into the one, and three tiles of w, one for each dy, into the other. A
 * line of the patch is a multiple of 1024 bytes in shared memory, the period of the swizzle, so dy
 * only moves the address where a wgmma begins to read. So pixels are loaded 3.4 times (16 x 18 for
 * 16 x 16, for each of three dx) instead of 9 times, and a multiprocessor does 96 operations for a
 * byte from the L2 cache (128 pixels x 160 results), 146 (256 x 128) or 160 (256 x 160). Tiles of
 * 128 x 256 and a second consumer that starts later were measured on an H200 and won nothing. Codes
 * do twice as many operations for a byte.
 *
 * Results are written by TMA in tiles of 64 pixels x 32 results; OUTS of these tiles stand in
 * shared memory at once for each consumer. TMA loads a residual into the same tiles during the main
 * loop, so the residual may be out.
 *
 * Sizes: C and O are multiples of 8; any N H W and padding. Blocks are persistent. */
#ifndef CRK_CONV_HOPPER_H
#define CRK_CONV_HOPPER_H

#include "device/hopper.h"

namespace conv_hopper {

using namespace hopper;

template <int M64_, int BLK_N_, int PIXEL_STAGES_, int WEIGHT_STAGES_, int OUTS_, int WINDOW_ = 3>
struct tile {
  static constexpr int M64 = M64_, BLK_N = BLK_N_, OUTS = OUTS_, WINDOW = WINDOW_, THREADS = 384;
  static constexpr int PIXEL_STAGES = PIXEL_STAGES_, WEIGHT_STAGES = WEIGHT_STAGES_;
  /* TMA tiles of a consumer's results: side by side, and all. */
  static constexpr int OUT_COLUMNS = BLK_N / 32, OUT_TILES = M64 * OUT_COLUMNS;
  static constexpr int OUT_TILE_BYTES = 64 * 64;
  /* The most pixels of a patch with its border: units of 10 lines of 8. */
  static constexpr int PIXEL_BYTES = 2 * M64 * 80 * 128, WEIGHT_BYTES = BLK_N * 128;
  static constexpr int WEIGHTS_AT = PIXEL_STAGES * PIXEL_BYTES;
  static constexpr int OUT_AT = WEIGHTS_AT + WEIGHT_STAGES * WEIGHT_BYTES;
  static constexpr int BIAS_AT = OUT_AT + 2 * OUTS * OUT_TILE_BYTES,
                       BARRIERS_AT = BIAS_AT + 2 * BLK_N * 8;
  static constexpr int BYTES = BARRIERS_AT + (2 * PIXEL_STAGES + 2 * WEIGHT_STAGES + 2) * 8;
  static constexpr int REGISTERS = 232; /* of 168: the producer keeps 40 */
  static constexpr int PHASES = WINDOW == 2 ? 4 : 1;
  static_assert(BYTES <= 232448, "shared memory of a block");
  static_assert(OUT_TILES % OUTS == 0, "results are written OUTS tiles at a time");
};

typedef struct sizes {
  int tiles, columns; /* in all; tiles of BLK_N results (of all phases) of a patch */
  int across, down;   /* patches of an image */
  int steps;          /* of the main loop: 128 bytes of channels and a dx each */
  int c, o, left, top;
  int wide, tall, deep;     /* a patch: pixels, lines, images */
  int line, unit;           /* bytes of a patch's line, and from one unit to the next */
  int unit_tall, unit_deep; /* lines, or images, from one unit to the next */
  int pixel_bytes;          /* of a patch with its border */
  bool residual;
} sizes;

/* The tensor map of the results of each phase. */
template <int PHASES> struct results { CUtensorMap of[PHASES]; };

/* Where a tile begins. */
struct origin {
  int column, x, y, n, phase;
  template <typename C> static __device__ __forceinline__ origin of(int tile, const sizes &s) {
    int at = tile / s.columns;
    origin p;
    p.column = tile - at * s.columns;
    p.phase = C::PHASES > 1 ? p.column / (s.columns / C::PHASES) : 0;
    p.column = (p.column - p.phase * (s.columns / C::PHASES)) * C::BLK_N;
    p.x = at % s.across * s.wide;
    at /= s.across;
    p.y = at % s.down * s.tall;
    p.n = at / s.down * s.deep;
    return p;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Initializes the mbarriers, by one thread. */
template <typename C>
__device__ __forceinline__ void init_barriers(uint32_t x_full, uint32_t x_empty, uint32_t w_full,
                                              uint32_t w_empty, uint32_t residual_full) {
  pipeline_init<C::PIXEL_STAGES>(x_full, x_empty);
  pipeline_init<C::WEIGHT_STAGES>(w_full, w_empty);
  mbarrier_init(residual_full, 1);
  mbarrier_init(residual_full + 8, 1);
  fence_mbarrier_init();
}

/* The producer: for each tile and step a patch of pixels, and for each dy a tile of w. The
 * mbarriers x_full, x_empty (PIXEL_STAGES) and w_full, w_empty (WEIGHT_STAGES) follow one another.
 */
template <typename A, typename C>
__device__ __forceinline__ void load(const CUtensorMap &x_map, const CUtensorMap &w_map,
                                     const sizes &s, uint32_t base, uint32_t x_full) {
  constexpr int BLK_K = 128 / sizeof(A);
  uint32_t x_empty = x_full + C::PIXEL_STAGES * 8, weights = base + C::WEIGHTS_AT;
  uint32_t w_full = x_empty + C::PIXEL_STAGES * 8, w_empty = w_full + C::WEIGHT_STAGES * 8;
  pipeline_state<C::PIXEL_STAGES> x_at;
  pipeline_state<C::WEIGHT_STAGES> w_at;
  for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
    origin p = origin::of<C>(tile, s);
    if (C::PHASES > 1) p.x += p.phase % 2, p.y += p.phase / 2;
    for (int step = 0, c = 0, dx = 0; step < s.steps; step++) {
      uint32_t barrier = x_full + x_at.stage * 8;
      x_at.wait_empty(x_empty);
      mbarrier_expect(barrier, s.pixel_bytes);
      tma_load_4d(base + x_at.stage * C::PIXEL_BYTES, &x_map, c, p.x + dx - s.left, p.y - s.top,
                  p.n, barrier); // (wide, tall + border, deep, BLK_K)
      x_at.advance();
      for (int dy = 0; dy < C::WINDOW; dy++) {
        barrier = w_full + w_at.stage * 8;
        w_at.wait_empty(w_empty);
        mbarrier_expect(barrier, C::WEIGHT_BYTES);
        tma_load_4d(weights + w_at.stage * C::WEIGHT_BYTES, &w_map, c, dx, dy,
                    p.phase * s.o + p.column, barrier); // (BLK_N, BLK_K)
        w_at.advance();
      }
      if (++dx == C::WINDOW) dx = 0, c += BLK_K;
    }
  }
}

/* Scale and bias of a pair of columns as {two scales, two biases}; without codes the scales are 1.
 */
template <bool CODES>
__device__ __forceinline__ float4 factors_of(const float *own_bias, int chunk, int lane) {
  if constexpr (CODES) {
    float4 pairs = ((const float4 *)own_bias)[chunk * 4 + lane % 4];
    return make_float4(pairs.x, pairs.z, pairs.y, pairs.w);
  } else {
    float2 b = *(const float2 *)(own_bias + chunk * 8 + lane % 4 * 2);
    return make_float4(1, 1, b.x, b.y);
  }
}

/* Issues the wgmmas of line dy of the window, PIECES times 32 bytes of it: acc (M64, BLK_N / 8,
 * fragment) += x (64 M64, BLK_K) of the warpgroup, dy lines down, by w (BLK_N, BLK_K). */
template <typename A, typename C, int PIECES>
__device__ __forceinline__ void
issue(typename accumulator_of<A>::type (&acc)[C::M64][C::BLK_N / 8][4], uint64_t x, uint64_t w,
      const sizes &s, int dy, bool accumulate) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < C::M64; i++)
#pragma unroll
    for (int j = 0; j < PIECES; j++)
      wgmma<A>(acc[i], x + ((dy * s.line + i * s.unit) >> 4) + j * 2, w + j * 2,
               accumulate || j > 0);
  wgmma_commit();
}

/* Releases the stage of w that the wgmmas before the last have read, and with dy = 0 that of x. */
__device__ __forceinline__ void release_read(uint32_t w, uint32_t x, int dy, int lane) {
  wgmma_wait<1>();
  if (lane == 0) {
    mbarrier_arrive(w);
    if (dy == 0) mbarrier_arrive(x);
  }
}

/* Waits for the last wgmmas, and releases their stages. */
template <typename C, typename Sum>
__device__ __forceinline__ void finish_sums(Sum (&acc)[C::M64][C::BLK_N / 8][4], uint32_t w,
                                            uint32_t x, int lane) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < C::M64; i++) fence_accumulators(acc[i]);
  if (lane == 0) {
    mbarrier_arrive(w);
    mbarrier_arrive(x);
  }
}

/* Starts loading the residual of the `part`-th OUTS tiles (64, 32) to where the results will stand,
 * by one thread. out_tile_at(i) gives result, line and image where tile i begins, x its pixel. */
template <typename C, typename F>
__device__ __forceinline__ void load_residual(const CUtensorMap &residual_map, uint32_t out,
                                              uint32_t residual_full, int part, int x,
                                              const F &out_tile_at) {
  tma_store_wait<0>();
  mbarrier_expect(residual_full, C::OUTS * C::OUT_TILE_BYTES);
  for (int i = 0; i < C::OUTS; i++) {
    int3 at = out_tile_at(part * C::OUTS + i);
    tma_load_4d(out + i * C::OUT_TILE_BYTES, &residual_map, at.x, x, at.y, at.z, residual_full);
  }
}

/* The epilogue of one tile of 64 pixels x 32 results at `out`, from the 8-column blocks of `acc`
 * that begin at `block`; the residual, if there is one, stands at `out`. out_row, unit and swizzle
 * are the lane's for stmatrix. */
template <bool CODES, typename T, int N, typename Sum>
__device__ __forceinline__ void epilogue(uint32_t out, uint32_t out_row, uint32_t unit,
                                         uint32_t swizzle, bool residual, const Sum (&acc)[N][4],
                                         int block, const float *own_bias, int lane) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    uint32_t at = out + out_row + ((2 * j + unit) ^ swizzle) * 16, r[4] = {};
    if (residual) crk_ldmatrix(r, at);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int chunk = block * 4 + j * 2 + n;
      const auto &v = acc[chunk];
      float4 f = factors_of<CODES>(own_bias, chunk, lane);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float2 more = crk_unpair<T>(r[2 * n + h]);
        float low = (float)v[2 * h], high = (float)v[2 * h + 1];
        if constexpr (CODES)
          low = fmaf(low, f.x, f.z), high = fmaf(high, f.y, f.w);
        else
          low += f.z, high += f.w;
        r[2 * n + h] = crk_pair<T>(low + more.x, high + more.y);
      }
    }
    stmatrix(at, r);
  }
}

/* Epilogue, first: scales and biases of the columns (BLK_N) to shared memory. */
template <bool CODES, typename C, typename T, int N>
__device__ __forceinline__ void store_factors(float *own_bias, const T (&add)[N],
                                              const float (&times)[N], int thread) {
  constexpr int BLK_N = C::BLK_N;
  for (int i = 0; i < (BLK_N + 127) / 128; i++)
    if (i * 128 + thread < BLK_N) {
      if constexpr (CODES)
        ((float2 *)own_bias)[i * 128 + thread] = make_float2(times[i], crk_float(add[i]));
      else
        own_bias[i * 128 + thread] = crk_float(add[i]);
    }
}

/* Epilogue, second: the warpgroup's results (64 M64, BLK_N), OUTS tiles (64, 32) at a time, go
 * through shared memory and out by TMA. */
template <bool CODES, typename T, typename C, typename Sum, typename F>
__device__ __forceinline__ void
store_results(const results<C::PHASES> &out_maps, int phase, const CUtensorMap &residual_map,
              uint32_t out, uint32_t residual_full, uint32_t &residuals, uint32_t out_row,
              uint32_t unit, uint32_t swizzle, bool residual,
              const Sum (&acc)[C::M64][C::BLK_N / 8][4], const float *own_bias, int x,
              const F &out_tile_at, int warpgroup, int thread, int lane) {
  constexpr int OUTS = C::OUTS, OUT_TILE_BYTES = C::OUT_TILE_BYTES, OUT_COLUMNS = C::OUT_COLUMNS;
#pragma unroll
  for (int part = 0; part < C::OUT_TILES / OUTS; part++) {
    if (residual) {
      if (part > 0 && thread == 0)
        load_residual<C>(residual_map, out, residual_full, part, x, out_tile_at);
      __syncwarp();
      mbarrier_wait(residual_full, (int)residuals++);
    } else if (thread == 0) {
      tma_store_wait<0>();
    }
    named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
    for (int i = 0; i < OUTS; i++)
      epilogue<CODES, T>(out + i * OUT_TILE_BYTES, out_row, unit, swizzle, residual,
                         acc[(part * OUTS + i) / OUT_COLUMNS], (part * OUTS + i) % OUT_COLUMNS,
                         own_bias, lane);
    fence_async_shared();
    named_barrier_sync(1 + warpgroup, 128);
    if (thread == 0) {
      for (int i = 0; i < OUTS; i++) {
        int3 at = out_tile_at(part * OUTS + i);
        tma_store_4d(&out_maps.of[phase], at.x, x, at.y, at.z, out + i * OUT_TILE_BYTES);
      }
      tma_store_commit();
    }
  }
}
#endif

/* A: type of x and w, T or int8_t. */
template <typename A, typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ results<C::PHASES> out_maps,
           const __grid_constant__ CUtensorMap residual_map, const float *scale, const T *bias,
           const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int M64 = C::M64, BLK_N = C::BLK_N, BLK_K = 128 / sizeof(A), WINDOW = C::WINDOW;
  constexpr int OUT_COLUMNS = C::OUT_COLUMNS;
  constexpr bool CODES = sizeof(A) == 1;
  uint32_t base = crk_shared_address(shared), weights = base + C::WEIGHTS_AT;
  uint32_t x_full = base + C::BARRIERS_AT, x_empty = x_full + C::PIXEL_STAGES * 8;
  uint32_t w_full = x_empty + C::PIXEL_STAGES * 8, w_empty = w_full + C::WEIGHT_STAGES * 8;
  uint32_t residual_full = w_empty + C::WEIGHT_STAGES * 8; /* (2 warpgroups) */
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) init_barriers<C>(x_full, x_empty, w_full, w_empty, residual_full);
  __syncthreads();

  if (warpgroup == 2) {
    run_producer(&x_map, &w_map, [&] { load<A, C>(x_map, w_map, s, base, x_full); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    float *own_bias = (float *)(shared + C::BIAS_AT + warpgroup * BLK_N * 8);
    uint32_t out = base + C::OUT_AT + warpgroup * C::OUTS * C::OUT_TILE_BYTES;
    uint32_t residuals = 0; /* loaded so far, OUTS tiles at a time */
    residual_full += warpgroup * 8;
    /* For stmatrix: the lane's row of 64 bytes, which of two neighbouring units, the swizzle. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 64, unit = lane / 16,
             swizzle = lane / 2 % 4;
    pipeline_state<C::PIXEL_STAGES> x_at;
    pipeline_state<C::WEIGHT_STAGES> w_at;
    typename accumulator_of<A>::type acc[M64][BLK_N / 8][4]; // (M64, BLK_N / 8, fragment)
    for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
      origin p = origin::of<C>(tile, s);
      /* ---- scales and biases are loaded while the main loop runs ---- */
      T add[(BLK_N + 127) / 128] = {};
      float times[(BLK_N + 127) / 128] = {};
      for (int i = 0; i < (BLK_N + 127) / 128; i++) {
        int o = i * 128 + thread;
        if (bias && o < BLK_N && p.column + o < s.o) add[i] = bias[p.phase * s.o + p.column + o];
        if (CODES && o < BLK_N && p.column + o < s.o)
          times[i] = scale[p.phase * s.o + p.column + o];
      }
      /* Result, line and image where a tile of this warpgroup's results begins. */
      auto out_tile_at = [&](int i) {
        int unit = warpgroup * M64 + i / OUT_COLUMNS;
        return make_int3(p.column + i % OUT_COLUMNS * 32, p.y + unit * s.unit_tall,
                         p.n + unit * s.unit_deep);
      };

      /* ---- main loop ---- */
      uint32_t last_x = 0, last_w = 0; /* stages to release next */
      for (int step = 0; step < s.steps; step++) {
        mbarrier_wait(x_full + x_at.stage * 8, (int)x_at.phase);
        uint64_t x = descriptor_128b(base + x_at.stage * C::PIXEL_BYTES + warpgroup * M64 * s.unit);
        /* clang-format off */
        auto multiply = [&](auto pieces) { /* pieces: of 32 bytes of each line */
#pragma unroll
          for (int dy = 0; dy < WINDOW; dy++) {
            mbarrier_wait(w_full + w_at.stage * 8, (int)w_at.phase);
            uint64_t w = descriptor_128b(weights + w_at.stage * C::WEIGHT_BYTES);
            issue<A, C, decltype(pieces)::value>(acc, x, w, s, dy, step > 0 || dy > 0);
            if (step > 0 || dy > 0)
              release_read(w_empty + last_w * 8, x_empty + last_x * 8, dy, lane);
            last_w = w_at.stage;
            w_at.advance();
          }
        };
        /* clang-format on */
        /* The second half of the last channels may be only zeros, as with 320 codes. */
        if (CODES && step >= s.steps - WINDOW && (s.c - 1) % BLK_K < BLK_K / 2)
          multiply(std::integral_constant<int, 2>());
        else
          multiply(std::integral_constant<int, 4>());
        last_x = x_at.stage;
        x_at.advance();
        if (step == 0 && s.residual) {
          if (thread == 0) load_residual<C>(residual_map, out, residual_full, 0, p.x, out_tile_at);
          __syncwarp();
        }
      }
      finish_sums<C>(acc, w_empty + last_w * 8, x_empty + last_x * 8, lane);

      /* ---- epilogue ---- */
      store_factors<CODES, C>(own_bias, add, times, thread);
      store_results<CODES, T, C>(out_maps, p.phase, residual_map, out, residual_full, residuals,
                                 out_row, unit, swizzle, s.residual, acc, own_bias, p.x,
                                 out_tile_at, warpgroup, thread, lane);
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

} // namespace conv_hopper

#endif
