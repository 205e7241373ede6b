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
 * dimension) by bulk copies into a ring of STAGES, the other two groups multiply. A group's tile
 * fills 128 registers of each thread, so that its GELU (about 19 instructions for a result, two of
 * them of the slow unit) cannot overlap its own next products; it does overlap the other group's.
 * Two ways:
 * - KEPT > 0: a block keeps its tile of w (KEPT * 64 of the inner dimension) for all its rows, and
 *   the groups take turns at row tiles, each with all of w's columns. Only x is read: a byte for
 *   256 operations (M64 = 1) or 128 (M64 = 2), half a byte where two blocks share it (CLUSTER = 2:
 *   the same rows, neighbouring columns; each fetches half of the rows for both).
 * - KEPT = 0: both are fetched for every tile of 128 rows, 64 for each group, a byte for 85
 *   operations, or 128 where two blocks share w (CLUSTER = 2: one above the other; one fetches the
 *   values' rows for both, one the gates'). The groups share stages, so the second one starts
 *   `skew` stages late, whence its GELU comes later too.
 *
 * Results go through shared memory, 64 x 64 at a time, and out by bulk copies. Sizes: any number of
 * rows, width and inner multiples of 8 (bulk copies bring zeros for what is outside, and write none
 * of it). */
#ifndef CRK_LINEAR_GEGLU_H
#define CRK_LINEAR_GEGLU_H

#include "hopper.h"

namespace geglu {

using namespace hopper;

template <int M64_, int HALF_, int KEPT_, int STAGES_, int CLUSTER_, int OUTS_> struct tile {
  static constexpr int M64 = M64_, HALF = HALF_, KEPT = KEPT_, STAGES = STAGES_, OUTS = OUTS_;
  static constexpr int CLUSTER = CLUSTER_, THREADS = 384, BOX = 64 * 128; /* bytes of 64 x 64 */
  /* Rows of a tile: of one group's, or of both groups' together. */
  static constexpr int ROWS = KEPT ? 64 * M64 : 128;
  static constexpr int W_BYTES = 2 * HALF * 128; /* for 64 of the inner dimension */
  static constexpr int STAGE = KEPT ? BOX : 2 * BOX + W_BYTES;
  static constexpr int RING_AT = KEPT * W_BYTES, OUT_AT = RING_AT + STAGES * STAGE;
  static constexpr int BIAS_AT = OUT_AT + 2 * OUTS * BOX, BARRIERS_AT = BIAS_AT + 2 * HALF * 8;
  static constexpr int BYTES = BARRIERS_AT + (2 * STAGES + KEPT + 1) * 8;
  static constexpr int REGISTERS = 232; /* of 168: the fetching group keeps 40 */
  static_assert(BYTES <= 232448, "shared memory of a block");
  static_assert(M64 * HALF == 128 && (KEPT || M64 == 1), "accumulators");
};

typedef struct sizes {
  int width, inner;
  int row_tiles, column_tiles; /* of ROWS, of HALF; those that a cluster takes count as one */
  int split; /* KEPT: blocks for one tile of columns, 0: tiles are dealt out regardless of it */
  int group; /* else: row tiles that take all tiles of columns before the next ones begin */
  int skew;  /* stages by which the second group starts later */
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

/* The tiles of a block, one after another: row and column of each in units of tiles. */
template <typename C> struct walk {
  int at, end, step, row, column;
  __device__ __forceinline__ walk(const sizes &s) {
    int block = (int)blockIdx.x / C::CLUSTER, blocks = (int)gridDim.x / C::CLUSTER;
    int64_t all = (int64_t)s.row_tiles * s.column_tiles;
    if (!C::KEPT) {
      at = block, end = (int)all, step = blocks;
    } else if (s.split) {
      int first = block / s.split * s.row_tiles, i = block % s.split;
      at = first + (int)((int64_t)s.row_tiles * i / s.split);
      end = first + (int)((int64_t)s.row_tiles * (i + 1) / s.split);
      step = 1;
    } else {
      at = (int)(all * block / blocks);
      end = (int)(all * (block + 1) / blocks);
      step = 1;
    }
    find(s);
  }
  __device__ __forceinline__ void find(const sizes &s) {
    if (C::KEPT) {
      column = at / s.row_tiles;
      row = at - column * s.row_tiles;
    } else {
      int of_group = s.group * s.column_tiles, group = at / of_group, i = at - group * of_group;
      int high = min(s.group, s.row_tiles - group * s.group);
      column = i / high;
      row = group * s.group + i - column * high;
    }
  }
  __device__ __forceinline__ bool more() const { return at < end; }
  __device__ __forceinline__ void next(const sizes &s, int n = 1) {
    at += n * step;
    if (at < end) find(s);
  }
};

template <typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map, const T *bias, const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int STAGES = C::STAGES, HALF = C::HALF, BOX = C::BOX;
  uint32_t base = crk_shared_address(shared), ring = base + C::RING_AT;
  uint32_t full = base + C::BARRIERS_AT, empty = full + STAGES * 8;
  uint32_t kept_full = empty + STAGES * 8, kept_empty = kept_full + C::KEPT * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int group = threadIdx.x / 128;
  uint32_t rank = C::CLUSTER > 1 ? cluster_rank() : 0;
  int steps = (s.inner + 63) / 64;
  /* Of the tiles that a cluster takes together: this block's. */
  auto own_row = [&](int row) { return C::KEPT ? row : row * C::CLUSTER + (int)rank; };
  auto own_column = [&](int column) { return C::KEPT ? column * C::CLUSTER + (int)rank : column; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_new(full + i * 8, 1);
      barrier_new(empty + i * 8, (C::KEPT ? 4 : 8) * C::CLUSTER); /* warps that read it */
    }
    for (int i = 0; i < C::KEPT; i++) barrier_new(kept_full + i * 8, 1);
    if (C::KEPT) barrier_new(kept_empty, 8);
    barriers_made();
  }
  if (C::CLUSTER > 1)
    cluster_meet();
  else
    __syncthreads();

