/* Resamples a rotated square of a frame to a network's input size (cr_cut_square).
 *
 * Invariant: sums are in double (exact integers for single pixels), row by row of samples, so only
 * the last conversion rounds to single precision. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/image.h"

typedef struct frame {
  const uint8_t *data;
  int64_t height, width;
  int channels;
} frame;

/* Adds a row of n bilinear samples, from (x, y) on with steps of (dx, dy), to `sums`; per_pixel
 * samples belong to one result pixel. A neighbour outside the image has weight 0, and its index is
 * moved inside. */
static void add_row(double *sums, int64_t n, int per_pixel, const frame *f, double x, double y,
                    double dx, double dy) {
  int channels = f->channels;
  for (int64_t i = 0; i < n; i++, x += dx, y += dy) {
    double fx = floor(x), fy = floor(y);
    if (!(fx >= -1 && fy >= -1 && fx < (double)f->width && fy < (double)f->height)) continue;
    int64_t left = (int64_t)fx, top = (int64_t)fy, right = left + 1, bottom = top + 1;
    fx = x - fx, fy = y - fy;
    double a = (1 - fx) * (1 - fy), b = fx * (1 - fy), c = (1 - fx) * fy, d = fx * fy;
    if (left < 0) a = 0, c = 0, left = 0;
    if (top < 0) a = 0, b = 0, top = 0;
    if (right >= f->width) b = 0, d = 0, right = left;
    if (bottom >= f->height) c = 0, d = 0, bottom = top;
    const uint8_t *p = f->data + (top * f->width + left) * channels;
    const uint8_t *q = f->data + (top * f->width + right) * channels;
    const uint8_t *r = f->data + (bottom * f->width + left) * channels;
    const uint8_t *s = f->data + (bottom * f->width + right) * channels;
    double *o = sums + i / per_pixel * channels;
    for (int k = 0; k < channels; k++) o[k] = o[k] + a * p[k] + b * q[k] + c * r[k] + d * s[k];
  }
}

/* Adds a row of n single pixels from row `y`. */
static void add_points(double *sums, int64_t n, const cr__cut *cut, const frame *f, double y) {
  int channels = f->channels;
  if (!(y >= 0 && y < (double)f->height)) return;
  const uint8_t *row = f->data + (int64_t)y * f->width * channels;
  for (int64_t i = 0; i < n; i++) {
    double x = floor(cut->left + ((double)i + 0.5) * cut->step);
    if (!(x >= 0 && x < (double)f->width)) continue;
    const uint8_t *p = row + (int64_t)x * channels;
    double *o = sums + i / cut->samples * channels;
    for (int k = 0; k < channels; k++) o[k] += p[k];
  }
}

int cr__cpu_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, double scale,
                       double shift) {
  int64_t size = out->shape[0];
  int channels = out->shape[2];
  cr__cut cut = cr__cut_of(square, (int32_t)size, scale);
  int64_t n = size * cut.samples;
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_U8);
  double *sums = rc >= 0 ? cr__scratch("cut_square", size * channels, sizeof *sums) : NULL;
  if (sums) {
    frame f = {cr__ptr(images.from), x->shape[0], x->shape[1], channels};
    float *row = cr__ptr(images.to);
    for (int64_t y = 0; y < size; y++, row += size * channels) {
      memset(sums, 0, (size_t)(size * channels) * sizeof *sums);
      for (int64_t j = y * cut.samples; j < (y + 1) * cut.samples; j++) {
        /* The first sample of the row, in samples from the square's centre. */
        double u = 0.5 - (double)n / 2, v = (double)j + 0.5 - (double)n / 2;
        if (cut.points)
          add_points(sums, n, &cut, &f, floor(cut.top + ((double)j + 0.5) * cut.step));
        else
          add_row(sums, n, cut.samples, &f, cut.x + u * cut.cosine - v * cut.sine - 0.5,
                  cut.y + u * cut.sine + v * cut.cosine - 0.5, cut.cosine, cut.sine);
      }
      for (int64_t i = 0; i < size * channels; i++) row[i] = (float)(sums[i] * cut.factor + shift);
    }
  } else {
    rc = CR_ENOMEM;
  }
  free(sums);
  return cr__image_end(&images, rc, out);
}
