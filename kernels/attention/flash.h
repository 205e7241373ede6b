/* The flash attention kernel for all cards (mma.sync: sm_80 and newer), as a template. The files
 * flash_small.cu and flash_large.cu instantiate it, and flash.cu chooses.
 *
 * out = softmax(scale q k') v, streaming over the keys (Dao et al. 2022). A block takes WARPS * 16
 * * M queries of one head, each warp 16 * M of them for itself, and runs over the keys 32 at a
 * time. For 32 keys a warp computes its scores S, the probabilities P = 2^(scale log2e S - m),
 * rounded to T, and O += P V. S, P and O never leave registers: a packed accumulator of one mma is
 * exactly the operand of the next. Keys and values pass through shared memory in stages of KEYS,
 * which are copied asynchronously while the stage before is used.
 *
 * m is not the running maximum but an older one. It only has to be near enough that P does not
 * overflow, since it cancels in O / sum(P). So a step first computes P with the m that it has. Only
 * if a sum exceeds a limit does it take the maximum, scale O and the sum down, and compute P again;
 * in the first step m is the least float, so there it always does. This saves a maximum for each
 * score and nearly all rescaling of O. It costs no precision: that of a float is relative.
 *
 * Head sizes: D is the template's size; a.d <= D may be less, and the missing columns are zeros in
 * shared memory and are not stored. The last 8 columns of an odd multiple of 8 use the m16n8k8 mma,
 * so that D = 40 costs 40. With DV < D a block computes DV columns of the result, and D / DV blocks
 * repeat the scores: for a head so wide that O does not fit in registers.
 *
 * Shared memory: rows are padded to an odd number of 16-byte units, so that the 8 rows that an
 * ldmatrix reads lie in different banks. Each warp has its own rows of Q, and also transposes its
 * result there before it stores it.
 *
 * Grid: (query tile, fastest; column part; head; batch entry) in x, so that blocks which run at the
 * same time share their keys and values in the L2 cache. */
#ifndef CRK_ATTENTION_FLASH_H
#define CRK_ATTENTION_FLASH_H

#include <cfloat>

#include "attention/attention.h"
#include "device/tensor_core.h"

namespace flash {

/* ---- instructions ---- */

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/* c += a b: 16 x 8 by 8 x 8. */
template <typename T>
__device__ __forceinline__ void mma_m16n8k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b);
#define CRK_MULTIPLY(type, name)                                                                   \
  template <>                                                                                      \
  __device__ __forceinline__ void mma_m16n8k8<type>(float(&c)[4], uint32_t a0, uint32_t a1,        \
                                                    uint32_t b) {                                  \
    asm("mma.sync.aligned.m16n8k8.row.col.f32." name "." name                                      \
        ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                 \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                           \
        : "r"(a0), "r"(a1), "r"(b));                                                               \
  }
CRK_MULTIPLY(__half, "f16")
CRK_MULTIPLY(__nv_bfloat16, "bf16")
#undef CRK_MULTIPLY

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* ---- the kernel ---- */

constexpr int STEP = 32; /* keys of a step */
constexpr float SUM_LIMIT =
    32768.0f; /* the largest sum of a lane's probabilities in a step; the f16 maximum is 65504 */

/* Bytes from row to row in shared memory. */
template <int COLUMNS> constexpr int pitch = (COLUMNS / 8 | 1) * 16;

/* Tile sizes for one head size. Q_REGS: the queries stay in registers; else they are read from
 * shared memory in every step. BLOCKS: blocks that must fit on a multiprocessor. */
template <int D_, int DV_, int M_, int WARPS_, int KEYS_, int STAGES_, bool Q_REGS_, int BLOCKS_>
struct tile {
  static constexpr int D = D_, DV = DV_, M = M_, WARPS = WARPS_, KEYS = KEYS_, STAGES = STAGES_,
                       BLOCKS = BLOCKS_;
  static constexpr bool Q_REGS = Q_REGS_;
  static constexpr int THREADS = WARPS * 32, WARP_ROWS = 16 * M, ROWS = WARPS * WARP_ROWS;
  static constexpr int PARTS = D / DV;
  static constexpr int Q_PITCH = pitch<D>, V_PITCH = pitch<DV>;
  static constexpr int K_BYTES = KEYS * Q_PITCH, STAGE_BYTES = K_BYTES + KEYS * V_PITCH;
  static constexpr int BYTES = ROWS * Q_PITCH + STAGES * STAGE_BYTES;
  static_assert(D % DV == 0 && D % 8 == 0 && KEYS % STEP == 0, "sizes");
};

