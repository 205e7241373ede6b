/* Convolutions of int8 codes on every card since Ampere (mma.sync) as an implicit GEMM, and linear
 * layers, which are 1x1 convolutions of images of one pixel:
 *
 *   out[n][y][x][o] = act(sum * (x_scale[n] * scale[o]) + bias[o]) + residual[n][y][x][o],
 *   sum = over dy, dx, c of x[n][y stride + dy dilation - top][...][c] w[o][dy][dx][c], an int32
 *
 * x [N H W C] and w [O kh kw C/groups] are dense, x_scale [N] (NULL: 1) and scale [O] are f32; bias
 * [O] and residual (any strides; NULL: none) have the type T of out.
 *
 * A block of four warps computes 64 positions by 64 results of one group, 32 x 32 in each warp. 64
 * channels of a tap at a time pass through shared memory, whose rows are padded by 16 bytes against
 * bank conflicts. This is the general kernel, not the fast one: Hopper has others for the sizes
 * that matter. */
#ifndef CRK_IMPLICIT_GEMM_INT8_H
#define CRK_IMPLICIT_GEMM_INT8_H

#include "device/cuda.h"

typedef struct crk_implicit_gemm_int8 {
  const int8_t *x, *w;
  const float *x_scale, *scale;
  const void *bias, *residual;
  void *out;
  int64_t so[4], sr[4]; /* strides of out and residual, elements */
  int64_t positions;    /* of out: N OH OW */
  int32_t h, w_, c;     /* x's height, width, channels of a group */
  int32_t oh, ow, o;    /* o: of a group */
  int32_t groups, kh, kw, top, left;
  int32_t stride_h, stride_w, dilation_h, dilation_w, act;
  bool whole; /* the channels of every pixel begin at multiples of 16 bytes */
} crk_implicit_gemm_int8;

#ifdef __CUDACC__
namespace implicit_gemm_int8 {

enum { TILE = 64, INNER = 64, PITCH = INNER + 16, THREADS = 128 };

__device__ __forceinline__ void mma(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Loads 16 codes from p, of which `count` exist; the others are 0. */
__device__ __forceinline__ uint4 take16(const int8_t *p, int count, bool whole) {
  uint4 v = make_uint4(0, 0, 0, 0);
  if (count >= 16 && whole) return *(const uint4 *)p;
  int8_t *to = (int8_t *)&v;
#pragma unroll
  for (int i = 0; i < 16; i++) to[i] = i < count ? p[i] : 0;
  return v;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    kernel(const __grid_constant__ crk_implicit_gemm_int8 p) {
  __shared__ __align__(16) int8_t xs[TILE * PITCH], ws[TILE * PITCH];
  const int group = blockIdx.z, first_o = blockIdx.y * TILE;
  const int64_t first = (int64_t)blockIdx.x * TILE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = warp / 2 * 32,
            columns = warp % 2 * 32;
  const int64_t channels = (int64_t)p.c * p.groups;
  int acc[2][4][4] = {};
  for (int tap = 0; tap < p.kh * p.kw; tap++) {
    const int dy = tap / p.kw * p.dilation_h - p.top, dx = tap % p.kw * p.dilation_w - p.left;
    for (int c0 = 0; c0 < p.c; c0 += INNER) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int piece = threadIdx.x + i * THREADS, row = piece / 4, c = c0 + piece % 4 * 16;
        int64_t at = first + row, n = at / p.ow;
        int x = (int)(at - n * p.ow) * p.stride_w + dx;
        int y = (int)(n % p.oh) * p.stride_h + dy;
        n /= p.oh;
        bool there = at < p.positions && x >= 0 && x < p.w_ && y >= 0 && y < p.h;
        const int8_t *from = p.x + ((n * p.h + y) * p.w_ + x) * channels + group * p.c + c;
        *(uint4 *)(xs + row * PITCH + piece % 4 * 16) = take16(from, there ? p.c - c : 0, p.whole);
        int o = first_o + row;
        from = p.w + (((int64_t)group * p.o + o) * p.kh * p.kw + tap) * p.c + c;
        *(uint4 *)(ws + row * PITCH + piece % 4 * 16) =
            take16(from, o < p.o ? p.c - c : 0, p.whole);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < INNER; k += 32) {
        uint32_t a[2][4];
        const int8_t *from = xs + (rows + lane / 4) * PITCH + k + lane % 4 * 4;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            a[m][j] = *(const uint32_t *)(from + (m * 16 + j % 2 * 8) * PITCH + j / 2 * 16);
        from = ws + (columns + lane / 4) * PITCH + k + lane % 4 * 4;
#pragma unroll
        for (int n = 0; n < 4; n++) {
          uint32_t b0 = *(const uint32_t *)(from + n * 8 * PITCH),
                   b1 = *(const uint32_t *)(from + n * 8 * PITCH + 16);
          mma(acc[0][n], a[0], b0, b1);
          mma(acc[1][n], a[1], b0, b1);
        }
      }
      __syncthreads();
    }
  }
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int64_t at = first + rows + m * 16 + h * 8 + lane / 4;
      if (at >= p.positions) continue;
      int64_t n = at / p.ow;
      int x = (int)(at - n * p.ow), y = (int)(n % p.oh);
      n /= p.oh;
      float own = p.x_scale ? p.x_scale[n] : 1.0f;
      T *out = (T *)p.out + n * p.so[0] + y * p.so[1] + x * p.so[2];
      const T *residual = (const T *)p.residual + n * p.sr[0] + y * p.sr[1] + x * p.sr[2];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int o = first_o + columns + i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (o >= p.o) continue;
        o += group * p.o;
        float v = (float)acc[m][i / 2][h * 2 + i % 2] * (own * p.scale[o]);
        if (p.bias) v += crk_float(((const T *)p.bias)[o]);
        v = crk_act(v, p.act, 0);
        if (p.residual) v += crk_float(residual[o * p.sr[3]]);
        out[o * p.so[3]] = crk_from<T>(v);
      }
    }
}

/* Queues the kernel; CR_EUNSUPPORTED if the grid would be too large. */
template <typename T> int launch(const char *name, crk_device *d, crk_implicit_gemm_int8 *p) {
  p->whole = p->c % 16 == 0 && ((uintptr_t)p->x | (uintptr_t)p->w) % 16 == 0;
  int64_t x = crk_ceil_div(p->positions, TILE), y = crk_ceil_div(p->o, TILE);
  if (x > INT32_MAX || y > 65535 || p->groups > 65535)
    return cr__fail(CR_EUNSUPPORTED, "%s: too many positions, results or groups", name);
  kernel<T><<<dim3((unsigned)x, (unsigned)y, (unsigned)p->groups), THREADS, 0, d->stream>>>(*p);
  return crk_launched(name, d);
}

} // namespace implicit_gemm_int8
#endif

#endif
