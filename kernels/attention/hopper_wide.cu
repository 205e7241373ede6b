/* Flash attention on Hopper for one head of 512: the middle of the VAE.
 *
 * The accumulator of 64 queries and 512 columns fills the registers of two warpgroups, so a block
 * takes 64 queries, and each of its two warpgroups half of the result's columns. Both compute all
 * scores for themselves (K = 512, half as much work again), which is cheaper than exchanging
 * probabilities and maxima in every step. Queries, 64 keys and 64 values fill shared memory (200
 * KiB), so there is one buffer for each: the next keys are copied during P V, the next values
 * during Q K'.
 *
 * The layout of shared memory and the rest are those of flash_hopper.h, but the sums of P are added
 * here, since the widest wgmma (256 columns) has no column left for them. Grid: query tile
 * (fastest), head, batch entry, in x. */
#include "attention/flash_hopper.h"
#include "attention/flash_sizes.h"

namespace flash {
namespace {

[[maybe_unused]] constexpr int HALF = 256; /* columns of a warpgroup */
constexpr int WIDE = 512, WIDE_UNITS = WIDE / 8, WIDE_THREADS = 256;
constexpr int WIDE_ROWS = 64, WIDE_KEYS = 64;
constexpr int WIDE_UNIT = WIDE_KEYS * 16 + 16;         /* bytes from one column unit to the next */
constexpr int WIDE_BYTES = 3 * WIDE_UNITS * WIDE_UNIT; /* Q, K and V, which are alike */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* S = (FIRST) or += Q K': 64 queries and 64 keys, 16 columns, both in shared memory; not swizzled.
 * wide_pv_wgmma: O += P V, 16 keys and 256 columns. */
#define CRK_WIDE_QK(type, name, first, accumulate, io)                                             \
  template <>                                                                                      \
  __device__ __forceinline__ void wide_qk_wgmma<type, first>(float(&c)[8][4], uint64_t a,          \
                                                             uint64_t b) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" TEXT_32          \
                 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                  \
                 : FIRST_32(io)                                                                    \
                 : "l"(a), "l"(b));                                                                \
  }
#define CRK_WIDE(type, name)                                                                       \
  CRK_WIDE_QK(type, name, true, "0", OUT)                                                          \
  CRK_WIDE_QK(type, name, false, "1", INOUT)                                                       \
  CRK_WGMMA_RS(wide_pv_wgmma, type, name, INOUT, "1", "1", 32, "256", 128, "128", "129", "130",    \
               "131", "132")
template <typename T, bool FIRST>
__device__ __forceinline__ void wide_qk_wgmma(float (&c)[8][4], uint64_t a, uint64_t b);
CRK_WIDE(__half, "f16")
CRK_WIDE(__nv_bfloat16, "bf16")
#endif

/* Starts copying 64 rows of 512 columns to units in shared memory; rows from `last` on become
 * zeros. */
[[maybe_unused]] __device__ __forceinline__ void
wide_fetch(uint32_t to, const char *from, uint32_t row_bytes, int first, int last) {
  int unit = threadIdx.x % WIDE_UNITS, row = threadIdx.x / WIDE_UNITS;
  to += unit * WIDE_UNIT + row * 16;
  from += (uint64_t)(first + row) * row_bytes + unit * 16;
#pragma unroll 4
  for (int i = 0; i < WIDE_ROWS; i += WIDE_THREADS / WIDE_UNITS)
    crk_cp_async16(to + i * 16, from + (uint64_t)i * row_bytes, first + row + i < last);
  cp_async_commit();
}

template <typename T>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    attention_hopper_wide_kernel(const __grid_constant__ crk_attention a, int tiles, float scale) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char shared[];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
  unsigned index = blockIdx.x;
  int first_row = (int)(index % tiles) * WIDE_ROWS;
  index /= tiles;
  int head = (int)(index % a.heads);
  index /= a.heads;
  int64_t q_at = (int64_t)head * WIDE, k_at = q_at, v_at = q_at, out_at = q_at + half * HALF;
  crk_attention_add(a, index, q_at, k_at, v_at, out_at);
  const char *k = (const char *)a.k + k_at * 2, *v = (const char *)a.v + v_at * 2;
  uint32_t q_shared = crk_shared_address(shared), k_shared = q_shared + WIDE_UNITS * WIDE_UNIT,
           v_shared = k_shared + WIDE_UNITS * WIDE_UNIT;
  wide_fetch(q_shared, (const char *)a.q + q_at * 2, (uint32_t)a.q_row * 2, first_row, a.T);
  wide_fetch(k_shared, k, (uint32_t)a.k_row * 2, 0, a.S);

