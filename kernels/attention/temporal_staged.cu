/* Temporal attention with a pipeline in each warp: the warp's next unit is copied to shared memory
 * while it computes the current one (temporal.cu says what the work is).
 *
 * Shared memory saves lookups in the L1 cache: rows of a position lie far apart, so reads of 4 or 8
 * bytes a thread touch many cache lines; copies of 16 bytes along the rows need a third of that.
 *
 * Invariants: a warp shares nothing with other warps, so there is no barrier but __syncwarp; rows
 * of k and v beyond the last frame are zero in shared memory from the start and stay so. */
#include "attention/temporal.h"

enum { WARPS = 2, STAGES = 2 };

typedef struct staged {
  crk_temporal w;
  uint32_t units;                 /* positions x heads / heads_per_unit */
  int32_t heads_per_unit, chunks; /* heads of a unit; 16-byte pieces of one of its rows */
  int32_t pitch, matrix,
      stage_bytes; /* bytes: from row to row; of q, of k and of v each; of a stage */
} staged;

/* Where a unit's rows begin, in elements, and their first column among all heads'. */
typedef struct offsets {
  int64_t q, k, v, out, column;
} offsets;

__device__ __forceinline__ offsets unit_offsets(const staged &s, uint32_t unit) {
  const crk_temporal &w = s.w;
  uint32_t groups = (uint32_t)(w.heads / s.heads_per_unit), position = unit / groups;
  int64_t column = (int64_t)(unit - position * groups) * s.heads_per_unit * w.d;
  offsets at = {column, column, column, column, column};
  for (int n = w.leading - 1; n >= 0; n--) {
    uint32_t next = n > 0 ? position / w.size[n] : 0;
    int64_t index = position - next * w.size[n];
    at.q += index * w.q_stride[n];
    at.k += index * w.k_stride[n];
    at.v += index * w.v_stride[n];
    at.out += index * w.out_stride[n];
    position = next;
  }
  return at;
}

/* Starts copying a unit, q, k and v, to a stage: frames of `chunks` pieces, as many whole rows at a
 * time as 32 lanes have pieces. */
template <typename T>
__device__ __forceinline__ void prefetch(const staged &s, uint32_t unit, unsigned stage) {
  const crk_temporal &w = s.w;
  offsets at = unit_offsets(s, unit);
  int lane = threadIdx.x % 32, rows = 32 / s.chunks, row = lane / s.chunks;
  int piece = lane - row * s.chunks;
  if (row >= rows) return;
  const T *q = (const T *)w.q + at.q + piece * 8 + row * w.q_row;
  const T *k = (const T *)w.k + at.k + piece * 8 + row * w.k_row;
  const T *v = (const T *)w.v + at.v + piece * 8 + row * w.v_row;
  unsigned to = stage + row * s.pitch + piece * 16;
  for (; row < w.frames; row += rows) {
    crk_cp_async16(to, q, true);
    crk_cp_async16(to + s.matrix, k, true);
    crk_cp_async16(to + 2 * s.matrix, v, true);
    q += rows * w.q_row;
    k += rows * w.k_row;
    v += rows * w.v_row;
    to += rows * s.pitch;
  }
}

/* One head of a unit, whose columns begin at `stage`: S = Q K' by 16 x 16 tiles, softmax over rows
 * in registers (a row is spread over 4 lanes), O = P V, which replaces Q in shared memory. Of the
 * last 16 columns only 8 may belong to the head: the other operands of the mma are set to 0. */
template <typename T, int PIECES, int TILES>
__device__ __forceinline__ void attend(const staged &s, unsigned stage) {
  const int lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
  const int frames = s.w.frames, d = s.w.d;
  /* The addresses of this lane's rows for ldmatrix.x4. For q and v the four 8x8 matrices are rows
   * 0-7 and 8-15 of columns 0-7, then of columns 8-15; for k the two columns come first. */
  unsigned down = stage + lane % 16 * s.pitch + lane / 16 * 16;
  unsigned across = stage + (lane / 16 * 8 + lane % 8) * s.pitch + lane / 8 % 2 * 16;
#pragma unroll
  for (int m = 0; m < TILES; m++) {
    float x[2 * TILES][4] = {};
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      int left = d - 16 * p;
      if (left <= 0) break;
      uint32_t a[4], b[4];
      crk_ldmatrix(a, down + 16 * m * s.pitch + 32 * p);
      if (left < 16) a[2] = a[3] = 0;
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        crk_ldmatrix(b, across + s.matrix + 16 * n * s.pitch + 32 * p);
        if (left < 16) b[1] = b[3] = 0;
        crk_mma<T>(x[2 * n], a, b[0], b[1]);
        crk_mma<T>(x[2 * n + 1], a, b[2], b[3]);
      }
    }
    uint32_t weight[TILES][4];
    float inverse[2];
    crk_temporal_softmax<T, TILES>(x, weight, inverse, i, frames, s.w.scale);
    uint32_t y[PIECES][4];
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      if (16 * p >= d) break;
      float low[4] = {}, high[4] = {};
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        uint32_t b[4];
        crk_ldmatrix_trans(b, down + 2 * s.matrix + 16 * n * s.pitch + 32 * p);
        crk_mma<T>(low, weight[n], b[0], b[1]);
        crk_mma<T>(high, weight[n], b[2], b[3]);
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        y[p][r] = crk_pair<T>(low[2 * r] * inverse[r], low[2 * r + 1] * inverse[r]);
        y[p][2 + r] = crk_pair<T>(high[2 * r] * inverse[r], high[2 * r + 1] * inverse[r]);
      }
    }
    /* All writes come at the end, since reads of shared memory cannot be moved before them. O
     * replaces Q. */
    __syncwarp();
    unsigned to = stage + (16 * m + g) * s.pitch + 4 * i;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      if (16 * p >= d) break;
