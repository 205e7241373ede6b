/* The flash attention kernel for Hopper (wgmma: sm_90a), as a template. The algorithm is that of
 * flash.h. What differs:
 *
 * A warpgroup takes 64 queries by the 64 keys of a step; the tensor cores read keys and values from
 * shared memory. A step issues P V of its keys and Q K' of the next ones together, so that a
 * warpgroup waits once a step. Meanwhile the other warpgroups of the multiprocessor compute
 * exponentials, which bound head size 40: it has 32 multiply-adds of the tensor cores for each
 * exponential, of which a multiprocessor computes 16 per clock. Therefore:
 * - Consumer warpgroups never wait for each other; else all would compute exponentials at the same
 *   time, and then all would multiply. A producer warpgroup copies keys and values, and mbarriers
 *   say which stages are full and which are empty. (A barrier of the whole block cost a fifth.)
 * - The sums of P are computed by the tensor cores, which have time to spare: V has a column of
 * ones behind its last one.
 * - An overflow of P shows in bit 14 of its elements, which in both types is set from 2 on. Right
 *   after the maximum has been taken, P is at most 2^-BIAS, which leaves it room to grow.
 * - Of each 16 pairs of exponentials, POLY have one by a polynomial, on the FMA units.
 *
 * Shared memory: keys and values are [column / 8][key] units of 16 bytes, wgmma's layout without a
 * swizzle: 8 keys are a dense core matrix. Column units are one 16-byte unit further apart than the
 * keys need, so that copies of neighbouring units go to different banks. K is padded by zeros to a
 * multiple of 16 columns (Q's registers hold zeros there too). */
#ifndef CRK_ATTENTION_HOPPER_H
#define CRK_ATTENTION_HOPPER_H

#include "attention/flash.h"
#include "device/hopper.h"

namespace flash {

using namespace hopper;

/* GROUPS consumer warpgroups beside one producer; a pipeline of STAGES of KEYS in shared memory. */
template <int D_, int GROUPS_, int KEYS_, int STAGES_, int BLOCKS_, int POLY_> struct hopper_tile {
  static constexpr int D = D_, KEYS = KEYS_, BLOCKS = BLOCKS_, POLY = POLY_, STAGES = STAGES_;
  static constexpr int CONSUMERS = GROUPS_ * 128, THREADS = CONSUMERS + 128, ROWS = GROUPS_ * 64;
  /* Registers of a thread: at the start, and of a consumer once the producer keeps only 24. */
  static constexpr int START = 65536 / BLOCKS / THREADS / 8 * 8;
  static constexpr int MOST = (START * THREADS - 128 * 24) / CONSUMERS / 8 * 8;
  static constexpr int REGISTERS = MOST > 240 ? 240 : MOST;
  static constexpr int UNITS = D / 8, K_UNITS = (D + 15) / 16 * 2, V_UNITS = UNITS + 1;
  static constexpr int Q_PITCH = pitch<D>, UNIT_BYTES = KEYS * 16 + 16;
  static constexpr int STAGE_BYTES = (K_UNITS + V_UNITS) * UNIT_BYTES;
  static constexpr int BYTES = ROWS * Q_PITCH + STAGES * STAGE_BYTES;
  static constexpr int V_AT = K_UNITS * UNIT_BYTES; /* of a stage: V (V_UNITS, KEYS) after K */
  /* Descriptors without the address: how far apart core matrices are along the columns of K (keys
   * of V) and along its keys (columns of V), in units of 16 bytes. */
  static constexpr uint64_t K_MATRIX = (uint64_t)(128 / 16) << 32 | UNIT_BYTES / 16 << 16;
  static constexpr uint64_t V_MATRIX = (uint64_t)(UNIT_BYTES / 16) << 32 | 128 / 16 << 16;
  static_assert(D % 8 == 0 && KEYS % 64 == 0, "sizes");
};

constexpr int BIAS = 4;

/* qk_wgmma_first: S = Q K'; qk_wgmma: S += Q K' (64 keys, 16 columns); pv_wgmma: O += P V (16 keys,
 * 8 n columns). Asynchronous: between wgmma_fence and wgmma_commit_and_wait. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CRK_ATTENTION_WGMMA(type, name)                                                            \
  CRK_WGMMA_RS(qk_wgmma_first, type, name, OUT, "0", "0", 8, "64", 32, "32", "33", "34", "35",     \
               "36")                                                                               \
  CRK_WGMMA_RS(qk_wgmma, type, name, INOUT, "1", "0", 8, "64", 32, "32", "33", "34", "35", "36")   \
  CRK_WGMMA_RS(pv_wgmma, type, name, INOUT, "1", "1", 6, "48", 24, "24", "25", "26", "27", "28")   \
  CRK_WGMMA_RS(pv_wgmma, type, name, INOUT, "1", "1", 9, "72", 36, "36", "37", "38", "39", "40")   \
  CRK_WGMMA_RS(pv_wgmma, type, name, INOUT, "1", "1", 11, "88", 44, "44", "45", "46", "47", "48")
CRK_ATTENTION_WGMMA(__half, "f16")
CRK_ATTENTION_WGMMA(__nv_bfloat16, "bf16")
#undef CRK_ATTENTION_WGMMA
#endif

/* 2^x by a polynomial of degree 3 on [-1/2, 1/2], with a relative error of 1e-4, a fifth of a unit
 * in f16's last place. From x = 127 on it gives 2^127; nan gives a large number. */
__device__ __forceinline__ float exp2_polynomial(float x) {
  asm("max.NaN.f32 %0, %0, 0fC2FC0000;" : "+f"(x)); /* -126 */
  x = fminf(x, 127.0f);
  float whole = x + 12582912.0f; /* 3 * 2^22: the last bit is worth 1 */
  float f = x - (whole - 12582912.0f);
  float p = fmaf(f, 0.055504110f, 0.24022651f);
  p = fmaf(p, f, 0.69314718f);
  p = fmaf(p, f, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(whole) << 23));
}

