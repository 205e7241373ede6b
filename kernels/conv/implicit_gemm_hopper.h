/* 3x3 convolutions by Hopper's own products:
 *
 *   out[n][y][x][o] = sum over c, dy, dx of x[n][y + dy - top][x + dx - left][c] w[o][dy][dx][c]
 *                     + bias[o] + residual[n][y][x][o]
 *
 * x [N H W C], w [O 3 3 C], out and residual [N OH OW O], f16 or bf16; sums, bias and residual are
 * added in f32 and rounded once. Zeros around x are what bulk copies bring for places outside.
 * x and w may be int8 codes (A): their sums are int32, which scale[o] is multiplied with first.
 *
 * With a window of 2x2 (TALL) it is the convolution of the doubled picture, as its four phases (a,
 * b), which are rows' and columns' parities in the result: w [4O 2 2 C], out [N 2H 2W O],
 *
 *   out[n][2y + a][2x + b][o] = sum of x[n][y + dy - 1 + a][x + dx - 1 + b][c] w[(2a + b) O + o]...
 *
 * A tile is a patch of pixels and WIDE results. The patch consists of units of 64 pixels: 16 x 4,
 * one below the other, or 8 x 8, pictures of their own. Three groups of four warps: one thread of
 * the last fetches, the other two groups multiply, M64 units each, over 9 C as the inner dimension.
 *
 * Fetched into two rings are, for 128 bytes of channels and each dx: the patch with one line more
 * above and below, and three boxes of w, one for each dy. A line of the patch is a multiple of 1024
 * bytes in shared memory, the period in which its units are exchanged, so dy only moves the place
 * where a product begins to read. Thereby pixels are fetched 3.4 times (16 x 18 of 16 x 16, for
 * three dx) instead of 9, and a multiprocessor reads a byte of the cache for 96 operations (128
 * pixels x 160 results), 146 (256 x 128) or 160 (256 x 160). Tiles of 128 x 256 and a second group
 * that starts later were measured on an H200 and won nothing. Codes make twice as many operations
 * of a byte.
 *
 * Results go out by bulk copies of 64 pixels and 32 results, which leave out what is outside; OUTS
 * of these boxes of a group stand in shared memory at once. A residual comes into the very boxes,
 * while products are made, so it may be out.
 *
 * Sizes: C and O multiples of 8, any N H W and padding; every block takes one tile after another.
 */
#ifndef CRK_CONV_HOPPER_H
#define CRK_CONV_HOPPER_H

#include "device/hopper.h"

