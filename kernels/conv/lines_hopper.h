/* 3x3 convolutions with 32 or 64 results (upscaling networks) on Hopper:
 *
 *   out[n][y][x][o] = act(sum + bias[o]) + residual[n][y][x][o]
 *   sum over c, dy, dx of x[n][y + dy - top][x + dx - left][c] w[o][dy][dx][c]
 *
 * x [N H W C], w [O 3 3 C], out and residual [N OH OW O] are f16 or bf16; sums, bias, activation
 * and residual are f32, and the result is rounded once.
 *
 * With so few results, a tensor core would wait for shared memory if each of the nine taps of a
 * window were a GEMM of its own. Here the three taps dy of a column are 3 O columns of one GEMM: a
 * line of pixels, which is read once for each dx, adds to three lines of out at once. A warpgroup
 * goes down a strip of 64 pixels; three accumulators, for the lines above, at and below, take turns
 * in the registers. A multiprocessor reads 107 bytes of shared memory a cycle for O = 32, and 85
 * for O = 64, of the 128 that it can.
 *
 * The weight of OUT results stays in shared memory for the whole launch, with the dy of a column in
 * the order 0 2 1 0 2: the three that the thirds of the accumulator need are neighbours in it,
 * whichever line comes. Each line is loaded once into the pipeline, CHUNK channels and a border of
 * one pixel at a time; dx only moves the row where a wgmma begins to read, since the swizzle
 * depends on the address alone. The zeros around the image are what TMA reads outside of a
 * tensor.
 *
 * Grid: x are blocks that share the lines of all strips evenly, each a run of neighbouring lines
 * (two blocks read its first and its last line); y are columns of OUT results.
 *
 * Sizes: C a multiple of 8, as many as fit; O a multiple of 8; any N H W and padding. The last
 * stride of x, out and residual is 1, the others are multiples of 8. */
#ifndef CRK_CONV_LINES_HOPPER_H
#define CRK_CONV_LINES_HOPPER_H

#include "device/hopper.h"