/* Starts copying ROWS rows of COLUMNS to shared memory by THREADS threads; rows from `last` on and
 * columns from `columns` on become zeros. */
template <int COLUMNS, int ROWS, int THREADS>
__device__ __forceinline__ void fetch(uint32_t to, const char *from, uint32_t row_bytes, int first,
                                      int last, int columns, int thread) {
  constexpr int CHUNKS = COLUMNS / 8, ALL = ROWS * CHUNKS, PITCH = pitch<COLUMNS>;
  constexpr int UNROLL = ALL > 4 * THREADS ? 4 : 8;
#pragma unroll UNROLL
  for (int i = 0; i < ALL; i += THREADS) {
    int at = i + thread;
    if (ALL % THREADS == 0 || at < ALL) {
      uint32_t row = (uint32_t)at / CHUNKS, chunk = (uint32_t)at % CHUNKS;
      crk_cp_async16(to + row * PITCH + chunk * 16,
                     from + (uint64_t)(first + row) * row_bytes + chunk * 16,
                     (int)(first + row) < last && (int)(chunk * 8) < columns);
    }
  }
}

/* Raises m to the maximum of a row's 8 KEYS scores, times scale and plus MARGIN, and rescales l
 * (NULL: there is none) and o to the new m. */
template <int MARGIN, int KEYS, int NO>
__device__ __forceinline__ void raise(const float (&s)[KEYS][4], float (&o)[NO][4], float (&m)[2],
                                      float *l, float scale) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float high = s[0][2 * h];
#pragma unroll
    for (int j = 0; j < KEYS; j++) high = fmaxf(high, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
    float before = m[h];
    m[h] = fmaxf(before, MARGIN ? fmaf(high, scale, (float)MARGIN) : high * scale);
    float factor = exp2_fast(before - m[h]);
    if (l) l[h] *= factor;
#pragma unroll
    for (int n = 0; n < NO; n++) {
      o[n][2 * h] *= factor;
      o[n][2 * h + 1] *= factor;
    }
  }
}

/* Probabilities of 16 queries and 32 keys, as operands of the next mma: p[j] has keys 8 j to 8 j +
 * 7 of rows lane / 4 and lane / 4 + 8. Adds their sums to l, and changes m, l and o if P overflows
 * with this m (see above). */
template <typename T, int NV>
__device__ __forceinline__ void probabilities(const float (&s)[4][4], uint32_t (&p)[4][2],
                                              float (&o)[NV][4], float (&m)[2], float (&l)[2],
                                              float scale) {
  bool again = false;
  for (;;) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float e0 = exp2_fast(fmaf(s[j][2 * h], scale, -m[h]));
        float e1 = exp2_fast(fmaf(s[j][2 * h + 1], scale, -m[h]));
        sum[h] += e0 + e1;
        p[j][h] = crk_pair<T>(e0, e1);
      }
    }
    bool good = sum[0] + sum[1] < SUM_LIMIT; /* also false for nan */
    if (again || __all_sync(~0u, good)) {
      l[0] += sum[0];
      l[1] += sum[1];
      return;
    }
    again = true;
    raise<0>(s, o, m, l, scale);
  }
}

/* Prologue: o (M, DV / 8, fragment) and l (M, 2 rows) are zeros, m (M, 2 rows) the least float. */
template <typename C>
__device__ __forceinline__ void clear(float (&o)[C::M][C::DV / 8][4], float (&m)[C::M][2],
                                      float (&l)[C::M][2]) {
  constexpr int M = C::M, NV = C::DV / 8;
#pragma unroll
  for (int i = 0; i < M; i++) {
    m[i][0] = m[i][1] = -FLT_MAX;
    l[i][0] = l[i][1] = 0.0f;
#pragma unroll
    for (int n = 0; n < NV; n++) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0.0f;
  }
}

