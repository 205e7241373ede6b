/* The product whose columns are values and gates, with GEGLU behind it, by Hopper's own products:
 *
 *   out[m][n] = v gelu(g),  v = x[m] . w[n] + bias[n],  g = x[m] . w[width + n] + bias[width + n]
 *
 * x [rows inner], w [2 width, inner], out [rows width], f16 or bf16; sums, bias and GELU in f32.
 *
 * A tile takes HALF rows of w for values and the HALF that belong to them for gates, side by side
 * in shared memory, so that value and gate of a result are two registers of one thread and nothing
 * but results leaves the multiprocessor: unfused, [rows, 2 width] goes out and comes back.
 *
 * Three groups of four warps: one thread of the last fetches 128-byte rows (64 of the inner
 * dimension) by bulk copies into a ring of STAGES, the other two groups multiply, 64 rows each,
 * with the same of w: a byte is fetched for 85 operations. A group's tile fills 128 registers of
 * each thread, so that its GELU (about 19 instructions for a result, two of them of the slow unit)
 * cannot overlap its own next products; what the ring has fetched meanwhile makes up for it.
 * Keeping w in shared memory for all rows, sharing it between two blocks of a cluster, and letting
 * one group start later were measured on an H200 and won nothing.
 *
 * Results go through shared memory, 64 x 64 at a time, and out by bulk copies. Sizes: any number of
 * rows, width and inner multiples of 8 (bulk copies bring zeros for what is outside, and write none
 * of it). */
#ifndef CRK_LINEAR_GEGLU_H
#define CRK_LINEAR_GEGLU_H

#include "device/hopper.h"

namespace geglu {

using namespace hopper;

enum {
  THREADS = 384,
  HALF = 128,      /* columns of a tile */
  ROWS = 128,      /* of both groups together */
  STAGES = 4,      /* of the ring */
  OUTS = 2,        /* pieces of results that a group has on their way out */
  GROUP = 16,      /* row tiles that take all tiles of columns before the next ones begin */
  BOX = 64 * 128,  /* bytes of 64 x 64 */
  REGISTERS = 232, /* of 168: the fetching group keeps 40 */
  W_BYTES = 2 * HALF * 128,
  STAGE = 2 * BOX + W_BYTES,
  OUT_AT = STAGES * STAGE,
  BIAS_AT = OUT_AT + 2 * OUTS * BOX,
  BARRIERS_AT = BIAS_AT + 2 * HALF * 8,
  BYTES = BARRIERS_AT + 2 * STAGES * 8
};
static_assert(BYTES <= 232448, "shared memory of a block");

typedef struct sizes {
  int width, inner;
  int row_tiles, column_tiles;
} sizes;

/* g Phi(g). Phi(g) = 1 / (1 + 2^(g Q(g^2))), Q a polynomial fit by minimax of GELU's error (weights
 * 1 / (0.001 + |gelu|)): off by 3e-6 at most, by 2e-5 of itself from -3 on. -0 for -inf. */
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

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map, const T *bias, const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + BARRIERS_AT, empty = full + STAGES * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int group = threadIdx.x / 128;
  int steps = (s.inner + 63) / 64;
  if (threadIdx.x == 0) {
    pipeline_init<STAGES>(full, empty);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (group == 2) {
    run_producer(&x_map, &w_map, [&] {
      pipeline_state<STAGES> in;
      for (tile_scheduler<GROUP, sizes> at(s); at.valid(s); at.advance(s))
        for (int k = 0; k < steps; k++, in.advance()) {
          in.wait_empty(empty);
          uint32_t to = base + in.stage * STAGE, barrier = full + in.stage * 8;
          mbarrier_expect(barrier, STAGE);
          tma_load(to, &x_map, k * 64, at.row * ROWS, barrier);
          to += 2 * BOX;
          tma_load(to, &w_map, k * 64, at.column * HALF, barrier);
          tma_load(to + W_BYTES / 2, &w_map, k * 64, s.width + at.column * HALF, barrier);
        }
    });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)REGISTERS));
    const float4 *pairs = (const float4 *)(shared + BIAS_AT + group * HALF * 8) + lane % 4;
    float *own_bias = (float *)(shared + BIAS_AT + group * HALF * 8);
    uint32_t out = base + OUT_AT + group * OUTS * BOX, out_slot = 0;
    /* Of stmatrix: the lane's row, and which of two neighbouring units. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 128, odd = lane / 16, turn = lane % 8;
    uint32_t count = 0, last = 0; /* stages so far; the one to give back */
    auto release = [&](uint32_t stage) {
      if (lane == 0) mbarrier_arrive(empty + stage * 8);
    };
    float acc[HALF / 4][4];
    int bias_of = -1;
    for (tile_scheduler<GROUP, sizes> at(s); at.valid(s); at.advance(s)) {
      int first_column = at.column * HALF;
      /* Bias on its way while the products are made: of one column for each thread. */
      bool other = first_column != bias_of, inside = bias && first_column + thread < s.width;
      T of_value{}, of_gate{};
      if (other && inside) {
        of_value = bias[first_column + thread];
        of_gate = bias[s.width + first_column + thread];
      }
      for (int k = 0; k < steps; k++) {
        uint32_t stage = count % STAGES;
        mbarrier_wait(full + stage * 8, (int)(count / STAGES));
        uint32_t x_at = base + stage * STAGE;
        uint64_t a = descriptor_128b(x_at + group * BOX), b = descriptor_128b(x_at + 2 * BOX);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++) wgmma_half<T>(acc, a + j * 2, b + j * 2, j > 0 || k > 0);
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

      if (other) { /* {two values', two gates'} of each pair of columns */
        bias_of = first_column;
        float *to = own_bias + thread / 2 * 4 + thread % 2;
        to[0] = crk_float(of_value);
        to[2] = crk_float(of_gate);
        named_barrier_sync(1 + group, 128);
      }
#pragma unroll
      for (int block = 0; block < HALF / 64; block++) {
        uint32_t to = out + out_slot * BOX, r[4][4];
#pragma unroll
        for (int j = 0; j < 8; j += 2)
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const int c = block * 8 + j + n;
            const float(&v)[4] = acc[c], (&g)[4] = acc[HALF / 8 + c];
            float4 add = pairs[c * 4];
#pragma unroll
            for (int h = 0; h < 2; h++)
              r[j / 2][2 * n + h] =
                  crk_pair<T>((v[2 * h] + add.x) * gelu(g[2 * h] + add.z),
                              (v[2 * h + 1] + add.y) * gelu(g[2 * h + 1] + add.w));
          }
        if (thread == 0) tma_store_wait<OUTS - 1>();
        named_barrier_sync(1 + group, 128);
#pragma unroll
        for (int j = 0; j < 4; j++) stmatrix(to + out_row + ((2 * j + odd) ^ turn) * 16, r[j]);
        fence_async_shared();
        named_barrier_sync(1 + group, 128);
        if (thread == 0)
          tma_store(&out_map, first_column + block * 64, at.row * ROWS + group * 64, to);
        out_slot = (out_slot + 1) % OUTS;
      }
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

} // namespace geglu

#endif