namespace conv_lines {

using namespace hopper;

/* GROUPS strips of 64 pixels side by side, one for each consumer warpgroup; one more warpgroup is
 * the producer. */
template <int OUT_, int CHUNK_, int CHUNKS_, int GROUPS_, int STAGES_> struct tile {
  static constexpr int OUT = OUT_, GROUPS = GROUPS_, STAGES = STAGES_;
  static constexpr int CHUNK = CHUNK_, CHUNKS = CHUNKS_; /* channels of a chunk; most chunks */
  static constexpr int ROW = CHUNK * 2;                  /* bytes */
  static constexpr int WIDE = 64 * GROUPS, THREADS = 128 * (GROUPS + 1);
  static constexpr int PIECES = OUT / 8, OUT_TILES = OUT / 32;
  static constexpr int OUT_TILE_BYTES = 64 * 64; /* of 64 pixels by 32 results */
  static constexpr int LINE_BYTES = (WIDE + 2) * ROW,
                       STAGE_BYTES = (LINE_BYTES + 1023) / 1024 * 1024;
  static constexpr int THIRD = OUT * ROW;        /* bytes of the weight of a chunk, dx and dy */
  static constexpr int WEIGHT_BYTES = 5 * THIRD; /* of a chunk and a dx */
  static constexpr int STAGES_AT = CHUNKS * 3 * WEIGHT_BYTES;
  static constexpr int OUT_AT = STAGES_AT + STAGES * STAGE_BYTES;
  static constexpr int BIAS_AT = OUT_AT + GROUPS * OUT_TILES * OUT_TILE_BYTES,
                       SLOPE_AT = BIAS_AT + OUT * 4;
  static constexpr int BARRIERS_AT = SLOPE_AT + OUT * 4;
  /* Registers of a producer's thread, and of a consumer's. */
  static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
  static constexpr int BYTES = BARRIERS_AT + (2 * STAGES + 1 + GROUPS) * 8;
  static_assert(BYTES <= 232448, "shared memory of a block");
  static_assert(GROUPS == 2, "registers of a block");
};

typedef struct sizes {
  int64_t lines, share; /* of all strips; of a block */
  int tall, strips;     /* lines of an image; strips across it */
  int chunks;           /* of channels */
  int o, left, top;
  bool relu, residual;
} sizes;

/* The descriptor of rows of CHUNK 16-bit numbers: hopper::descriptor_128b, or the same with the
 * 64-byte swizzle, where unit u of row r stands at u ^ r / 2 (CU_TENSOR_MAP_SWIZZLE_64B). */
template <int CHUNK> __device__ __forceinline__ uint64_t descriptor(uint32_t at) {
  if (CHUNK == 64) return descriptor_128b(at);
  return (uint64_t)2 << 62 | (uint64_t)(512 / 16) << 32 | (uint64_t)1 << 16 | (at >> 4 & 0x3fff);
}

template <int N> struct index { static constexpr int value = N; };

/* A run of lines in one strip. */
struct run {
  int n, x, y, count;
  template <typename C>
  static __device__ __forceinline__ run of(int64_t at, int64_t end, const sizes &s) {
    run r;
    int64_t strip = at / s.tall;
    r.y = (int)(at - strip * s.tall);
    r.count = (int)min((int64_t)(s.tall - r.y), end - at);
    r.n = (int)(strip / s.strips);
    r.x = (int)(strip - (int64_t)r.n * s.strips) * C::WIDE;
    return r;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* The producer: the weight, once, then lines begin to end of all strips, chunk by chunk. */
template <typename C>
__device__ __forceinline__ void load(const CUtensorMap &x_map, const CUtensorMap &w_map,
                                     const sizes &s, uint32_t base, int first, int64_t begin,
                                     int64_t end) {
  uint32_t stages = base + C::STAGES_AT, full = base + C::BARRIERS_AT;
  uint32_t empty = full + C::STAGES * 8, weight_full = empty + C::STAGES * 8;
  mbarrier_expect(weight_full, s.chunks * 3 * C::WEIGHT_BYTES);
  for (int i = 0; i < s.chunks * 3; i++)
    for (int k = 0; k < 5; k++) /* dy 0, 2, 1, 0, 2 */
      tma_load_4d(base + i * C::WEIGHT_BYTES + k * C::THIRD, &w_map, i / 3 * C::CHUNK, i % 3, first,
                  k * 2 % 3, weight_full); // (OUT, CHUNK)
  pipeline_state<C::STAGES> at;
  for (int64_t line = begin; line < end;) {
    run r = run::of<C>(line, end, s);
    line += r.count;
    for (int i = 0; i < r.count + 2; i++)
      for (int chunk = 0; chunk < s.chunks; chunk++) {
        uint32_t barrier = full + at.stage * 8;
        at.wait_empty(empty);
        mbarrier_expect(barrier, C::LINE_BYTES);
        tma_load_4d(stages + at.stage * C::STAGE_BYTES, &x_map, chunk * C::CHUNK, r.x - s.left,
                    r.y + i - s.top, r.n, barrier); // (WIDE + 2, CHUNK)
        at.advance();
      }
  }
}

/* Zeros in COUNT pieces of the accumulators, from FIRST on. */
template <int FIRST, int COUNT, int N> __device__ __forceinline__ void clear(float (&acc)[N][4]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++)
#pragma unroll
    for (int k = 0; k < 4; k++) acc[FIRST + i][k] = 0;
}

/* The main loop over the chunks of channels of one line of pixels: acc (3 lines of out, OUT / 8,
 * fragment) += pixels (64 + 2, CHUNK) of the warpgroup by the weight (3 OUT, CHUNK) of each dx,
 * whose first chunk's thirds begin at `weight`. Releases each stage when its wgmmas have read it.
 */
template <typename T, typename C>
__device__ __forceinline__ void
main_loop(float (&acc)[3 * C::PIECES][4], pipeline_state<C::STAGES> &at, uint32_t weight,
          uint32_t stages, uint32_t full, uint32_t empty, int chunks, int warpgroup, int lane) {
  uint32_t last = 0;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    mbarrier_wait(full + at.stage * 8, (int)at.phase);
    uint32_t pixels = stages + at.stage * C::STAGE_BYTES + warpgroup * 64 * C::ROW;
    wgmma_fence();
#pragma unroll
    for (int dx = 0; dx < 3; dx++) {
      uint64_t a = descriptor<C::CHUNK>(pixels + dx * C::ROW);
      uint64_t b = descriptor<C::CHUNK>(weight + (chunk * 3 + dx) * C::WEIGHT_BYTES);
#pragma unroll
      for (int j = 0; j < C::CHUNK / 16; j++) wgmma<T>(acc, a + j * 2, b + j * 2, 1);
    }
    wgmma_commit();
    if (chunk > 0) { /* release what the wgmmas before these have read */
      wgmma_wait<1>();
      if (lane == 0) mbarrier_arrive(empty + last * 8);
    }
    last = at.stage;
    at.advance();
  }
  wgmma_wait<0>();
  fence_accumulators(acc);
  if (lane == 0) mbarrier_arrive(empty + last * 8);
}

/* By one thread: loads the residual of a line, tiles (64, 32), to where the results will stand,
 * once the stores of the line before have read them. */
template <typename C>
__device__ __forceinline__ void load_residual(const CUtensorMap &residual_map, uint32_t out,
                                              uint32_t residual_full, int first, int x, int y,
                                              int n) {
  tma_store_wait<0>();
  mbarrier_expect(residual_full, C::OUT_TILES * C::OUT_TILE_BYTES);
  for (int b = 0; b < C::OUT_TILES; b++)
    tma_load_4d(out + b * C::OUT_TILE_BYTES, &residual_map, first + b * 32, x, y, n, residual_full);
}

/* The epilogue of one tile of 64 pixels x 32 results at `out`, the `tile`-th of the accumulators
 * from `done` on; the residual, if there is one, stands at `out`. out_row, unit and swizzle are the
 * lane's for stmatrix. add and slope [OUT] are f32. */
template <typename T, int N>
__device__ __forceinline__ void epilogue(uint32_t out, uint32_t out_row, uint32_t unit,
                                         uint32_t swizzle, bool residual, const float (&acc)[N][4],
                                         int done, int tile, const float *add, const float *slope,
                                         int lane) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    uint32_t to = out + out_row + ((2 * j + unit) ^ swizzle) * 16, m[4] = {};
    if (residual) crk_ldmatrix(m, to);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int piece = tile * 4 + j * 2 + n;
      float2 plus = *(const float2 *)(add + piece * 8 + lane % 4 * 2);
      float2 bent = *(const float2 *)(slope + piece * 8 + lane % 4 * 2);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float2 more = crk_unpair<T>(m[2 * n + h]);
        float v = acc[done + piece][2 * h] + plus.x, w = acc[done + piece][2 * h + 1] + plus.y;
        v = v > 0 ? v : v * bent.x;
        w = w > 0 ? w : w * bent.y;
        m[2 * n + h] = crk_pair<T>(v + more.x, w + more.y);
      }
    }
    stmatrix(to, m);
  }
}