  constexpr uint64_t ROWS_MATRIX = (uint64_t)(WIDE_UNIT / 16) << 16 | (uint64_t)(128 / 16) << 32;
  constexpr uint64_t V_MATRIX = (uint64_t)(128 / 16) << 16 | (uint64_t)(WIDE_UNIT / 16) << 32;
  uint64_t q_matrix = ROWS_MATRIX | (q_shared >> 4 & 0x3fff);
  uint64_t k_matrix = ROWS_MATRIX | (k_shared >> 4 & 0x3fff);
  uint64_t v_matrix = V_MATRIX | ((v_shared + half * (HALF / 8) * WIDE_UNIT) >> 4 & 0x3fff);
  float o[HALF / 8][4], m[2] = {-FLT_MAX, -FLT_MAX}, l[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < HALF / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;

  auto arrive = [] {
    cp_async_wait_all();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
#pragma unroll 1
  for (int key = 0; key < a.S; key += WIDE_KEYS) {
    arrive(); /* the keys have arrived, and nobody reads the last values any more */
    wide_fetch(v_shared, v, (uint32_t)a.v_row * 2, key, a.S);
    float s[8][4];
    wgmma_fence();
    wide_qk_wgmma<T, true>(s, q_matrix, k_matrix);
#pragma unroll
    for (int c = 1; c < WIDE / 16; c++)
      wide_qk_wgmma<T, false>(s, q_matrix + c * (2 * WIDE_UNIT / 16),
                              k_matrix + c * (2 * WIDE_UNIT / 16));
    wgmma_commit_and_wait();
    fence_accumulators(s);
    arrive(); /* the values have arrived, and nobody reads the keys any more */
    if (key + WIDE_KEYS < a.S) wide_fetch(k_shared, k, (uint32_t)a.k_row * 2, key + WIDE_KEYS, a.S);
    int left = a.S - key;
    if (left < WIDE_KEYS) mask_scores(s, left, lane);
    uint32_t p[8][2];
    probabilities64<T, 0>(s, p, o, m, l, scale);
    fence_accumulators(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t x[4] = {p[2 * i][0], p[2 * i][1], p[2 * i + 1][0], p[2 * i + 1][1]};
      wide_pv_wgmma(T(), o, x, v_matrix + i * 16);
    }
    wgmma_commit_and_wait();
    fence_accumulators(o);
  }

  /* ---- epilogue: results go through the memory of the keys, and out in whole rows ---- */
  __syncthreads();
  constexpr int PITCH = WIDE * 2 + 16;
  unsigned char *rows = shared + WIDE_UNITS * WIDE_UNIT + warp * 16 * PITCH + half * HALF * 2;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = l[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    float factor = 1.0f / sum;
    unsigned char *row = rows + (h * 8 + lane / 4) * PITCH + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < HALF / 8; n++)
      *(uint32_t *)(row + n * 16) = crk_pair<T>(o[n][2 * h] * factor, o[n][2 * h + 1] * factor);
  }
  __syncwarp();
#pragma unroll 4
  for (int row = 0; row < 16; row++) /* a warp writes half of a row at once */
    if (first_row + warp * 16 + row < a.T)
      crk_attention_put<T>(
          a.coded, a.out, out_at + (first_row + warp * 16 + row) * a.out_row + lane * 8,
          head * WIDE + half * HALF + lane * 8, *(const uint4 *)(rows + row * PITCH + lane * 16));
#endif
}

} // namespace
} // namespace flash

template <typename T> static int launch(crk_device *d, const crk_attention *a) {
  return hopper::compiled<flash::attention_hopper_wide_kernel<T>>(d)
             ? flash::hopper_launch(d, a, flash::attention_hopper_wide_kernel<T>, flash::WIDE_ROWS,
                                    flash::WIDE_THREADS, flash::WIDE_BYTES)
             : 0;
}

int crk_flash_hopper_wide(crk_device *d, const crk_attention *a) {
  return a->dtype == CR_F16 ? launch<__half>(d, a) : launch<__nv_bfloat16>(d, a);
}