  if (group == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) {
      box_prefetch(&x_map);
      box_prefetch(&w_map);
      uint32_t stage = 0, round = 0; /* round: how often the ring has been gone through */
      int column = -1, columns = 0;
      auto free_stage = [&]() {
        if (round > 0) barrier_wait(empty + stage * 8, (int)round - 1);
      };
      auto next_stage = [&]() {
        if (++stage == STAGES) stage = 0, round++;
      };
      for (walk<C> at(s); at.more(); at.next(s)) {
        bool fresh = at.column != column;
        if (C::KEPT && fresh && columns++ > 0) barrier_wait(kept_empty, columns - 2);
        column = at.column;
        int w_row = own_column(column) * HALF, x_row = own_row(at.row) * C::ROWS;
        for (int k = 0; k < steps; k++) {
          if constexpr (C::KEPT > 0) {
            if (fresh) {
              uint32_t to = base + k * C::W_BYTES, barrier = kept_full + k * 8;
              barrier_expect(barrier, C::W_BYTES);
              box_load(to, &w_map, k * 64, w_row, barrier);
              box_load(to + C::W_BYTES / 2, &w_map, k * 64, s.width + w_row, barrier);
            }
            for (int i = 0; i < C::M64; i++) {
              free_stage();
              barrier_expect(full + stage * 8, C::STAGE);
              if constexpr (C::CLUSTER > 1)
                box_load_to(ring + stage * BOX + rank * (BOX / 2), &x_map, k * 64,
                            x_row + i * 64 + (int)rank * 32, full + stage * 8, 3);
              else
                box_load(ring + stage * BOX, &x_map, k * 64, x_row + i * 64, full + stage * 8);
              next_stage();
            }
          } else {
            free_stage();
            uint32_t to = ring + stage * C::STAGE, barrier = full + stage * 8;
            barrier_expect(barrier, C::STAGE);
            box_load(to, &x_map, k * 64, x_row, barrier);
            to += 2 * BOX;
            if constexpr (C::CLUSTER >
                          1) { /* values come from the first block, gates from the other */
              box_load_to(to + rank * (C::W_BYTES / 2), &w_map, k * 64,
                          w_row + (rank ? s.width : 0), barrier, 3);
            } else {
              box_load(to, &w_map, k * 64, w_row, barrier);
              box_load(to + C::W_BYTES / 2, &w_map, k * 64, s.width + w_row, barrier);
            }
            next_stage();
          }
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    const float4 *pairs = (const float4 *)(shared + C::BIAS_AT + group * HALF * 8) + lane % 4;
    float *own_bias = (float *)(shared + C::BIAS_AT + group * HALF * 8);
    uint32_t out = base + C::OUT_AT + group * C::OUTS * BOX, out_slot = 0;
    /* Of store_matrices: the lane's row, and which of two neighbouring units. */
    uint32_t out_row = (uint32_t)(warp * 16 + lane % 16) * 128, odd = lane / 16, turn = lane % 8;
    uint32_t count = 0, last = 0; /* stages so far; the one to give back */
    auto release = [&](uint32_t stage) {
      if (C::CLUSTER > 1) {
        if (lane < 2) barrier_arrive_at(empty + stage * 8, lane);
      } else if (lane == 0) {
        barrier_arrive(empty + stage * 8);
      }
    };
    float acc[C::M64][HALF / 4][4];
    walk<C> at(s);
    const int first = at.at;
    int column = at.column, bias_of = -1;
    uint32_t columns = 0;
    bool fresh = true, late = !C::KEPT && s.skew > 0;
    if (late && group == 1) meet(3, 256);
    /* The groups take turns. None looks for its stages before the other has found all of its own:
     * of a barrier's phases only the last two can be told from each other. */
    if (C::KEPT && group == 1) {
      at.next(s);
      count = steps * C::M64;
    }
    while (at.more()) {
      if (C::KEPT)
        for (; column < at.column; column++, columns++) {
          if (fresh) /* a column without a tile of ours: its phase must not be missed */
            for (int k = 0; k < steps; k++) barrier_wait(kept_full + k * 8, (int)columns);
          if (lane == 0) barrier_arrive(kept_empty);
          fresh = true;
        }
      int first_column = own_column(at.column) * HALF;
      /* Bias on its way while the products are made: of one column for each thread. */
      bool other = first_column != bias_of, inside = bias && first_column + thread < s.width;
      T of_value{}, of_gate{};
      if (other && inside && thread < HALF) {
        of_value = bias[first_column + thread];
        of_gate = bias[s.width + first_column + thread];
      }
      if (C::KEPT && at.at != first) meet(3 + group, 256);
      for (int k = 0; k < steps; k++) {
        if (C::KEPT && fresh) barrier_wait(kept_full + k * 8, (int)columns);
#pragma unroll
        for (int i = 0; i < C::M64; i++) {
          uint32_t stage = count % STAGES;
          barrier_wait(full + stage * 8, (int)(count / STAGES));
          uint32_t x_at = ring + stage * C::STAGE, w_at = base + k * C::W_BYTES;
          if (!C::KEPT) {
            w_at = x_at + 2 * BOX;
            x_at += group * BOX;
          }
          uint64_t a = swizzled(x_at), b = swizzled(w_at);
          products_begin();
#pragma unroll
          for (int j = 0; j < 4; j++)
            product_of_rows<T>(acc[i], a + j * 2, b + j * 2, j > 0 || k > 0);
          products_commit();
          if (k > 0 || i > 0) { /* the stage before this one has been read */
            products_wait_but<1>();
            release(last);
          }
          last = stage;
          count++;
        }
        if (late && group == 0 && (k == s.skew - 1 || k == steps - 1)) {
          meet_no_wait(3, 256);
          late = false;
        }
      }
      if (C::KEPT && at.at + 1 < at.end) meet_no_wait(3 + !group, 256); /* the other's turn */
      products_wait_but<0>();
#pragma unroll
      for (int i = 0; i < C::M64; i++) settle(acc[i]);
      release(last);
      fresh = false;

      if (other) { /* {two values', two gates'} of each pair of columns */
        bias_of = first_column;
        if (thread < HALF) {
          float *to = own_bias + thread / 2 * 4 + thread % 2;
          to[0] = crk_float(of_value);
          to[2] = crk_float(of_gate);
        }
        meet(1 + group, 128);
      }
      int row = own_row(at.row) * C::ROWS + (C::KEPT ? 0 : group * 64);
#pragma unroll
      for (int i = 0; i < C::M64; i++)
#pragma unroll
        for (int block = 0; block < HALF / 64; block++) {
          uint32_t to = out + out_slot * BOX, r[4][4];
#pragma unroll
          for (int j = 0; j < 8; j += 2)
#pragma unroll
            for (int n = 0; n < 2; n++) {
              const int c = block * 8 + j + n;
              const float(&v)[4] = acc[i][c], (&g)[4] = acc[i][HALF / 8 + c];
              float4 add = pairs[c * 4];
#pragma unroll
              for (int h = 0; h < 2; h++)
                r[j / 2][2 * n + h] =
                    crk_pair<T>((v[2 * h] + add.x) * gelu(g[2 * h] + add.z),
                                (v[2 * h + 1] + add.y) * gelu(g[2 * h + 1] + add.w));
            }
          if (thread == 0) box_stores_read<C::OUTS - 1>();
          meet(1 + group, 128);
#pragma unroll
          for (int j = 0; j < 4; j++)
            store_matrices(to + out_row + ((2 * j + odd) ^ turn) * 16, r[j]);
          shared_for_products();
          meet(1 + group, 128);
          if (thread == 0) box_store(&out_map, first_column + block * 64, row + i * 64, to);
          out_slot = (out_slot + 1) % C::OUTS;
        }
      if (C::KEPT) count += steps * C::M64;
      at.next(s, C::KEPT ? 2 : 1);
    }
    /* The walk's last tile may be the other group's and begin a column. */
    if (C::KEPT && column < (at.end - 1) / s.row_tiles && lane == 0) barrier_arrive(kept_empty);
    if (late && group == 0) meet_no_wait(3, 256);
    if (thread == 0) box_stores_read<0>();
  }
  if (C::CLUSTER > 1) cluster_meet(); /* none leaves while another still arrives at its barriers */
#endif
}

} // namespace geglu

#endif
