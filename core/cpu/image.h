/* What the files of core/cpu/image_*.c share: dense results and borrowed memory.
 *
 * Their operations work on dense pictures. cr__picture_out gives the dense tensor to write to:
 * `out` itself where it is dense, else a temporary one that cr__picture_done copies into `out`. */
#ifndef CR_CPU_IMAGE_H
#define CR_CPU_IMAGE_H

#include "base/backend.h"
#include "base/filters.h"

int cr__cpu_resize(cr_tensor *out, const cr_tensor *x, int32_t method);
int cr__cpu_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                        int32_t top, double fill);
int cr__cpu_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, double fill);
int cr__cpu_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                         int32_t top);
int cr__cpu_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after);
int cr__cpu_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma);
int cr__cpu_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
                  const cr_tensor *weight);
int cr__cpu_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, double scale,
                       double shift);
int cr__cpu_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
int cr__cpu_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);

/* A dense tensor of `dtype` for out's numbers; NULL (message set) if there is no memory. */
cr_tensor *cr__picture_out(cr_tensor *out, int32_t dtype, cr_tensor *temp);
/* Copies a temporary result into `out` and frees it; passes `status` on if that is negative. */
int cr__picture_done(int status, cr_tensor *out, cr_tensor *temp);

/* malloc with a message: count elements of `size` bytes. */
void *cr__scratch(const char *name, int64_t count, int64_t size);

/* Threads worth starting for this many elementary steps (about a nanosecond each). */
static inline int cr__picture_threads(int64_t steps) {
  int32_t n = cr_threads();
  int64_t useful = steps / 20000 + 1;
  return useful < n ? (int)useful : (int)n;
}

#endif
