/* What the image family's files share: exact arithmetic, dense results, launch shapes.
 *
 * Invariant of the family: an image has the same bytes as on a CPU. Every step of
 * core/cpu/image_*.c is rounded once (it is compiled without contraction), so the steps here are
 * written as single roundings, too, which the compiler never fuses. Tables come from
 * core/base/filters.h. */
#ifndef CRK_IMAGE_H
#define CRK_IMAGE_H

#include "base/filters.h"
#include "base/image_operands.h"
#include "device/cuda.h"

int crk_resize(cr_tensor *out, const cr_tensor *x, int32_t method);
int crk_pixel_shuffle(cr_tensor *out, const cr_tensor *x, const cr_tensor *base, cr_tensor *flaw);
int crk_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                    double fill);
int crk_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                     int32_t top);
int crk_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m);
int crk_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, double scale,
                   double shift);
int crk_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
int crk_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
int crk_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, double fill);

/* Images are covered by blocks of 32 x 8 threads, x first; a stride reaches the rows beyond the
 * grid's limit. */
enum { CRK_TILE_X = 32, CRK_TILE_Y = 8 };
static inline dim3 crk_image_block(void) { return dim3(CRK_TILE_X, CRK_TILE_Y); }
static inline dim3 crk_image_grid(int64_t columns, int64_t rows) {
  int64_t y = crk_ceil_div(rows, CRK_TILE_Y);
  return dim3((unsigned)crk_ceil_div(columns, CRK_TILE_X), (unsigned)(y < 65535 ? y : 65535));
}

#ifdef __CUDACC__
__device__ __forceinline__ float crk_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float crk_add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float crk_sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ double crk_mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double crk_add(double a, double b) { return __dadd_rn(a, b); }

/* u8 truncates numbers in 0..255 and saturates the others. */
__device__ __forceinline__ void crk_put(float *out, float v) { *out = v; }
__device__ __forceinline__ void crk_put(uint8_t *out, float v) {
  v = v > 0 ? v : 0;
  *out = (uint8_t)(int32_t)(v < 255 ? v : 255);
}

/* A loop over the rows of a thread; its column is the grid's x. */
#define CRK_EACH_ROW(row, rows)                                                                    \
  for (int64_t row = (int64_t)blockIdx.y * CRK_TILE_Y + threadIdx.y; row < (rows);                 \
       row += (int64_t)gridDim.y * CRK_TILE_Y)
#endif

#endif