namespace conv_hopper {

using namespace hopper;

template <int M64_, int WIDE_, int PIXEL_STAGES_, int WEIGHT_STAGES_, int OUTS_, int TALL_ = 3>
struct tile {
  static constexpr int M64 = M64_, WIDE = WIDE_, OUTS = OUTS_, TALL = TALL_, THREADS = 384;
  static constexpr int PIXEL_STAGES = PIXEL_STAGES_, WEIGHT_STAGES = WEIGHT_STAGES_;
  static constexpr int BLOCKS = WIDE / 32, BOXES = M64 * BLOCKS; /* of results, of a group */
  static constexpr int BOX = 64 * 64;                            /* bytes of one */
  /* The most pixels that a patch has with its border: units of 10 lines of 8. */
  static constexpr int PIXEL_BYTES = 2 * M64 * 80 * 128, WEIGHT_BYTES = WIDE * 128;
  static constexpr int WEIGHTS_AT = PIXEL_STAGES * PIXEL_BYTES;
  static constexpr int OUT_AT = WEIGHTS_AT + WEIGHT_STAGES * WEIGHT_BYTES;
  static constexpr int BIAS_AT = OUT_AT + 2 * OUTS * BOX, BARRIERS_AT = BIAS_AT + 2 * WIDE * 8;
  static constexpr int BYTES = BARRIERS_AT + (2 * PIXEL_STAGES + 2 * WEIGHT_STAGES + 2) * 8;
  static constexpr int REGISTERS = 232; /* of 168: the fetching group keeps 40 */
  static constexpr int PHASES = TALL == 2 ? 4 : 1;
  static_assert(BYTES <= 232448, "shared memory of a block");
  static_assert(BOXES % OUTS == 0, "boxes go out in lots");
};

typedef struct sizes {
  int tiles, columns, across,
      down;  /* in all; of WIDE results (and a phase); patches of a picture */
  int steps; /* 128 bytes of channels and a dx each */
  int c, o, left, top;
  int wide, tall, deep;     /* a patch: pixels, lines, pictures */
  int line, unit;           /* bytes of a patch's line, and from a unit to the next */
  int unit_tall, unit_deep; /* lines, or pictures, from a unit to the next */
  int pixel_bytes;          /* of a patch with its border */
  bool residual;
} sizes;

/* Where results go, for each phase. */
template <int PHASES> struct results { CUtensorMap of[PHASES]; };

/* Where a tile begins. */
struct place {
  int column, x, y, n, phase;
  template <typename C> static __device__ __forceinline__ place of(int tile, const sizes &s) {
    int at = tile / s.columns;
    place p;
    p.column = tile - at * s.columns;
    p.phase = C::PHASES > 1 ? p.column / (s.columns / C::PHASES) : 0;
    p.column = (p.column - p.phase * (s.columns / C::PHASES)) * C::WIDE;
    p.x = at % s.across * s.wide;
    at /= s.across;
    p.y = at % s.down * s.tall;
    p.n = at / s.down * s.deep;
    return p;
  }
};

/* A: of x and w, T or int8_t. */
template <typename A, typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ results<C::PHASES> out_maps,
           const __grid_constant__ CUtensorMap residual_map, const float *scale, const T *bias,
           const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int M64 = C::M64, WIDE = C::WIDE, BLOCKS = C::BLOCKS, OUTS = C::OUTS, BOX = C::BOX;
  constexpr int INNER = 128 / sizeof(A), TALL = C::TALL;
  constexpr bool CODES = sizeof(A) == 1;
  uint32_t base = crk_shared_address(shared), weights = base + C::WEIGHTS_AT;
  uint32_t x_full = base + C::BARRIERS_AT, x_empty = x_full + C::PIXEL_STAGES * 8;
  uint32_t w_full = x_empty + C::PIXEL_STAGES * 8, w_empty = w_full + C::WEIGHT_STAGES * 8;
  uint32_t brought = w_empty + C::WEIGHT_STAGES * 8; /* a group's residual */
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    pipeline_init<C::PIXEL_STAGES>(x_full, x_empty);
    pipeline_init<C::WEIGHT_STAGES>(w_full, w_empty);
    mbarrier_init(brought, 1);
    mbarrier_init(brought + 8, 1);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (group == 2) {
    run_producer(&x_map, &w_map, [&] {
      pipeline_state<C::PIXEL_STAGES> x_at;
      pipeline_state<C::WEIGHT_STAGES> w_at;
      for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
        place p = place::of<C>(tile, s);
        if (C::PHASES > 1) p.x += p.phase % 2, p.y += p.phase / 2;
        for (int step = 0, c = 0, dx = 0; step < s.steps; step++) {
          uint32_t barrier = x_full + x_at.stage * 8;
          x_at.wait_empty(x_empty);
          mbarrier_expect(barrier, s.pixel_bytes);
          tma_load_4d(base + x_at.stage * C::PIXEL_BYTES, &x_map, c, p.x + dx - s.left, p.y - s.top,
                      p.n, barrier);
          x_at.advance();
          for (int dy = 0; dy < TALL; dy++) {
            barrier = w_full + w_at.stage * 8;
            w_at.wait_empty(w_empty);
            mbarrier_expect(barrier, C::WEIGHT_BYTES);
            tma_load_4d(weights + w_at.stage * C::WEIGHT_BYTES, &w_map, c, dx, dy,
                        p.phase * s.o + p.column, barrier);
            w_at.advance();
          }
          if (++dx == TALL) dx = 0, c += INNER;
        }
      }
    });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    float *own_bias = (float *)(shared + C::BIAS_AT + group * WIDE * 8);
    uint32_t out = base + C::OUT_AT + group * OUTS * BOX, lots = 0; /* of residual so far */
    brought += group * 8;
    /* Of stmatrix: the lane's row of 64 bytes, which of two neighbouring 16-byte units, and
     * what that is exchanged with. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 64, odd = lane / 16, turn = lane / 2 % 4;
    pipeline_state<C::PIXEL_STAGES> x_at;
    pipeline_state<C::WEIGHT_STAGES> w_at;
    typename accumulator_of<A>::type acc[M64][WIDE / 8][4];
    for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
      place p = place::of<C>(tile, s);
      /* Bias on its way while the products are made. */
      T add[(WIDE + 127) / 128] = {};
      float times[(WIDE + 127) / 128] = {};
      for (int i = 0; i < (WIDE + 127) / 128; i++) {
        int o = i * 128 + thread;
        if (bias && o < WIDE && p.column + o < s.o) add[i] = bias[p.phase * s.o + p.column + o];
        if (CODES && o < WIDE && p.column + o < s.o) times[i] = scale[p.phase * s.o + p.column + o];
      }
      /* Result, line and picture where a box of this group begins. */
      auto box_at = [&](int box) {
        int unit = group * M64 + box / BLOCKS;
        return make_int3(p.column + box % BLOCKS * 32, p.y + unit * s.unit_tall,
                         p.n + unit * s.unit_deep);
      };
      auto bring_residual = [&](int lot) {
        tma_store_wait<0>();
        mbarrier_expect(brought, OUTS * BOX);
        for (int i = 0; i < OUTS; i++) {
          int3 at = box_at(lot * OUTS + i);
          tma_load_4d(out + i * BOX, &residual_map, at.x, p.x, at.y, at.z, brought);
        }
      };