/* As `probabilities` of flash.h, for 64 keys. The sums are added to l; if l is NULL, they are o's
 * last columns. */
template <typename T, int POLY, int NO>
__device__ __forceinline__ void probabilities64(const float (&s)[8][4], uint32_t (&p)[8][2],
                                                float (&o)[NO][4], float (&m)[2], float *l,
                                                float scale) {
  bool again = false;
  for (;;) {
    uint32_t bits = 0;
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = 2 * j + h;
        float x0 = fmaf(s[j][2 * h], scale, -m[h]), x1 = fmaf(s[j][2 * h + 1], scale, -m[h]);
        bool polynomial = i * POLY / 16 != (i + 1) * POLY / 16; /* POLY of each 16, evenly spaced */
        float e0 = polynomial ? exp2_polynomial(x0) : exp2_fast(x0), e1 = exp2_fast(x1);
        if (l) sum[h] += e0 + e1;
        p[j][h] = crk_pair<T>(e0, e1);
        bits |= p[j][h];
      }
    if (again || __all_sync(~0u, (bits & 0x40004000) == 0)) {
      if (l) {
        l[0] += sum[0];
        l[1] += sum[1];
      }
      return;
    }
    again = true;
    raise<BIAS>(s, o, m, l, scale);
  }
}

/* Masks the scores of the step's keys from `left` on. */
__device__ __forceinline__ void mask_scores(float (&s)[8][4], int left, int lane) {
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (8 * j + lane % 4 * 2 + e % 2 >= left) s[j][e] = -INFINITY;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Prologue of the block: the mbarriers, and the columns of all stages that no copy writes: zeros
 * that pad K (K_UNITS, KEYS), and the column of ones of V (V_UNITS, KEYS), in units of 16 bytes. */
template <typename T, typename C>
__device__ __forceinline__ void init_stages(unsigned char *stages_at, uint32_t full,
                                            uint32_t empty) {
  constexpr int UNITS = C::UNITS, UNIT = C::UNIT_BYTES;
  if (threadIdx.x == 0)
    for (int i = 0; i < C::STAGES; i++) {
      mbarrier_init(full + i * 8, 4);
      mbarrier_init(empty + i * 8, C::CONSUMERS / 32);
    }
  for (int i = threadIdx.x; i < C::STAGES * C::KEYS; i += C::THREADS) {
    unsigned char *at = stages_at + i / C::KEYS * C::STAGE_BYTES + i % C::KEYS * 16;
    if (UNITS % 2) *(uint4 *)(at + UNITS * UNIT) = make_uint4(0, 0, 0, 0);
    *(uint4 *)(at + C::V_AT + UNITS * UNIT) = make_uint4(crk_pair<T>(1.0f, 0.0f), 0, 0, 0);
  }
}

/* Prologue of a warp: its queries (16, D) through shared memory to q (D / 16, fragment), padded by
 * zeros. */
template <typename C, int PAIRS>
__device__ __forceinline__ void load_queries(uint32_t (&q)[PAIRS][4], uint32_t q_shared,
                                             const char *from, uint32_t row_bytes, int first_row,
                                             int T, int lane) {
  constexpr int D = C::D, UNITS = C::UNITS, QP = C::Q_PITCH;
  fetch<D, 16, 32>(q_shared, from, row_bytes, first_row, T, D, lane);
  cp_async_commit();
  cp_async_wait_all();
  __syncwarp();
#pragma unroll
  for (int c = 0; c < D / 16; c++)
    crk_ldmatrix(q[c], q_shared + lane % 16 * QP + lane / 16 * 16 + c * 32);
  if (UNITS % 2) {
    crk_ldmatrix(q[PAIRS - 1], q_shared + lane % 16 * QP + D / 16 * 32);
    q[PAIRS - 1][2] = q[PAIRS - 1][3] = 0;
  }
}

/* Issues S = Q K': s (64 keys / 8, fragment), q (D / 16, fragment), and the 64 keys whose units
 * begin at `at`. */
template <typename T, typename C, int PAIRS>
__device__ __forceinline__ void issue_qk(float (&s)[8][4], const uint32_t (&q)[PAIRS][4],
                                         uint32_t at) {
  uint64_t k = C::K_MATRIX | (at >> 4 & 0x3fff);
  qk_wgmma_first(T(), s, q[0], k);
#pragma unroll
  for (int c = 1; c < PAIRS; c++) qk_wgmma(T(), s, q[c], k + c * (2 * C::UNIT_BYTES / 16));
}

/* The main loop over steps of 64 of the S keys, from the first scores in s (64 keys / 8, fragment)
 * on: o (D / 8 and the sums, fragment) += P V, m (2 rows). `count` stages are read. */
template <typename T, typename C, int PAIRS, int NO>
__device__ __forceinline__ void
main_loop(float (&s)[8][4], float (&o)[NO][4], float (&m)[2], const uint32_t (&q)[PAIRS][4], int S,
          int count, uint32_t stages, uint32_t full, uint32_t empty, float scale, int lane) {
  int steps = (S + 63) / 64, stage = 0, key = 0; /* key: the step's first in its stage */
  uint32_t at = stages;                          /* of the stage */
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    if (step == steps - 1) mask_scores(s, S - step * 64, lane);
    uint32_t p[8][2]; // (64 keys / 8, fragment)
    probabilities64<T, C::POLY>(s, p, o, m, (float *)0, scale);
    uint64_t v = C::V_MATRIX | ((at + C::V_AT + key * 16) >> 4 & 0x3fff);
    key += 64;
    bool next = key == C::KEYS;
    if (next) {
      key = 0;
      stage++;
      at = stages + stage % C::STAGES * C::STAGE_BYTES;
      if (stage < count) mbarrier_wait(full + stage % C::STAGES * 8, stage / C::STAGES);
    }
    fence_accumulators(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t x[4] = {p[2 * i][0], p[2 * i][1], p[2 * i + 1][0], p[2 * i + 1][1]};
      pv_wgmma(T(), o, x, v + i * 16);
    }
    issue_qk<T, C>(s, q, at + key * 16); /* after the last step nobody uses them */
    wgmma_commit_and_wait();
    fence_accumulators(s);
    fence_accumulators(o);
    if (next && lane == 0) mbarrier_arrive(empty + (stage - 1) % C::STAGES * 8);
  }
}