/* Initializes the mbarriers; loads bias and slopes of the block's channels as f32. */
template <typename C, typename T>
__device__ __forceinline__ void prepare(uint32_t full, uint32_t empty, uint32_t weight_full,
                                        uint32_t residual_full, float *add, float *slopes,
                                        const T *bias, const T *slope, int first, const sizes &s) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::STAGES; i++) {
      mbarrier_init(full + i * 8, 1);
      mbarrier_init(empty + i * 8, 4 * C::GROUPS);
    }
    mbarrier_init(weight_full, 1);
    for (int i = 0; i < C::GROUPS; i++) mbarrier_init(residual_full + i * 8, 1);
    fence_mbarrier_init();
  }
  if (threadIdx.x < C::OUT) {
    bool there = first + (int)threadIdx.x < s.o;
    add[threadIdx.x] = bias && there ? crk_float(bias[first + threadIdx.x]) : 0.0f;
    slopes[threadIdx.x] = slope && there ? crk_float(slope[first + threadIdx.x])
                          : s.relu       ? 0.0f
                                         : 1.0f;
  }
}

/* Finishes the line of out whose accumulators begin at `done`, and stores it by TMA. */
template <typename T, typename C>
__device__ __forceinline__ void
store_line(const CUtensorMap &out_map, uint32_t out, uint32_t out_row, uint32_t unit,
           uint32_t swizzle, bool residual, const float (&acc)[3 * C::PIECES][4], int done,
           const float *add, const float *slopes, int lane, int warpgroup, int thread, int first,
           int x, int y, int n) {
  named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
  for (int b = 0; b < C::OUT_TILES; b++)
    epilogue<T>(out + b * C::OUT_TILE_BYTES, out_row, unit, swizzle, residual, acc, done, b, add,
                slopes, lane);
  fence_async_shared();
  named_barrier_sync(1 + warpgroup, 128);
  if (thread == 0) {
    for (int b = 0; b < C::OUT_TILES; b++)
      tma_store_4d(&out_map, first + b * 32, x, y, n, out + b * C::OUT_TILE_BYTES);
    tma_store_commit();
  }
}
#endif

