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

#include "linear/gemm_phases_hopper.h"
#include "linear/linear.h"

namespace linear {

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
  if (threadIdx.x == 0) init_barriers<C>(full, empty, residual_full, order);
  __syncthreads();

  if (warpgroup == 2) {
    run_producer(&x_map, &w_map, [&] { load<A, C>(x_map, w_map, s, base, full, empty, k_tiles); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));
    float *own_factors = (float *)(shared + C::FACTORS_AT + warpgroup * BLK_N * 8);
    const float4 *columns = (const float4 *)own_factors + lane % 4;
    uint32_t out = base + C::OUT_AT + warpgroup * C::OUT_BUFFERS * C::OUT_BYTES;
    const stmatrix_lane own = stmatrix_lane::of(warp, lane);
    uint32_t count = 0, last = 0; /* pipeline stages consumed so far; the one to release next */
    uint32_t tiles = 0;
    sum_type sum[M64][BLK_N / 8][4]; // (M64, BLK_N / 8, fragment)
    tile_scheduler<C::GROUP_M, sizes<T>> at(s);
    /* With PINGPONG, every other tile is the other warpgroup's. */
    if (PINGPONG && warpgroup == 1) at.advance(s), count += (uint32_t)k_tiles;
    if (AHEAD && thread == 0 && s.residual && at.valid(s))
      load_residual<C>(residual_map, s, at, 0, out, residual_full, warpgroup);
    for (; at.valid(s); tiles++) {
      int row = at.row * C::BLK_M + (PINGPONG ? 0 : warpgroup * 64), column = at.column * BLK_N;
      /* ---- the epilogue's factors, of two columns and of this thread's rows in the accumulator,
       * are loaded while the main loop runs ---- */
      float scale[2] = {}, of_row[M64][2] = {};
      T bias[2] = {};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int c = thread + i * 128;
        if (c < BLK_N && column + c < s.width) load_column<CODES>(scale[i], bias[i], s, column + c);
        load_rows<CODES>(of_row, i, s, row + warp * 16 + lane / 4 + i * 8);
      }
      if (!AHEAD) {
        if (thread == 0 && s.residual) {
          tma_store_wait<0>();
          for (uint32_t u = 0; u < M64; u++)
            load_residual<C>(residual_map, s, at, u, out, residual_full, warpgroup);
        }
        __syncwarp();
      }
      if (PINGPONG) wait_turn(order, warpgroup, tiles);

      /* ---- main loop ---- */
      if constexpr (FAST) {
        main_loop<A, C>(sum, count, last, order, base, full, empty, s.inner, k_tiles, warpgroup,
                        lane);
      } else {
        clear(sum[0]);
        for (int k = 0; k < k_tiles; k++, count++) {
          uint32_t stage = count % STAGES, stage_at = base + stage * C::STAGE_BYTES;
          mbarrier_wait(full + stage * 8, (int)(count / STAGES));
          uint64_t x = descriptor_128b(stage_at + warpgroup * (64 * 128)), // (64, BLK_K)
              w = descriptor_128b(stage_at + C::X_BYTES);                  // (BLK_N, BLK_K)
          sum_type part[BLK_N / 8][4];                                     // (BLK_N / 8, fragment)
          /* The second half of the last 128 bytes may be only zeros, as with 320 codes. */
          if (s.inner - k * BLK_K <= BLK_K / 2)
            multiply_and_wait<A, 2>(part, x, w);
          else
            multiply_and_wait<A, 4>(part, x, w);
          fence_accumulators(part);
          if (lane == 0) mbarrier_arrive(empty + stage * 8);
          add(sum[0], part);
        }
      }

      /* ---- epilogue: output buffers take turns, or (PINGPONG) are a tile's two halves ---- */
      uint32_t p = AHEAD ? tiles % 2 : 0;
      if (PINGPONG) at.advance(s), count += (uint32_t)k_tiles;
      at.advance(s);
      if (thread == 0) {
        if (AHEAD || !s.residual)
          tma_store_wait<0>(); /* all tiles before this one have left their output buffers */
        if (AHEAD && s.residual && at.valid(s))
          load_residual<C>(residual_map, s, at, 1 - p, out, residual_full, warpgroup);
      }
      share_factors<CODES, C>(own_factors, scale, bias, thread);
      if (s.residual) wait_residual<C>(residual_full + (warpgroup * 2 + p) * 8, tiles);
      store_results<CODES, T, C>(out_map, out, p, own, s.residual, sum, of_row, columns, row,
                                 column, warpgroup, thread);
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
