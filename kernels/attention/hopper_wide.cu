/* Flash attention by Hopper's own products for one head of 512: the middle of the VAE.
 *
 * The accumulator of 64 queries and 512 columns fills the registers of two groups of 4 warps, so a
 * block takes 64 queries, and each of its two groups half of the result's columns. Both compute all
 * scores for themselves (k = 512, half as much work again): cheaper than exchanging probabilities
 * and maxima every step. Queries, 64 keys and 64 values fill shared memory (200 KiB), so there is
 * one buffer for each: the next keys are copied while probabilities and values are worked on, the
 * next values while scores are.
 *
 * Layout of shared memory and the rest as in flash_hopper.h; sums are added here, since the
 * widest product (256 columns) is full. Grid: query tile (fastest), head, batch entry, in x. */
#include "attention/flash_hopper.h"
#include "attention/flash_sizes.h"

namespace flash {
namespace {

[[maybe_unused]] constexpr int HALF = 256; /* columns of a group */
constexpr int WIDE = 512, WIDE_UNITS = WIDE / 8, WIDE_THREADS = 256;
constexpr int WIDE_ROWS = 64, WIDE_KEYS = 64;
constexpr int WIDE_UNIT = WIDE_KEYS * 16 + 16;         /* bytes from column unit to column unit */
constexpr int WIDE_BYTES = 3 * WIDE_UNITS * WIDE_UNIT; /* of Q, K and V alike */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* c = (FIRST) or += a b': 64 queries and 64 keys, 16 columns, both in shared memory. */
template <typename T, bool FIRST>
__device__ __forceinline__ void wide_qk_wgmma(float (&c)[8][4], uint64_t a, uint64_t b);
/* c += p v: 16 keys and 256 columns. */
template <typename T>
__device__ __forceinline__ void wide_pv_wgmma(float (&c)[32][4], const uint32_t (&a)[4],
                                              uint64_t b);
#define CRK_WIDE_SCORES(type, name, first, more, io)                                               \
  template <>                                                                                      \
  __device__ __forceinline__ void wide_qk_wgmma<type, first>(float(&c)[8][4], uint64_t a,          \
                                                             uint64_t b) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " more ", 0;\n"                                 \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" TEXT_32          \
                 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                  \
                 : FIRST_32(io)                                                                    \
                 : "l"(a), "l"(b));                                                                \
  }
#define CRK_WIDE(type, name)                                                                       \
  CRK_WIDE_SCORES(type, name, true, "0", OUT)                                                      \
  CRK_WIDE_SCORES(type, name, false, "1", INOUT)                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void wide_pv_wgmma<type>(float(&c)[32][4], const uint32_t(&a)[4],     \
                                                      uint64_t b) {                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                        \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." name "." name " {" TEXT_128        \
                 "}, {%128,%129,%130,%131}, %132, p, 1, 1, 1;\n}"                                  \
                 : FIRST_128(INOUT)                                                                \
                 : A4, "l"(b));                                                                    \
  }
CRK_WIDE(__half, "f16")
CRK_WIDE(__nv_bfloat16, "bf16")
#endif

/* 64 rows of 512 columns to units in shared memory; rows from `last` on become zeros. */
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
    arrive(); /* keys are there, and all are done with the values before */
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
    arrive(); /* values are there, and all are done with the keys */
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
      wide_pv_wgmma<T>(o, x, v_matrix + i * 16);
    }
    wgmma_commit_and_wait();
    fence_accumulators(o);
  }

  /* The result goes through the keys' place, row by row. */
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
  for (int row = 0; row < 16; row++) /* a warp writes a row's half at once */
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
