/* Attention for everything that the other kernels do not take: f32 in full precision, masks, any
 * head sizes, any alignment.
 *
 * Invariant: all arithmetic is f32 (FMA units, never TF32), so that f32 results agree with the
 * CPU's to rounding. */
#include "attention/attention.h"

/* A tile is 64 queries by 64 keys; each of 256 threads has 4 x 4 of it. */
enum { TILE = 64, DEPTH = 32, PADDED = TILE + 4, THREADS = 256 };

/* Loads rows first .. first + 63 of a matrix to shared memory, with zeros outside of it: columns
 * column .. column + 31 transposed, as to[column][row] (ACROSS), or column .. column + 63 as
 * to[row][column]. */
template <bool ACROSS, typename T>
__device__ __forceinline__ void load(float (*to)[PADDED], const T *from, int64_t step, int first,
                                     int rows, int column, int columns) {
  constexpr int WIDE = ACROSS ? DEPTH : TILE;
  int c = threadIdx.x % WIDE;
#pragma unroll
  for (int r = threadIdx.x / WIDE; r < TILE; r += THREADS / WIDE) {
    bool in = first + r < rows && column + c < columns;
    to[ACROSS ? c : r][ACROSS ? r : c] =
        in ? crk_float(from[(first + r) * step + column + c]) : 0.0f;
  }
}

/* c += a' b for a thread's 4 rows and 4 columns: a [n][64], b [n][64]. */
__device__ __forceinline__ void multiply(float (*c)[4], const float (*a)[PADDED],
                                         const float (*b)[PADDED], int n, int row, int column) {
#pragma unroll 8
  for (int i = 0; i < n; i++) {
    float4 x = *(const float4 *)&a[i][row], y = *(const float4 *)&b[i][column];
    float u[4] = {x.x, x.y, x.z, x.w}, v[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
      for (int j = 0; j < 4; j++) c[r][j] += u[r] * v[j];
  }
}

/* softmax(scale q k' + mask) v for 64 queries of one head and 64 of its dv columns, one key tile
 * after another with a running maximum and sum (Dao et al. 2022). Scores are summed over d in steps
 * of 32 through shared memory, where queries and keys are transposed (column by column), so that a
 * thread reads 4 of each at once. The weights are then stored key by key beside the tile of v. The
 * 16 threads that share rows are half a warp, so row sums are shuffles. Blocks, fastest first:
 * parts of 64 dv columns (each computes the scores again: cheap up to dv = 64, correct for any),
 * query tiles, heads, batch. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_plain_kernel(const __grid_constant__ crk_attention a, int tiles, int stretches) {
  __shared__ __align__(16) float pool[2 * DEPTH][PADDED]; /* q and k, later v */
  __shared__ __align__(16) float weights[TILE][PADDED];   /* [key][query] */
  int64_t task = blockIdx.x;
  int stretch = (int)(task % stretches);
  task /= stretches;
  int first = (int)(task % tiles) * TILE;
  task /= tiles;
  int head = (int)(task % a.heads);
  int64_t entry = task / a.heads;
  int64_t q_at = (int64_t)head * a.d, k_at = q_at, v_at = (int64_t)head * a.dv, out_at = v_at;
  int64_t mask_at = 0;
  crk_attention_add(a, entry, q_at, k_at, v_at, out_at, mask_at);
  const T *q = (const T *)a.q + q_at, *k = (const T *)a.k + k_at, *v = (const T *)a.v + v_at;
  T *out = (T *)a.out + out_at;
  const float log2_e = 1.4426950408889634f, scale = a.scale * log2_e;

  int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4, dv = stretch * TILE;
  float result[4][4] = {}, top[4], sum[4] = {};
  for (int r = 0; r < 4; r++) top[r] = -INFINITY;
  for (int key = 0; key < a.S; key += TILE) {
    float s[4][4] = {};
    for (int depth = 0; depth < a.d; depth += DEPTH) {
      __syncthreads();
      load<true>(pool, q, a.q_row, first, a.T, depth, a.d);
      load<true>(pool + DEPTH, k, a.k_row, key, a.S, depth, a.d);
      __syncthreads();
      multiply(s, pool, pool + DEPTH, min(DEPTH, a.d - depth), row, column);
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
      float most = top[r];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        s[r][j] *= scale;
        if (a.mask && first + row + r < a.T && key + column + j < a.S)
          s[r][j] +=
              log2_e *
              a.mask[mask_at + (first + row + r) * a.mask_row + (key + column + j) * a.mask_column];
        if (key + column + j >= a.S) s[r][j] = -INFINITY;
        most = fmaxf(most, s[r][j]);
      }
#pragma unroll
      for (int step = 8; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      /* If all scores so far are masked, any finite number does in place of -inf, which would give
       * nan. */
      float base = most == -INFINITY ? 0.0f : most;
      float fade = exp2f(top[r] - base);
      top[r] = most;
      sum[r] *= fade;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        result[r][j] *= fade;
        s[r][j] = exp2f(s[r][j] - base);
        sum[r] += s[r][j];
      }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; j++)
      *(float4 *)&weights[column + j][row] = make_float4(s[0][j], s[1][j], s[2][j], s[3][j]);
    load<false>(pool, v, a.v_row, key, a.S, dv, a.dv);
    __syncthreads();
    multiply(result, weights, pool, TILE, row, column);
  }
#pragma unroll
  for (int r = 0; r < 4; r++) {
#pragma unroll
    for (int step = 8; step > 0; step >>= 1) sum[r] += __shfl_xor_sync(~0u, sum[r], step);
    if (first + row + r >= a.T) continue;
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (dv + column + j < a.dv)
        out[(first + row + r) * a.out_row + dv + column + j] = crk_from<T>(result[r][j] / sum[r]);
  }
}

int crk_attention_plain(crk_device *d, const crk_attention *a) {
  int tiles = (int)crk_ceil_div(a->T, TILE), stretches = (int)crk_ceil_div(a->dv, TILE);
  int64_t blocks = a->batch * a->heads * tiles * stretches;
  if (blocks == 0) return CR_OK;
  if (blocks > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "attention: %lld tiles are too many for one launch",
                    (long long)blocks);
  CRK_FLOAT_TYPES("attention", a->dtype,
                  (attention_plain_kernel<T>
                   <<<(unsigned)blocks, THREADS, 0, d->stream>>>(*a, tiles, stretches)));
  return crk_launched("attention", d);
}
