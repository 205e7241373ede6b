/* Temporal attention: each position of a video attends to itself in the other frames, T = S <= 32.
 *
 * There are very many such problems (positions x heads), each far too small for a tiled kernel, and
 * together they are bound by memory: 65536 problems of 16 frames and d = 40 move 335 MB for only
 * 2.7 GFLOP. So q, k and v must be read once, in place, in whole sectors, with enough reads in
 * flight. A position's rows of two frames lie far apart.
 *
 * The kernel here takes any head size and alignment that attention.h allows, and keeps everything
 * in registers; temporal_staged.cu is faster where rows are multiples of 16 bytes.
 *
 * Invariant: every row is read and written in pieces of 32 bytes (16 columns; 4 threads of 8
 * bytes), which a sector-aligned head fills exactly. */
#include "attention/temporal.h"

__device__ __forceinline__ uint2 load_8(const void *p, bool there) {
  return there ? __ldg((const uint2 *)p) : make_uint2(0, 0);
}
__device__ __forceinline__ uint32_t load_4(const void *p, bool there) {
  return there ? __ldg((const uint32_t *)p) : 0;
}

/* Scores S = Q K' of one tile of frames. Everything is loaded before anything is used, V too, which
 * goes to `values`. */
template <typename T, int PIECES, int N>
__device__ __forceinline__ void held_scores(float (&s)[N][4], uint32_t (&values)[PIECES][4],
                                            const T *q, const T *k, const T *v,
                                            const crk_temporal &w, int g, int i) {
  uint2 a0[PIECES], a1[PIECES], b0[PIECES], b1[PIECES];
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    int c = 16 * p + 4 * i;
    bool in = c < w.d;
    a0[p] = load_8(q + g * w.q_row + c, in && g < w.frames);
    a1[p] = load_8(q + (g + 8) * w.q_row + c, in && g + 8 < w.frames);
    b0[p] = load_8(k + g * w.k_row + c, in && g < w.frames);
    b1[p] = load_8(k + (g + 8) * w.k_row + c, in && g + 8 < w.frames);
  }
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    int c = 16 * p + 2 * g;
#pragma unroll
    for (int f = 0; f < 4; f++) {
      int frame = 2 * i + (f & 1) + (f >> 1) * 8;
      values[p][f] = load_4(v + frame * w.v_row + c, c < w.d && frame < w.frames);
    }
  }
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    uint32_t a[4] = {a0[p].x, a1[p].x, a0[p].y, a1[p].y};
    crk_mma<T>(s[0], a, b0[p].x, b0[p].y);
    crk_mma<T>(s[1], a, b1[p].x, b1[p].y);
  }
}

/* One warp computes one problem: scores S = Q K' (16 x 16 a tile), softmax over its rows in
 * registers, O = P V. PIECES = ceil(d / 16); TILES = ceil(frames / 16), 1 or 2.
 *
 * With g = lane / 4 and i = lane % 4, mma.m16n8k16 takes from a thread A[g, g + 8][2i, 2i + 1, 2i +
 * 8, 2i + 9] and B[those k][n = g]. The order of k in an mma is free as long as A and B agree. So
 * - in Q K' the columns 4i .. 4i + 3 of a piece, one read of 8 bytes, are used as those four k;
 * - in P V k is a frame: the first mma leaves the scores where the second needs them. The four
 *   frames of V are read as two columns each, 2g and 2g + 1: one is n = g of a first tile, the
 *   other n = g of a second. A thread then has columns 4i .. 4i + 3 of the result: one write of 8
 *   bytes.
 *
 * Frames and columns that do not exist are read as 0, and such keys get no weight. A block has 8
 * warps: usually all heads of one position, whose rows together are one contiguous range in each
 * frame. */
