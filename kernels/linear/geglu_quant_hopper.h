/* The product of codes whose columns are values and gates, with GEGLU behind it, by Hopper's own
 * products:
 *
 *   out[m][n] = v gelu(g),  v = (x[m] . w[n]) x_scale[m] w_scale[n] + bias[n],
 *                           g = the same of w's row width + n
 *
 * x [rows inner] and w [2 width, inner] codes of 8 bits (A), x_scale [rows] (NULL: 1) and w_scale
 * [2 width] f32, bias [2 width] f16 or bf16 (T) or NULL. out [rows width] is T, or codes of the
 * layer that takes them: v / divisor[n] gelu(g).
 *
 * Its tiles and its three groups of warps are those of geglu_hopper.h, at twice the operations of a
 * byte. Two groups with tiles of their own, one after another, so that one's GELUs overlap the
 * other's products, would have tiles of half the columns: they read and write more of shared memory
 * than it gives (158 bytes a cycle), and took up to twice as long on an H200.
 *
 * Results go through shared memory and out by bulk copies. Sizes: any number of rows, width a
 * multiple of 8 (of 16 where results are codes), inner of 16. */
#ifndef CRK_GEGLU_QUANT_H
#define CRK_GEGLU_QUANT_H

#include "device/codes.h"
#include "device/hopper.h"
#include "linear/geglu_hopper.h"

namespace geglu_quant {

using namespace hopper;

enum {
  THREADS = 384,
  HALF = 128, /* columns of a tile */
  ROWS = 128, /* of both groups together */
  STAGES = 4,
  GROUP = 16, /* row tiles that take all tiles of columns before the next ones begin */
  X_BYTES = ROWS * 128,
  STAGE = X_BYTES + 2 * HALF * 128,
  BOX = 64 * 64, /* bytes of 64 rows by 32 results, or by 64 codes */
  OUTS = 2,      /* boxes of a group on their way out */
  OUT_AT = STAGES * STAGE,
  FACTORS_AT = OUT_AT + 2 * OUTS * BOX,
  BARRIERS_AT = FACTORS_AT + 2 * 2 * HALF * 8,
  BYTES = BARRIERS_AT + 2 * STAGES * 8,
  REGISTERS = 232 /* of 168: the fetching group keeps 40 */
};
static_assert(BYTES <= 232448, "shared memory of a block");

typedef struct sizes {
  const float *x_scale, *w_scale, *divisor; /* divisor: of codes */
  int rows, width, inner;
  int row_tiles, column_tiles;
  bool e4m3; /* which codes */
} sizes;

/* v gelu(g) for codes, whose steps are coarser than what this is off by: gelu by 3e-4 and the error
 * of the unit's tanh, which is up to 2e-4 g. A third of the instructions of geglu::gelu, which else
 * take longer than the products of 320 codes. */
__device__ __forceinline__ float times_gelu(float v, float g) {
  float half = 0.5f * g, t;
  float u = g * fmaf(0.03470095f, g * g, 0.80015694f);
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
  return v * fmaf(half, t, half);
}

template <typename A, typename T, bool CODES>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
           const __grid_constant__ CUtensorMap out_map, const T *bias, const sizes s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  uint32_t base = crk_shared_address(shared);
  uint32_t full = base + BARRIERS_AT, empty = full + STAGES * 8;
  int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
  int group = threadIdx.x / 128;
  int steps = (s.inner + 127) / 128;
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
          tma_load(to, &x_map, k * 128, at.row * ROWS, barrier);
          tma_load(to + X_BYTES, &w_map, k * 128, at.column * HALF, barrier);
          tma_load(to + X_BYTES + HALF * 128, &w_map, k * 128, s.width + at.column * HALF, barrier);
        }
    });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)REGISTERS));
    float *own_factors = (float *)(shared + FACTORS_AT + group * 2 * HALF * 8);
    const float4 *factors = (const float4 *)own_factors + lane % 4;
    uint32_t out = base + OUT_AT + group * OUTS * BOX;
    /* Of stmatrix: the lane's row of 64 bytes, and which of two neighbouring units. */
    int row16 = warp * 16 + lane % 16;
    uint32_t lane_at = (uint32_t)row16 * 64, odd = lane / 16, turn = row16 / 2 % 4;
    uint32_t count = 0, last = 0; /* stages so far; the one to give back */
    typename accumulator_of<A>::type sum[HALF / 4][4];
    for (tile_scheduler<GROUP, sizes> at(s); at.valid(s); at.advance(s)) {
      int row = at.row * ROWS + group * 64, column = at.column * HALF;
      /* Factors on their way while the products are made: of a value and its gate, of two rows. */
      float scale[2] = {}, inverse = 0, of_row[2] = {};
      T add[2] = {};
      if (column + thread < s.width) {
        int c = column + thread;
        scale[0] = s.w_scale[c], scale[1] = s.w_scale[s.width + c];
        if (bias) add[0] = bias[c], add[1] = bias[s.width + c];
        if (CODES) inverse = crk_inverse(s.divisor[c]);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int r = row + warp * 16 + lane / 4 + i * 8;
        if (r < s.rows) of_row[i] = s.x_scale ? s.x_scale[r] : 1.0f;
      }
      for (int k = 0; k < steps; k++) {
        uint32_t stage = count % STAGES;
        mbarrier_wait(full + stage * 8, (int)(count / STAGES));
        uint64_t a = descriptor_128b(base + stage * STAGE + group * (64 * 128)),
                 b = descriptor_128b(base + stage * STAGE + X_BYTES);
        auto multiply = [&](auto pieces) {
          wgmma_fence();
#pragma unroll
          for (int j = 0; j < decltype(pieces)::value; j++)
            wgmma<A>(sum, a + j * 2, b + j * 2, j > 0 || k > 0);
          wgmma_commit();
        };
        /* Of the last 128, the second half may be nothing but zeros: that of 320. */
        if (s.inner - k * 128 <= 64)
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

        /* {two scales, two biases} of each pair of values, then of gates. */
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float *to = own_factors + i * 2 * HALF + thread / 2 * 4 + thread % 2;
        float factor = CODES && i == 0 ? inverse : 1.0f; /* a value is divided before GEGLU */
        to[0] = scale[i] * factor;
        to[2] = crk_float(add[i]) * factor;
      }
      if (thread == 0) tma_store_wait<0>();
      named_barrier_sync(1 + group, 128);
#pragma unroll
      for (int lot = 0; lot < (CODES ? 1 : 2); lot++) {
        if (lot > 0) {
          if (thread == 0) tma_store_wait<0>();
          named_barrier_sync(1 + group, 128);
        }
        const int of_lot = CODES ? HALF / 8 : HALF / 16; /* pieces of 8 columns */
#pragma unroll
        for (int j = 0; j < of_lot; j += 2) {
          uint32_t r[4];
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const int c = lot * of_lot + j + n;
            const auto &v = sum[c], &g = sum[HALF / 8 + c];
            float4 f = factors[c * 4], e = factors[HALF / 2 + c * 4];

#pragma unroll
            for (int h = 0; h < 2; h++) {
              float k = of_row[h];
              float low = fmaf((float)v[2 * h], k * f.x, f.z),
                    high = fmaf((float)v[2 * h + 1], k * f.y, f.w);
              float low_gate = fmaf((float)g[2 * h], k * e.x, e.z),
                    high_gate = fmaf((float)g[2 * h + 1], k * e.y, e.w);
              if constexpr (CODES) {
                low = times_gelu(low, low_gate), high = times_gelu(high, high_gate);
                uint32_t two =
                    s.e4m3 ? crk_code<uint8_t>::two(low, high) : crk_code<int8_t>::two(low, high);
                int line = warp * 16 + lane / 4 + h * 8;
                uint32_t to = out + c / 8 * BOX + line * 64 + ((c % 8 / 2) ^ (line / 2 % 4)) * 16 +
                              c % 2 * 8 + lane % 4 * 2;
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"((uint16_t)two) : "memory");
              } else {
                r[2 * n + h] =
                    crk_pair<T>(low * geglu::gelu(low_gate), high * geglu::gelu(high_gate));
              }
            }
          }
          if constexpr (!CODES)
            stmatrix(out + j / 4 * BOX + lane_at + ((j % 4 + odd) ^ turn) * 16, r);
        }
        fence_async_shared();
        named_barrier_sync(1 + group, 128);
        if (thread == 0)
          for (int i = 0; i < OUTS; i++)
            tma_store(&out_map, column + (CODES ? i * 64 : lot * 64 + i * 32), row, out + i * BOX);
      }
    }
    if (thread == 0) tma_store_wait<0>();
  }
