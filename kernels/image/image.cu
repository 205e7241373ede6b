/* Erosion, Gaussian blur and blending: how a face is pasted back into its frame.
 *
 * Invariants: those of image.h. Both filters are separable, so they run over rows first, then
 * columns, through a scratch image. Nothing outside the given rectangle is touched. */
#include <stdlib.h>

#include "image/image.h"
#include "memory/transfer.h"

/* The position of number i of row y along one axis: the pixels before it, their number, and their
 * distance in memory. An image has `height` rows of n = W C numbers. */
struct line_place {
  int64_t at, length, step;
  __device__ __forceinline__ line_place(bool columns, int64_t y, int64_t i, int64_t height,
                                        int64_t n, int64_t channels)
      : at(columns ? y : i / channels), length(columns ? height : n / channels),
        step(columns ? n : channels) {}
};

/* ---- erosion --------------------------------------------------------------------------------- */

/* out[y][i] = min x[y][i - before .. i + after], in steps of a pixel along one axis. One thread for
 * each number, neighbours side by side, so that a warp reads whole lines, and the windows' overlap
 * comes from L1. Minima by doubling would need log2 passes over memory; windows here are as wide as
 * the edge of a face mask. */
__global__ void erode_kernel(float *out, const float *x, int64_t height, int64_t n,
                             int64_t channels, bool columns, int64_t before, int64_t after) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  CRK_EACH_ROW(y, height) {
    line_place line(columns, y, i, height, n, channels);
    int64_t first = line.at < before ? -line.at : -before, left = line.length - 1 - line.at;
    int64_t last = left < after ? left : after;
    const float *p = x + y * n + i;
    float least = p[first * line.step];
    for (int64_t k = first + 1; k <= last; k++) {
      float v = p[k * line.step];
      least = v < least ? v : least;
    }
    out[y * n + i] = least;
  }
}

static int crk_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after) {
  CRK_DEVICE(d, "erode", out);
  int64_t height = x->shape[0], channels = x->shape[2], n = x->shape[1] * channels;
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  cr_storage *between = rc >= 0 ? cr__storage_new(height * n * 4, out->device) : NULL;
  if (between) {
    dim3 grid = crk_image_grid(n, height), block = crk_image_block();
    float *rows = (float *)between->data;
    erode_kernel<<<grid, block, 0, d->stream>>>(rows, (const float *)crk_ptr(images.from), height,
                                                n, channels, false, before, after);
    erode_kernel<<<grid, block, 0, d->stream>>>((float *)crk_ptr(images.to), rows, height, n,
                                                channels, true, before, after);
    rc = crk_launched("erode", d);
    cr__release(between);
  } else {
    rc = CR_ENOMEM;
  }
  return cr__image_end(&images, rc, out);
}

/* ---- Gaussian blur --------------------------------------------------------------------------- */

/* Mirrors index i into 0 .. n - 1, without repeating the border, as often as needed. */
__device__ __forceinline__ int64_t reflect(int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  if (n == 1) return 0;
  int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

/* out[y][i] = sum of weight[half + k] x[y][i + k], k = -half .. half, along one axis. The two taps
 * at a distance are added first, from the middle outwards, which is the CPU's order. Layout and
 * threads as in erode_kernel. */
__global__ void blur_kernel(float *out, const float *x, const float *weight, int64_t half,
                            int64_t height, int64_t n, int64_t channels, bool columns) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  CRK_EACH_ROW(y, height) {
    line_place line(columns, y, i, height, n, channels);
    const float *p = x + y * n + i;
    float sum = crk_mul(weight[half], *p);
    for (int64_t k = 1; k <= half; k++) {
      float a = p[(reflect(line.at - k, line.length) - line.at) * line.step];
      float b = p[(reflect(line.at + k, line.length) - line.at) * line.step];
      sum = crk_add(sum, crk_mul(weight[half - k], crk_add(a, b)));
    }
    out[y * n + i] = sum;
  }
}