template <typename T, int PIECES, int TILES>
__global__ void __launch_bounds__(256) temporal_kernel(const __grid_constant__ crk_temporal w) {
  uint32_t problem = blockIdx.x * 8 + threadIdx.x / 32;
  if (problem >= w.problems) return;
  int g = threadIdx.x % 32 / 4, i = threadIdx.x % 4;
  uint32_t position = problem / (uint32_t)w.heads;
  int64_t column = (int64_t)(problem - position * (uint32_t)w.heads) * w.d;
  int64_t q_at = column, k_at = column, v_at = column, out_at = column;
  for (int n = w.leading - 1; n > 0; n--) {
    uint32_t next = position / w.size[n];
    int64_t index = position - next * w.size[n];
    q_at += index * w.q_stride[n];
    k_at += index * w.k_stride[n];
    v_at += index * w.v_stride[n];
    out_at += index * w.out_stride[n];
    position = next;
  }
  const T *q = (const T *)w.q + q_at + position * w.q_stride[0];
  const T *k = (const T *)w.k + k_at + position * w.k_stride[0];
  const T *v = (const T *)w.v + v_at + position * w.v_stride[0];
  out_at += position * w.out_stride[0];

  /* One tile of frames: everything is loaded before anything is used. With two tiles, keys and
   * values are read again (from the cache) for the second tile of queries, so that they need no
   * registers. */
  const bool HOLD = TILES == 1;
  uint32_t values[HOLD ? PIECES : 1][4]; // (PIECES, 4 frames)
#pragma unroll
  for (int m = 0; m < TILES; m++) {
    /* ---- scores S = Q K' ---- */
    float s[2 * TILES][4] = {}; // (frames / 8, fragment)
    int row = 16 * m + g;
    if (HOLD) {
      held_scores<T>(s, values, q, k, v, w, g, i);
    } else {
#pragma unroll
      for (int p = 0; p < PIECES; p++) {
        int c = 16 * p + 4 * i;
        bool in = c < w.d;
        uint2 a0 = load_8(q + row * w.q_row + c, in && row < w.frames);
        uint2 a1 = load_8(q + (row + 8) * w.q_row + c, in && row + 8 < w.frames);
        uint32_t a[4] = {a0.x, a1.x, a0.y, a1.y};
#pragma unroll
        for (int n = 0; n < 2 * TILES; n++) {
          int key = 8 * n + g;
          uint2 b = load_8(k + key * w.k_row + c, in && key < w.frames);
          crk_mma<T>(s[n], a, b.x, b.y);
        }
      }
    }

    /* ---- softmax ---- */
    uint32_t weight[TILES][4]; // (frames / 16, fragment)
    float inverse[2];
    crk_temporal_softmax<T, TILES>(s, weight, inverse, i, w.frames, w.scale);

    /* ---- results O = P V ---- */
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      float even[4] = {}, odd[4] = {};
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        uint32_t x[4];
        int c = 16 * p + 2 * g;
#pragma unroll
        for (int f = 0; f < 4; f++) {
          if (HOLD) {
            x[f] = values[p][f];
          } else {
            int frame = 16 * t + 2 * i + (f & 1) + (f >> 1) * 8;
            x[f] = load_4(v + frame * w.v_row + c, c < w.d && frame < w.frames);
          }
        }
        crk_mma<T>(even, weight[t], __byte_perm(x[0], x[1], 0x5410),
                   __byte_perm(x[2], x[3], 0x5410));
        crk_mma<T>(odd, weight[t], __byte_perm(x[0], x[1], 0x7632),
                   __byte_perm(x[2], x[3], 0x7632));
      }
      int c = 16 * p + 4 * i;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        uint2 y =
            make_uint2(crk_pair<T>(even[2 * r] * inverse[r], odd[2 * r] * inverse[r]),
                       crk_pair<T>(even[2 * r + 1] * inverse[r], odd[2 * r + 1] * inverse[r]));
        if (c < w.d && row + 8 * r < w.frames)
          crk_attention_put<T>(w.coded, w.out, out_at + (row + 8 * r) * w.out_row + c,
                               (int)column + c, y);
      }
    }
  }
}

int crk_attention_temporal_can(const crk_device *d, const crk_attention *a) {
  (void)d;
  return (a->dtype == CR_F16 || a->dtype == CR_BF16) && a->T == a->S && a->T <= 32 &&
         a->d == a->dv && a->d % 4 == 0 && a->d <= 256 && !a->mask &&
         a->batch * a->heads <= INT32_MAX && crk_attention_aligned(a, 8);
}

template <typename T, int PIECES> static void launch(crk_device *d, const crk_temporal *w) {
  unsigned blocks = (unsigned)crk_ceil_div(w->problems, 8);
  if (w->frames <= 16) {
    temporal_kernel<T, PIECES, 1><<<blocks, 256, 0, d->stream>>>(*w);
  } else {
    temporal_kernel<T, PIECES, 2><<<blocks, 256, 0, d->stream>>>(*w);
  }
}

template <typename T> static void launch_sized(crk_device *d, const crk_temporal *w) {
  int pieces = (w->d + 15) / 16;
  if (pieces <= 1) {
    launch<T, 1>(d, w);
  } else if (pieces == 2) {
    launch<T, 2>(d, w);
  } else if (pieces == 3) {
    launch<T, 3>(d, w);
  } else if (pieces == 4) {
    launch<T, 4>(d, w);
  } else if (pieces == 5) {
    launch<T, 5>(d, w);
  } else if (pieces <= 8) {
    launch<T, 8>(d, w);
  } else if (pieces <= 10) {
    launch<T, 10>(d, w);
  } else {
    launch<T, 16>(d, w);
  }
}

int crk_attention_temporal(crk_device *d, const crk_attention *a) {
  crk_temporal w = {a->q, a->k, a->v, a->out};
  w.problems = (uint32_t)(a->batch * a->heads);
  w.q_row = a->q_row;
  w.k_row = a->k_row;
  w.v_row = a->v_row;
  w.out_row = a->out_row;
  for (int n = 0; n < a->leading; n++) {
    w.q_stride[n] = a->q_stride[n];
    w.k_stride[n] = a->k_stride[n];
    w.v_stride[n] = a->v_stride[n];
    w.out_stride[n] = a->out_stride[n];
    w.size[n] = (uint32_t)a->size[n];
  }
  w.leading = a->leading;
  w.heads = a->heads;
  w.d = a->d;
  w.frames = a->T;
  w.scale = a->scale * 1.4426950408889634f;
  w.coded = a->coded;
  if (w.problems == 0 || a->T == 0) return CR_OK;
  int rc = crk_attention_temporal_staged(d, &w, a);
  if (rc != 0) return rc < 0 ? rc : CR_OK;
  if (a->dtype == CR_F16) {
    launch_sized<__half>(d, &w);
  } else {
    launch_sized<__nv_bfloat16>(d, &w);
  }
  return crk_launched("attention", d);
}