/* Epilogue: results, divided by the sums in o's last columns, to the warp's part (16, D) of shared
 * memory. */
template <typename T, typename C, int NO>
__device__ __forceinline__ void stage_results(const float (&o)[NO][4], unsigned char *own,
                                              int lane) {
  constexpr int UNITS = C::UNITS, QP = C::Q_PITCH;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float factor = 1.0f / __shfl_sync(~0u, o[UNITS][2 * h], lane & 28);
    unsigned char *row = own + (h * 8 + lane / 4) * QP + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < UNITS; n++)
      *(uint32_t *)(row + n * 16) = crk_pair<T>(o[n][2 * h] * factor, o[n][2 * h + 1] * factor);
  }
}
#endif

template <typename T, typename C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    attention_hopper_kernel(const __grid_constant__ crk_attention a, int tiles, float scale) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int D = C::D, UNITS = C::UNITS, PAIRS = (D + 15) / 16, QP = C::Q_PITCH;
  /* Q (ROWS, D), then STAGES of K (K_UNITS, KEYS) and V (V_UNITS, KEYS) in units */
  extern __shared__ __align__(128) unsigned char shared[];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  unsigned index = blockIdx.x;
  int first_row = (int)(index % tiles) * C::ROWS + warp * 16;
  index /= tiles;
  int head = (int)(index % a.heads);
  index /= a.heads;
  int64_t q_at = (int64_t)head * D, k_at = q_at, out_at = q_at, v_at = q_at;
  crk_attention_add(a, index, q_at, k_at, v_at, out_at);

  /* ---- prologue of the block ---- */
  unsigned char *stages_at = shared + C::ROWS * QP;
  uint32_t stages = crk_shared_address(stages_at);
  __shared__ uint64_t barriers[2 * C::STAGES]; /* full, empty: (STAGES) each */
  uint32_t full = crk_shared_address(barriers), empty = full + C::STAGES * 8;
  init_stages<T, C>(stages_at, full, empty);
  fence_async_shared();
  __syncthreads();
  int count = (a.S + C::KEYS - 1) / C::KEYS;

  if (warp >= C::CONSUMERS / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    /* ---- the producer: two warps copy keys, two copy values, with cp.async. A stage is full when
     * its copies have arrived, which is checked one stage later. As a function of its own this made
     * the compiler spill registers. ---- */
    int thread = threadIdx.x - C::CONSUMERS;
    bool of_v = thread >= 64;
    uint32_t row_bytes = (uint32_t)(of_v ? a.v_row : a.k_row) * 2;
    int unit = thread % 64 % UNITS, row = thread % 64 / UNITS;
    constexpr int PASS = 64 / UNITS; /* rows at once */
    const char *from = of_v ? (const char *)a.v + v_at * 2 : (const char *)a.k + k_at * 2;
    from += (uint64_t)row * row_bytes + unit * 16;
    uint32_t to = stages + (of_v ? C::V_AT : 0) + unit * C::UNIT_BYTES + row * 16;
    if (row >= PASS) row = C::KEYS; /* nothing to do for the last threads */
    uint64_t pass_bytes = (uint64_t)PASS * row_bytes, stage_bytes = (uint64_t)C::KEYS * row_bytes;
    int left = a.S - row;
    auto copied = [&](int stage) {
      fence_async_shared();
      __syncwarp();
      if (lane == 0) mbarrier_arrive(full + stage % C::STAGES * 8);
    };
    for (int stage = 0; stage < count; stage++) {
      if (stage >= C::STAGES) mbarrier_wait(empty + stage % C::STAGES * 8, stage / C::STAGES - 1);
      uint32_t at = to + stage % C::STAGES * C::STAGE_BYTES;
      const char *next = from;
#pragma unroll 4
      for (int i = 0; i < C::KEYS; i += PASS) {
        if (row + i < C::KEYS) crk_cp_async16(at + i * 16, next, i < left);
        next += pass_bytes;
      }
      from += stage_bytes;
      left -= C::KEYS;
      cp_async_commit();
      if (stage > 0) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        copied(stage - 1);
      }
    }
    cp_async_wait_all();
    copied(count - 1);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::REGISTERS));

  /* ---- prologue: this warp's 16 queries to registers, and the first scores ---- */
  unsigned char *own = shared + warp * 16 * QP;
  uint32_t q_shared = crk_shared_address(own);
  uint32_t q[PAIRS][4]; // (D / 16, fragment)
  load_queries<C>(q, q_shared, (const char *)a.q + q_at * 2, (uint32_t)a.q_row * 2, first_row, a.T,
                  lane);
  // s (64 keys / 8, fragment); o (D / 8 and the sums, fragment)
  float s[8][4], o[UNITS + 1][4], m[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
  for (int n = 0; n <= UNITS; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
  mbarrier_wait(full, 0);
  wgmma_fence();
  issue_qk<T, C>(s, q, stages);
  wgmma_commit_and_wait();
  fence_accumulators(s);

  main_loop<T, C>(s, o, m, q, a.S, count, stages, full, empty, scale, lane);

  /* ---- epilogue: through the warp's part of shared memory, and out in whole rows ---- */
  __syncwarp();
  stage_results<T, C>(o, own, lane);
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 16 * UNITS; i += 32) {
    int row = i / UNITS, chunk = i % UNITS;
    if (first_row + row < a.T)
      crk_attention_put<T>(a.coded, a.out, out_at + (first_row + row) * a.out_row + chunk * 8,
                           head * D + chunk * 8, *(const uint4 *)(own + row * QP + chunk * 16));
  }
#endif
}

/* 1 if launched, 0 if it is too large for one grid, or an error. */
template <typename K>
int hopper_launch(crk_device *d, const crk_attention *a, K kernel, int rows, int threads,
                  int bytes) {
  int tiles = (int)crk_ceil_div(a->T, rows);
  int64_t blocks = (int64_t)tiles * a->heads * a->batch;
  if (blocks > INT32_MAX) return 0;
  CRK_TRY("attention", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<(unsigned)blocks, threads, bytes, d->stream>>>(*a, tiles,
                                                          a->scale * 1.44269504088896340736f);
  CR_TRY(crk_launched("attention", d));
  return 1;
}

} // namespace flash

#endif