#endif
}

/* One product; out_codes 0: results of T, else CR_I8 or CR_U8. */
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
  s.row_tiles = (int)crk_ceil_div(s.rows, ROWS);
  s.column_tiles = (int)crk_ceil_div(s.width, HALF);
  s.e4m3 = j.out_codes == CR_U8;
  const CUtensorMapDataType bytes = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                            own = CODES ? bytes
                                  : std::is_same<T, __half>::value
                                      ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int size = CODES ? 1 : 2;
  CUtensorMap x, w, out;
  if (!make_tensor_map(&x, bytes, 1, (void *)j.x, s.rows, s.inner, s.inner, 128, ROWS) ||
      !make_tensor_map(&w, bytes, 1, (void *)j.w, 2 * (int64_t)s.width, s.inner, s.inner, 128,
                       HALF) ||
      !make_tensor_map(&out, own, size, j.out, s.rows, s.width, (int64_t)s.width * size, 64 / size,
                       64))
    return cr__fail(CR_EDEVICE, "%s: the driver cannot describe %d x %d x %d", name, s.rows,
                    s.inner, s.width);
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  unsigned blocks = (unsigned)(tiles < d->multiprocessors ? tiles : d->multiprocessors);
  kernel<<<blocks, THREADS, BYTES, d->stream>>>(x, w, out, j.bias, s);
  return crk_launched(name, d);
}

} // namespace geglu_quant

#endif
