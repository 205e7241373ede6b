/* Cuts a rotated square out of a frame, for a network (cr_cut_square).
 *
 * Invariants: those of image.h; coordinates and sums are doubles, as on the CPU. */
#include "image/image.h"

typedef struct source {
  const uint8_t *data;
  int64_t height, width;
  int channels;
} source;

/* out[y][x] = shift + factor * sum of the samples x samples around it. One thread for each result
 * pixel, in the grid of image.h. A network's input is some 200 pixels wide, so this takes
 * microseconds, and neighbours share lines of the frame in L1. */
__global__ void cut_kernel(float *__restrict__ out, source s, cr__cut cut, int size, double shift) {
  int x = (int)(blockIdx.x * CRK_TILE_X + threadIdx.x), channels = s.channels;
  if (x >= size) return;
  double half = (double)((int64_t)size * cut.samples) / 2, first = 0.5 - half;
  CRK_EACH_ROW(y, size) {
    double sums[4] = {0};
    for (int64_t j = y * cut.samples; j < (y + 1) * cut.samples; j++) {
      double v = (double)j + 0.5 - half;
      double row = floor(crk_add(cut.top, crk_mul((double)j + 0.5, cut.step)));
      double start_x =
          crk_add(crk_add(crk_add(cut.x, crk_mul(first, cut.cosine)), -crk_mul(v, cut.sine)), -0.5);
      double start_y =
          crk_add(crk_add(crk_add(cut.y, crk_mul(first, cut.sine)), crk_mul(v, cut.cosine)), -0.5);
      for (int64_t i = (int64_t)x * cut.samples; i < ((int64_t)x + 1) * cut.samples; i++) {
        if (cut.points) {
          double column = floor(crk_add(cut.left, crk_mul((double)i + 0.5, cut.step)));
          if (!(row >= 0 && row < (double)s.height && column >= 0 && column < (double)s.width))
            continue;
          const uint8_t *p = s.data + ((int64_t)row * s.width + (int64_t)column) * channels;
#pragma unroll
          for (int k = 0; k < 4; k++)
            if (k < channels) sums[k] += p[k];
          continue;
        }
        double px = crk_add(start_x, crk_mul((double)i, cut.cosine));
        double py = crk_add(start_y, crk_mul((double)i, cut.sine));
        double fx = floor(px), fy = floor(py);
        if (!(fx >= -1 && fy >= -1 && fx < (double)s.width && fy < (double)s.height)) continue;
        int64_t left = (int64_t)fx, top = (int64_t)fy, right = left + 1, bottom = top + 1;
        fx = px - fx, fy = py - fy;
        double a = (1 - fx) * (1 - fy), b = fx * (1 - fy), c = (1 - fx) * fy, d = fx * fy;
        if (left < 0) a = 0, c = 0, left = 0;
        if (top < 0) a = 0, b = 0, top = 0;
        if (right >= s.width) b = 0, d = 0, right = left;
        if (bottom >= s.height) c = 0, d = 0, bottom = top;
        const uint8_t *p = s.data + (top * s.width + left) * channels;
        const uint8_t *q = s.data + (top * s.width + right) * channels;
        const uint8_t *r = s.data + (bottom * s.width + left) * channels;
        const uint8_t *t = s.data + (bottom * s.width + right) * channels;
#pragma unroll
        for (int k = 0; k < 4; k++)
          if (k < channels) sums[k] += a * p[k] + b * q[k] + c * r[k] + d * t[k];
      }
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (k < channels)
        out[(y * size + x) * channels + k] = (float)crk_add(crk_mul(sums[k], cut.factor), shift);
  }
}

int crk_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, double scale,
                   double shift) {
  CRK_DEVICE(d, "cut_square", out);
  int size = out->shape[0];
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_U8);
  if (rc >= 0) {
    source s = {(const uint8_t *)crk_ptr(images.from), x->shape[0], x->shape[1], x->shape[2]};
    cut_kernel<<<crk_image_grid(size, size), crk_image_block(), 0, d->stream>>>(
        (float *)crk_ptr(images.to), s, cr__cut_of(square, size, scale), size, shift);
    rc = crk_launched("cut_square", d);
  }
  return cr__image_end(&images, rc, out);
}