/* Prologue, with Q_REGS: a warp's queries (16 M, D) from shared memory to q_kept (M, D / 16,
 * fragment). */
template <typename C, int KEPT>
__device__ __forceinline__ void keep_queries(uint32_t (&q_kept)[C::M][KEPT][4], uint32_t q_shared,
                                             uint32_t q_lane, int lane) {
  constexpr int M = C::M, PAIRS = C::D / 16, QP = C::Q_PITCH;
  constexpr bool ODD = C::D % 16 != 0;
#pragma unroll
  for (int i = 0; i < M; i++) {
#pragma unroll
    for (int c = 0; c < PAIRS; c++) crk_ldmatrix(q_kept[i][c], q_lane + i * 16 * QP + c * 32);
    if (ODD) crk_ldmatrix(q_kept[i][KEPT - 1], q_shared + (i * 16 + lane % 16) * QP + PAIRS * 32);
  }
}

/* S = Q K' of a warp's queries and the 32 keys from row `key` on of the stage at `base`. q_kept has
 * the queries, or is a register for them without Q_REGS; q_lane, k_lane and k_last are the lane's
 * addresses for ldmatrix. */
template <typename T, typename C, int KEPT>
__device__ __forceinline__ void scores(float (&s)[C::M][4][4], uint32_t (&q_kept)[C::M][KEPT][4],
                                       uint32_t q_shared, uint32_t q_lane, uint32_t base, int key,
                                       uint32_t k_lane, uint32_t k_last, int lane) {
  constexpr int M = C::M, PAIRS = C::D / 16, QP = C::Q_PITCH;
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
#pragma unroll
  for (int c = 0; c < PAIRS; c++) {
    uint32_t b[2][4];
    crk_ldmatrix(b[0], base + k_lane + key * QP + c * 32);
    crk_ldmatrix(b[1], base + k_lane + key * QP + 16 * QP + c * 32);
#pragma unroll
    for (int i = 0; i < M; i++) {
      if (!C::Q_REGS) crk_ldmatrix(q_kept[i][0], q_lane + i * 16 * QP + c * 32);
#pragma unroll
      for (int j = 0; j < 4; j++)
        crk_mma<T>(s[i][j], q_kept[i][C::Q_REGS ? c : 0], b[j / 2][j % 2 * 2],
                   b[j / 2][j % 2 * 2 + 1]);
    }
  }
  if (C::D % 16 != 0) {
    uint32_t b[4];
    crk_ldmatrix(b, base + k_last + key * QP);
#pragma unroll
    for (int i = 0; i < M; i++) {
      if (!C::Q_REGS) crk_ldmatrix(q_kept[i][0], q_shared + (i * 16 + lane % 16) * QP + PAIRS * 32);
#pragma unroll
      for (int j = 0; j < 4; j++)
        mma_m16n8k8<T>(s[i][j], q_kept[i][KEPT - 1][0], q_kept[i][KEPT - 1][1], b[j]);
    }
  }
}

/* Masks the scores of the keys from `left` on in s (M, 32 keys / 8, fragment), whose first key is
 * `key`. */
template <typename C>
__device__ __forceinline__ void mask_scores(float (&s)[C::M][4][4], int key, int left, int lane) {
  constexpr int M = C::M;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int column = key + 8 * j + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (column + e % 2 >= left) s[i][j][e] = -INFINITY;
  }
}

/* O += P V of the 32 values from row `key` on of the stage at `base`. */
template <typename T, typename C>
__device__ __forceinline__ void add_values(float (&o)[C::M][C::DV / 8][4],
                                           const uint32_t (&p)[C::M][4][2], uint32_t base, int key,
                                           uint32_t v_lane, uint32_t v_last) {
  constexpr int M = C::M, NV = C::DV / 8, VP = C::V_PITCH;
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int n = 0; n + 1 < NV; n += 2) {
      uint32_t b[4];
      crk_ldmatrix_trans(b, base + v_lane + (key + 16 * h) * VP + n * 16);
#pragma unroll
      for (int i = 0; i < M; i++) {
        uint32_t x[4] = {p[i][2 * h][0], p[i][2 * h][1], p[i][2 * h + 1][0], p[i][2 * h + 1][1]};
        crk_mma<T>(o[i][n], x, b[0], b[1]);
        crk_mma<T>(o[i][n + 1], x, b[2], b[3]);
      }
    }
  }
  if (C::DV % 16 != 0) {
    uint32_t b[4];
    crk_ldmatrix_trans(b, base + v_last + key * VP);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int i = 0; i < M; i++) {
        uint32_t x[4] = {p[i][2 * h][0], p[i][2 * h][1], p[i][2 * h + 1][0], p[i][2 * h + 1][1]};
        crk_mma<T>(o[i][NV - 1], x, b[2 * h], b[2 * h + 1]);
      }
  }
}