static int crk_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma) {
  CRK_DEVICE(d, "gaussian_blur", out);
  int64_t height = x->shape[0], channels = x->shape[2], n = x->shape[1] * channels;
  int64_t half = size / 2, taps = 2 * half + 1;
  cr__image_pair images;
  float *weight = cr__gaussian_new(half, sigma);
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  cr_storage *scratch =
      weight && rc >= 0 ? cr__storage_new((taps + height * n) * 4, out->device) : NULL;
  if (scratch) {
    float *table = (float *)scratch->data, *rows = table + taps;
    rc = crk_upload("gaussian_blur", d, table, weight, taps * 4);
    if (rc >= 0) {
      dim3 grid = crk_image_grid(n, height), block = crk_image_block();
      blur_kernel<<<grid, block, 0, d->stream>>>(rows, (const float *)crk_ptr(images.from), table,
                                                 half, height, n, channels, false);
      blur_kernel<<<grid, block, 0, d->stream>>>((float *)crk_ptr(images.to), rows, table, half,
                                                 height, n, channels, true);
      rc = crk_launched("gaussian_blur", d);
    }
    cr__release(scratch);
  } else {
    rc = CR_ENOMEM;
  }
  free(weight);
  return cr__image_end(&images, rc, out);
}

/* ---- blending -------------------------------------------------------------------------------- */

/* out = weight face + (1 - weight) frame, truncated. Where the weight is 0, the frame's byte is
 * kept, whatever the face has. Rows of out and frame are *_step bytes apart (rectangles of a larger
 * frame); those of face and weight are dense. One thread for each pixel: 3 bytes beside the 3 bytes
 * of the next thread make whole lines. */
__global__ void blend_kernel(uint8_t *out, int64_t out_step, const uint8_t *frame,
                             int64_t frame_step, const float *face, const float *weight,
                             int64_t height, int64_t width, int channels) {
  int64_t x = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= width) return;
  CRK_EACH_ROW(y, height) {
    float w = weight[y * width + x], rest = crk_sub(1.0f, w);
    const float *paint = face + (y * width + x) * channels;
    const uint8_t *from = frame + y * frame_step + x * channels;
    uint8_t *to = out + y * out_step + x * channels;
    for (int c = 0; c < channels; c++) {
      uint8_t old = from[c];
      if (w == 0)
        to[c] = old;
      else
        crk_put(to + c, crk_add(crk_mul(w, paint[c]), crk_mul(rest, (float)old)));
    }
  }
}

static int crk_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
                     const cr_tensor *weight) {
  CRK_DEVICE(d, "blend", out);
  cr__blending b;
  int rc = cr__blending_begin(&b, out, frame, face, weight);
  if (rc >= 0) {
    int64_t height = out->shape[0], width = out->shape[1];
    blend_kernel<<<crk_image_grid(width, height), crk_image_block(), 0, d->stream>>>(
        (uint8_t *)crk_ptr(b.to), b.to->stride[0], (const uint8_t *)crk_ptr(b.frame),
        b.frame->stride[0], (const float *)crk_ptr(b.face), (const float *)crk_ptr(b.weight),
        height, width, out->shape[2]);
    rc = crk_launched("blend", d);
  }
  return cr__blending_end(&b, rc, out);
}

void crk_fill_image(cr__backend *b) {
  b->resize = crk_resize;
  b->pixel_shuffle = crk_pixel_shuffle;
  b->warp_affine = crk_warp_affine;
  b->warp_bicubic = crk_warp_bicubic;
  b->grid_sample = crk_grid_sample;
  b->erode = crk_erode;
  b->gaussian_blur = crk_gaussian_blur;
  b->blend = crk_blend;
  b->warp_fixed = crk_warp_fixed;
  b->cut_square = crk_cut_square;
  b->yuv_to_rgb = crk_yuv_to_rgb;
  b->rgb_to_yuv = crk_rgb_to_yuv;
}