#pragma unroll
      for (int n = 0; n < 2; n++) {
        if (n == 1 && d - 16 * p < 16) break;
#pragma unroll
        for (int r = 0; r < 2; r++)
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + 8 * r * s.pitch + 32 * p + 16 * n),
                       "r"(y[p][2 * n + r])
                       : "memory");
      }
    }
  }
}

/* A unit is as many heads of one position as make rows of whole sectors (two of 40, one of 80). A
 * warp computes one unit after another, with two stages. PIECES = ceil(d / 16), TILES = ceil(frames
 * / 16). */
template <typename T, int PIECES, int TILES>
__global__ void __launch_bounds__(32 * WARPS, 6)
    temporal_staged_kernel(const __grid_constant__ staged s) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned char *own = memory + warp * STAGES * s.stage_bytes;
  if (s.w.frames < 16 * TILES) {
    for (int at = lane * 16; at < STAGES * s.stage_bytes; at += 32 * 16)
      *(uint4 *)(own + at) = make_uint4(0, 0, 0, 0);
  }
  __syncwarp();
  const unsigned base = crk_shared_address(own);
  const uint32_t step = gridDim.x * WARPS;
  uint32_t unit = blockIdx.x * WARPS + warp;
  int stage = 0;
  if (unit < s.units) prefetch<T>(s, unit, base);
  asm volatile("cp.async.commit_group;" ::: "memory");
  for (; unit < s.units; unit += step, stage ^= 1) {
    if (unit + step < s.units) prefetch<T>(s, unit + step, base + (stage ^ 1) * s.stage_bytes);
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncwarp();
    unsigned here = base + stage * s.stage_bytes;
    for (int h = 0; h < s.heads_per_unit; h++) attend<T, PIECES, TILES>(s, here + 2 * h * s.w.d);
    __syncwarp();
    int rows = 32 / s.chunks, row = lane / s.chunks, piece = lane - row * s.chunks;
    if (row < rows) {
      offsets at = unit_offsets(s, unit);
      const unsigned char *from = own + stage * s.stage_bytes + piece * 16;
      for (; row < s.w.frames; row += rows)
        crk_attention_put<T>(s.w.coded, s.w.out, at.out + row * s.w.out_row + piece * 8,
                             (int)at.column + piece * 8, *(const uint4 *)(from + row * s.pitch));
    }
    __syncwarp(); /* before another unit is copied to this stage */
  }
}

template <typename T, int PIECES, int TILES> static int launch(crk_device *d, const staged *s) {
  int bytes = WARPS * STAGES * s->stage_bytes;
  if (bytes > d->shared_memory) return 0;
  CRK_TRY("attention", d,
          cudaFuncSetAttribute(temporal_staged_kernel<T, PIECES, TILES>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  int64_t most = (d->shared_memory + 1024) / (bytes + 1024);
  if (most > 16) most = 16;
  most *= d->multiprocessors;
  int64_t blocks = crk_ceil_div(s->units, WARPS);
  if (blocks < 2 * most) return 0; /* too few units to overlap copies and work */
  if (blocks > most) blocks = most;
  temporal_staged_kernel<T, PIECES, TILES>
      <<<(unsigned)blocks, 32 * WARPS, (size_t)bytes, d->stream>>>(*s);
  int rc = crk_launched("attention", d);
  return rc < 0 ? rc : 1;
}

template <typename T, int PIECES> static int launch_tiles(crk_device *d, const staged *s) {
  return s->w.frames <= 16 ? launch<T, PIECES, 1>(d, s) : launch<T, PIECES, 2>(d, s);
}

template <typename T> static int launch_sized(crk_device *d, const staged *s) {
  int pieces = (s->w.d + 15) / 16;
  if (pieces <= 2) return launch_tiles<T, 2>(d, s);
  if (pieces == 3) return launch_tiles<T, 3>(d, s);
  if (pieces <= 5) return launch_tiles<T, 5>(d, s);
  if (pieces <= 10) return launch_tiles<T, 10>(d, s);
  return launch_tiles<T, 16>(d, s);
}

int crk_attention_temporal_staged(crk_device *d, const crk_temporal *w, const crk_attention *a) {
  if (w->d % 8 != 0 || !crk_attention_aligned(a, 16)) return 0;
  staged s = {*w};
  s.heads_per_unit = 1; /* as many heads as fill 160 bytes */
  for (int n = 2; n * w->d <= 80; n++)
    if (w->heads % n == 0) s.heads_per_unit = n;
  s.units = w->problems / (uint32_t)s.heads_per_unit;
  s.chunks = s.heads_per_unit * w->d / 8;
  s.pitch = (s.chunks + (s.chunks % 2 == 0)) *
            16; /* an odd number of 16 bytes: 8 rows lie in different banks */
  s.matrix = (w->frames <= 16 ? 16 : 32) * s.pitch;
  s.stage_bytes = 3 * s.matrix + 16; /* 16 bytes may be read behind the last row */
  return a->dtype == CR_F16 ? launch_sized<__half>(d, &s) : launch_sized<__nv_bfloat16>(d, &s);
}