      uint32_t last_x = 0, last_w = 0; /* stages to give back */
      for (int step = 0; step < s.steps; step++) {
        mbarrier_wait(x_full + x_at.stage * 8, (int)x_at.phase);
        uint64_t a = descriptor_128b(base + x_at.stage * C::PIXEL_BYTES + group * M64 * s.unit);
        auto multiply =
            [&](auto pieces) { /* of 32 bytes of each line */
#pragma unroll
                               for (int dy = 0; dy < TALL; dy++) {
                                 mbarrier_wait(w_full + w_at.stage * 8, (int)w_at.phase);
                                 uint64_t b =
                                     descriptor_128b(weights + w_at.stage * C::WEIGHT_BYTES);
                                 wgmma_fence();
#pragma unroll
                                 for (int i = 0; i < M64; i++)
#pragma unroll
                                   for (int j = 0; j < decltype(pieces)::value; j++)
                                     wgmma<A>(acc[i], a + ((dy * s.line + i * s.unit) >> 4) + j * 2,
                                              b + j * 2, step > 0 || dy > 0 || j > 0);
                                 wgmma_commit();
                                 if (step > 0 ||
                                     dy >
                                         0) { /* what the products before these have read is free */
                                   wgmma_wait<1>();
                                   if (lane == 0) {
                                     mbarrier_arrive(w_empty + last_w * 8);
                                     if (dy == 0) mbarrier_arrive(x_empty + last_x * 8);
                                   }
                                 }
                                 last_w = w_at.stage;
                                 w_at.advance();
                               }
            };
        /* Of the last channels, the second half may be nothing but zeros: that of 320 codes. */
        if (CODES && step >= s.steps - TALL && (s.c - 1) % INNER < INNER / 2)
          multiply(std::integral_constant<int, 2>());
        else
          multiply(std::integral_constant<int, 4>());
        last_x = x_at.stage;
        x_at.advance();
        if (step == 0 && s.residual) {
          if (thread == 0) bring_residual(0);
          __syncwarp();
        }
      }
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < M64; i++) fence_accumulators(acc[i]);
      if (lane == 0) {
        mbarrier_arrive(w_empty + last_w * 8);
        mbarrier_arrive(x_empty + last_x * 8);
      }

      for (int i = 0; i < (WIDE + 127) / 128; i++)
        if (i * 128 + thread < WIDE) {
          if constexpr (CODES)
            ((float2 *)own_bias)[i * 128 + thread] = make_float2(times[i], crk_float(add[i]));
          else
            own_bias[i * 128 + thread] = crk_float(add[i]);
        }
#pragma unroll
      for (int lot = 0; lot < C::BOXES / OUTS; lot++) {
        if (s.residual) {
          if (lot > 0 && thread == 0) bring_residual(lot);
          __syncwarp();
          mbarrier_wait(brought, (int)lots++);
        } else if (thread == 0) {
          tma_store_wait<0>();
        }
        named_barrier_sync(1 + group, 128);
#pragma unroll
        for (int i = 0; i < OUTS; i++) {
          const int box = lot * OUTS + i, unit = box / BLOCKS, block = box % BLOCKS;
#pragma unroll
          for (int j = 0; j < 2; j++) {
            uint32_t at = out + i * BOX + out_row + ((2 * j + odd) ^ turn) * 16, r[4] = {};
            if (s.residual) crk_ldmatrix(r, at);
#pragma unroll
            for (int n = 0; n < 2; n++) {
              const int chunk = block * 4 + j * 2 + n;
              const auto &v = acc[unit][chunk];
              float4 f; /* {two scales, two biases}, or biases alone */
              if constexpr (CODES) {
                float4 pairs = ((const float4 *)own_bias)[chunk * 4 + lane % 4];
                f = make_float4(pairs.x, pairs.z, pairs.y, pairs.w);
              } else {
                float2 b = *(const float2 *)(own_bias + chunk * 8 + lane % 4 * 2);
                f = make_float4(1, 1, b.x, b.y);
              }
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
        fence_async_shared();
        named_barrier_sync(1 + group, 128);
        if (thread == 0) {
          for (int i = 0; i < OUTS; i++) {
            int3 at = box_at(lot * OUTS + i);
            tma_store_4d(&out_maps.of[p.phase], at.x, p.x, at.y, at.z, out + i * BOX);
          }
          tma_store_commit();
        }
      }
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

} // namespace conv_hopper

#endif