template <typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map,
           const __grid_constant__ CUtensorMap residual_map, const T *bias, const T *slope,
           const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int PIECES = C::PIECES;
  /* mbarriers: (STAGES), (STAGES), one, (GROUPS) */
  uint32_t base = crk_shared_address(shared), stages = base + C::STAGES_AT;
  uint32_t full = base + C::BARRIERS_AT, empty = full + C::STAGES * 8;
  uint32_t weight_full = empty + C::STAGES * 8, residual_full = weight_full + 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int warpgroup = threadIdx.x / 128, first = (int)blockIdx.y * C::OUT;
  float *add = (float *)(shared + C::BIAS_AT), *slopes = (float *)(shared + C::SLOPE_AT);
  prepare<C>(full, empty, weight_full, residual_full, add, slopes, bias, slope, first, s);
  __syncthreads();
  int64_t begin = (int64_t)blockIdx.x * s.share, end = min(begin + s.share, s.lines);

  if (warpgroup == C::GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(C::PRODUCER_REGISTERS));
    if (thread == 0) load<C>(x_map, w_map, s, base, first, begin, end);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::CONSUMER_REGISTERS));
    residual_full += warpgroup * 8;
    uint32_t out = base + C::OUT_AT + warpgroup * C::OUT_TILES * C::OUT_TILE_BYTES;
    uint32_t lines = 0; /* lines with a residual so far */
    /* For stmatrix: the lane's row of 64 bytes, which of two neighbouring units, the swizzle. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 64, unit = lane / 16,
             swizzle = lane / 2 % 4;
    pipeline_state<C::STAGES> at;
    float acc[3 * PIECES][4]; // (3 lines of out, OUT / 8, fragment)
    mbarrier_wait(weight_full, 0);

    for (int64_t line = begin; line < end;) {
      run r = run::of<C>(line, end, s);
      line += r.count;
      clear<0, 3 * PIECES>(acc);

      /* Line i of the lines read adds to lines i, i - 1 and i - 2 of out, the last of which is done
       * then. Line r of out has third r % 3 of the accumulators, so the thirds of the weight that
       * these need begin at TURN. */
      auto step = [&](int i, auto phase) {
        constexpr int TURN = phase.value * 2 % 3, DONE = (phase.value + 1) % 3 * PIECES;
        int y = r.y + i - 2, x = r.x + warpgroup * 64;
        if (s.residual && i >= 2 && thread == 0)
          load_residual<C>(residual_map, out, residual_full, first, x, y, r.n);
        __syncwarp();
        main_loop<T, C>(acc, at, base + TURN * C::THIRD, stages, full, empty, s.chunks, warpgroup,
                        lane);
        if (i >= 2) {
          if (s.residual)
            mbarrier_wait(residual_full, (int)lines++);
          else if (thread == 0)
            tma_store_wait<0>();
          store_line<T, C>(out_map, out, out_row, unit, swizzle, s.residual, acc, DONE, add, slopes,
                           lane, warpgroup, thread, first, x, y, r.n);
        }
        clear<DONE, PIECES>(acc);
      };
      for (int i = 0; i < r.count + 2; i += 3) {
        step(i, index<0>());
        if (i + 1 < r.count + 2) step(i + 1, index<1>());
        if (i + 2 < r.count + 2) step(i + 2, index<2>());
      }
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

} // namespace conv_lines

#endif