/* Epilogue: the results O / l of a warp, rounded, to its rows (16 M, DV) of shared memory. */
template <typename T, typename C>
__device__ __forceinline__ void stage_results(const float (&o)[C::M][C::DV / 8][4],
                                              const float (&l)[C::M][2], unsigned char *own,
                                              int lane) {
  constexpr int M = C::M, NV = C::DV / 8, QP = C::Q_PITCH;
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = l[i][h];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      float factor = 1.0f / sum;
      unsigned char *row = own + (i * 16 + h * 8 + lane / 4) * QP + lane % 4 * 4;
#pragma unroll
      for (int n = 0; n < NV; n++)
        *(uint32_t *)(row + n * 16) =
            crk_pair<T>(o[i][n][2 * h] * factor, o[i][n][2 * h + 1] * factor);
    }
}

template <typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    attention_flash_kernel(const __grid_constant__ crk_attention a, int tiles, float scale) {
  constexpr int D = C::D, DV = C::DV, M = C::M;
  constexpr int NV = DV / 8, PAIRS = D / 16, QP = C::Q_PITCH, VP = C::V_PITCH;
  constexpr bool ODD = D % 16 != 0;
  /* Q (ROWS, D), then STAGES of K (KEYS, D) and V (KEYS, DV) */
  extern __shared__ __align__(128) unsigned char shared[];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  unsigned index = blockIdx.x;
  int first_row = (int)(index % tiles) * C::ROWS + warp * C::WARP_ROWS;
  index /= tiles;
  int part = C::PARTS == 1 ? 0 : (int)(index % C::PARTS);
  index /= C::PARTS;
  int head = (int)(index % a.heads);
  index /= a.heads;
  int64_t q_at = (int64_t)head * a.d, k_at = q_at, v_at = q_at + part * DV, out_at = v_at;
  crk_attention_add(a, index, q_at, k_at, v_at, out_at);
  const char *q = (const char *)a.q + q_at * 2;
  const char *k = (const char *)a.k + k_at * 2, *v = (const char *)a.v + v_at * 2;
  int v_columns = a.d - part * DV;

  /* ---- prologue: this warp's queries, and the first stage of keys and values ---- */
  unsigned char *own = shared + warp * C::WARP_ROWS * QP;
  uint32_t q_shared = crk_shared_address(own), stages = crk_shared_address(shared + C::ROWS * QP);
  fetch<D, C::WARP_ROWS, 32>(q_shared, q, (uint32_t)a.q_row * 2, first_row, a.T, a.d, lane);
  auto fetch_stage = [&](int stage) {
    uint32_t to = stages + (C::STAGES == 1 ? 0 : stage % C::STAGES * C::STAGE_BYTES);
    fetch<D, C::KEYS, C::THREADS>(to, k, (uint32_t)a.k_row * 2, stage * C::KEYS, a.S, a.d,
                                  threadIdx.x);
    fetch<DV, C::KEYS, C::THREADS>(to + C::K_BYTES, v, (uint32_t)a.v_row * 2, stage * C::KEYS, a.S,
                                   v_columns, threadIdx.x);
    cp_async_commit();
  };
  fetch_stage(0);

  /* The addresses of this lane's rows for ldmatrix.x4. For Q and V the four 8x8 matrices are rows
   * 0-7 and 8-15 of columns 0-7, then of columns 8-15; for K they are columns 0-7 and 8-15 of rows
   * 0-7, then of rows 8-15. A single last column of matrices goes down 32 rows. */
  uint32_t q_lane = q_shared + lane % 16 * QP + lane / 16 * 16;
  uint32_t k_lane = (lane % 8 + lane / 16 * 8) * QP + lane / 8 % 2 * 16;
  uint32_t k_last = lane * QP + PAIRS * 32;
  uint32_t v_lane = C::K_BYTES + lane % 16 * VP + lane / 16 * 16;
  uint32_t v_last = C::K_BYTES + lane * VP + NV / 2 * 32;

  constexpr int KEPT = C::Q_REGS ? PAIRS + ODD : 1;
  uint32_t q_kept[M][KEPT][4]; // (M, D / 16, fragment), or (M, 1, fragment) without Q_REGS
  // o (M, DV / 8, fragment); m, l (M, 2 rows)
  float o[M][NV][4], m[M][2], l[M][2];
  clear<C>(o, m, l);

  /* ---- main loop over the stages ---- */
  int count = (a.S + C::KEYS - 1) / C::KEYS;
  for (int stage = 0; stage < count; stage++) {
    if (C::STAGES == 1 && stage > 0) {
      __syncthreads();
      fetch_stage(stage);
    }
    cp_async_wait_all();
    __syncthreads();
    if (C::STAGES > 1 && stage + 1 < count) fetch_stage(stage + 1);
    if (C::Q_REGS && stage == 0) keep_queries<C>(q_kept, q_shared, q_lane, lane);
    uint32_t base = stages + (C::STAGES == 1 ? 0 : stage % C::STAGES * C::STAGE_BYTES);
    int left = first_row < a.T ? a.S - stage * C::KEYS : 0;
#pragma unroll 1
    for (int key = 0; key < C::KEYS && key < left; key += STEP) {
      float s[M][4][4]; // (M, 32 keys / 8, fragment)
      scores<T, C>(s, q_kept, q_shared, q_lane, base, key, k_lane, k_last, lane);
      if (key + STEP > left) mask_scores<C>(s, key, left, lane);
      uint32_t p[M][4][2]; // (M, 32 keys / 8, fragment)
#pragma unroll
      for (int i = 0; i < M; i++) probabilities<T>(s[i], p[i], o[i], m[i], l[i], scale);

      add_values<T, C>(o, p, base, key, v_lane, v_last);
    }
  }

  /* ---- epilogue: through the warp's part of shared memory, and out in whole rows ---- */
  __syncwarp();
  stage_results<T, C>(o, l, own, lane);
  __syncwarp();
#pragma unroll 4
  for (int at = lane; at < C::WARP_ROWS * NV; at += 32) {
    int row = at / NV, chunk = at % NV;
    if (first_row + row < a.T && chunk * 8 < v_columns)
      crk_attention_put<T>(a.coded, a.out, out_at + (first_row + row) * a.out_row + chunk * 8,
                           head * a.d + part * DV + chunk * 8,
                           *(const uint4 *)(own + row * QP + chunk * 16));
  }
}

template <typename T, typename C> int launch(crk_device *d, const crk_attention *a) {
  int tiles = (int)crk_ceil_div(a->T, C::ROWS);
  int64_t blocks = tiles * (int64_t)C::PARTS * a->heads * a->batch;
  if (blocks > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "attention: %lld blocks are too many for one launch",
                    (long long)blocks);
  auto kernel = attention_flash_kernel<T, C>;
  CRK_TRY("attention", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  kernel<<<(unsigned)blocks, C::THREADS, C::BYTES, d->stream>>>(*a, tiles,
                                                                a->scale * 1.44269504088896340736f);
  return crk_launched("attention", d);
}

/* The launchers of a head size in f16 and bf16, with the parameters of its tile. */
#define CRK_FLASH_SIZE(size, ...)                                                                  \
  int crk_flash_f16_##size(crk_device *d, const crk_attention *a) {                                \
    return flash::launch<__half, flash::tile<__VA_ARGS__>>(d, a);                                  \
  }                                                                                                \
  int crk_flash_bf16_##size(crk_device *d, const crk_attention *a) {                               \
    return flash::launch<__nv_bfloat16, flash::tile<__VA_ARGS__>>(d, a);                           \
  }

} // namespace flash

#endif
