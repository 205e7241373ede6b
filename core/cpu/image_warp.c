/* Affine warps: each result pixel is mapped into the source by the inverse matrix, in double, and
 * sampled there.
 *
 * Invariants: a coordinate is converted to an integer only after it is known to be near the image,
 * so no matrix causes an overflow. Uniform areas stay exactly uniform, since bilinear interpolation
 * is a chain of lerps. */
#include "cpu/image.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "base/opencv.h"
#include "base/vmath.h"

typedef struct source {
  const void *data;
  int64_t height, width;
  int channels;
  bool bytes; /* u8, else f32 */
} source;

static inline __attribute__((always_inline)) float value_at(const source *s, bool bytes,
                                                            int64_t i) {
  return bytes ? (float)((const uint8_t *)s->data)[i] : ((const float *)s->data)[i];
}

static inline __attribute__((always_inline)) void put(void *out, bool bytes, int64_t i, float v) {
  if (bytes) {
    v = v > 0 ? v : 0;
    ((uint8_t *)out)[i] = (uint8_t)(int32_t)(v < 255 ? v : 255);
  } else {
    ((float *)out)[i] = v;
  }
}

static inline __attribute__((always_inline)) float lerp2(float a, float b, float c, float d,
                                                         float fx, float fy) {
  float top = a + fx * (b - a), bottom = c + fx * (d - c);
  return top + fy * (bottom - top);
}

/* Computes one row. (u, v) is the source point of its first pixel, (du, dv) the step to the next
 * one. */
static inline __attribute__((always_inline)) void
bilinear_row(void *out, bool out_bytes, const source *s, bool in_bytes, int channels, int64_t width,
             double u, double v, double du, double dv, float fill) {
  int64_t w = s->width, h = s->height;
  for (int64_t x = 0; x < width; x++) {
    double px = u + (double)x * du, py = v + (double)x * dv;
    if (!(px > -1 && px < (double)w && py > -1 && py < (double)h)) {
      for (int c = 0; c < channels; c++) put(out, out_bytes, x * channels + c, fill);
      continue;
    }
    int64_t x0 = (int64_t)(px + 1) - 1, y0 = (int64_t)(py + 1) - 1;
    float fx = (float)(px - (double)x0), fy = (float)(py - (double)y0);
    int64_t i = (y0 * w + x0) * channels;
    if (x0 >= 0 && x0 + 1 < w && y0 >= 0 && y0 + 1 < h) {
      for (int c = 0; c < channels; c++)
        put(out, out_bytes, x * channels + c,
            lerp2(value_at(s, in_bytes, i + c), value_at(s, in_bytes, i + channels + c),
                  value_at(s, in_bytes, i + w * channels + c),
                  value_at(s, in_bytes, i + (w + 1) * channels + c), fx, fy));
      continue;
    }
    for (int c = 0; c < channels; c++) {
      float corner[4];
      for (int k = 0; k < 4; k++) {
        int64_t cx = x0 + (k & 1), cy = y0 + (k >> 1);
        bool inside = cx >= 0 && cx < w && cy >= 0 && cy < h;
        corner[k] = inside ? value_at(s, in_bytes, (cy * w + cx) * channels + c) : fill;
      }
      put(out, out_bytes, x * channels + c,
          lerp2(corner[0], corner[1], corner[2], corner[3], fx, fy));
    }
  }
}

static void warp_row(void *out, bool out_bytes, const source *s, int64_t width, double u, double v,
                     double du, double dv, float fill) {
#define WARP_ROW(o, b, c) bilinear_row(out, o, s, b, c, width, u, v, du, dv, fill)
  if (s->channels == 3 && s->bytes && out_bytes)
    WARP_ROW(true, true, 3);
  else if (s->channels == 3 && !s->bytes && !out_bytes)
    WARP_ROW(false, false, 3);
  else if (s->channels == 1 && !s->bytes && !out_bytes)
    WARP_ROW(false, false, 1);
  else
    WARP_ROW(out_bytes, s->bytes, s->channels);
#undef WARP_ROW
}

int cr__cpu_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                        int32_t top, double fill) {
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, out->dtype, x, x->dtype);
  if (rc >= 0) {
    source s = {cr__ptr(images.from), x->shape[0], x->shape[1], x->shape[2], x->dtype == CR_U8};
    int64_t height = out->shape[0], width = out->shape[1];
    int64_t row_bytes = width * s.channels * cr_dtype_size(out->dtype);
    bool out_bytes = out->dtype == CR_U8;
    char *data = cr__ptr(images.to);
    double inverse[6];
    cr__affine_inverse(inverse, m);
#pragma omp parallel for num_threads(cr__image_threads(height *width *(2 + s.channels)))           \
    schedule(dynamic, 8)
    for (int64_t y = 0; y < height; y++) {
      double py = (double)(y + top);
      double u = inverse[0] * left + inverse[1] * py + inverse[2];
      double v = inverse[3] * left + inverse[4] * py + inverse[5];
      warp_row(data + y * row_bytes, out_bytes, &s, width, u, v, inverse[0], inverse[3],
               (float)fill);
    }
  }
  return cr__image_end(&images, rc, out);
}

/* ---- u8 as in OpenCV ------------------------------------------------------------------------ */

int cr__cpu_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m) {
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  int64_t height = out->shape[0], width = out->shape[1];
  int channels = out->shape[2];
  int32_t *places = rc >= 0 ? cr__warp_positions_new(m, height, width) : NULL;
  if (places) {
    const uint8_t *from = cr__ptr(images.from);
    uint8_t *to = cr__ptr(images.to);
#pragma omp parallel for num_threads(cr__image_threads(height *width *(4 + 6 * channels)))
    for (int64_t y = 0; y < height; y++)
      for (int64_t i = 0; i < width; i++)
        cr__warp_bytes(to + (y * width + i) * channels, from, x->shape[0], x->shape[1], channels,
                       places + 2 * i, places + 2 * (width + y));
  } else {
    rc = CR_ENOMEM;
  }
  free(places);
  return cr__image_end(&images, rc, out);
}

/* ---- bicubic, antialiased -------------------------------------------------------------------- */

/* Keys' kernel with a = -0.5. */
static inline float cubic(float t) {
  t = fabsf(t);
  if (t < 1) return (1.5f * t - 2.5f) * t * t + 1;
  return t < 2 ? ((-0.5f * t + 2.5f) * t - 4) * t + 2 : 0;
}

/* Computes the weights of the source pixels around `p`, which is within the image, along an axis of
 * n pixels, for a kernel widened by `scale`. Returns how many there are; *first is the first
 * pixel. */
static inline int cubic_taps(float *weights, int64_t *first, double p, int64_t n, double scale) {
  double reach = 2 * scale;
  int64_t a = (int64_t)fmax(0, ceil(p - reach)),
          b = (int64_t)fmin((double)(n - 1), floor(p + reach));
  float narrow = (float)(1 / scale), total = 0;
  int count = (int)(b - a + 1);
  for (int k = 0; k < count; k++) {
    weights[k] = cubic((float)((double)(a + k) - p) * narrow);
    total += weights[k];
  }
  for (int k = 0; k < count; k++) weights[k] /= total;
  *first = a;
  return count;
}

/* Columns first: the taps of a row, with all channels, are adjacent and are added as one vector in
 * `sums`. */
static inline __attribute__((always_inline)) void
bicubic_pixel(float *restrict out, const source *s, int channels, const float *restrict wx, int nx,
              const float *restrict wy, int ny, int64_t x0, int64_t y0, float *restrict sums) {
  const float *row = (const float *)s->data + (y0 * s->width + x0) * channels;
  int n = nx * channels;
  for (int i = 0; i < n; i++) sums[i] = wy[0] * row[i];
  for (int j = 1; j < ny; j++) {
    row += s->width * channels;
    for (int i = 0; i < n; i++) sums[i] += wy[j] * row[i];
  }
  for (int c = 0; c < channels; c++) {
    float sum = wx[0] * sums[c];
    for (int k = 1; k < nx; k++) sum += wx[k] * sums[k * channels + c];
    out[c] = sum;
  }
}

/* The common case, three channels and 4 x 4 taps, whose weights have closed forms. */
static inline __attribute__((always_inline)) void bicubic_4x4(float *restrict out, const source *s,
                                                              double px, double py) {
  typedef float lanes __attribute__((vector_size(16), aligned(4), may_alias));
  int64_t x0 = (int64_t)px, y0 = (int64_t)py;
  float fx = (float)(px - (double)x0), fy = (float)(py - (double)y0);
  float wx[4] = {((-0.5f * fx + 1) * fx - 0.5f) * fx, (1.5f * fx - 2.5f) * fx * fx + 1,
                 ((-1.5f * fx + 2) * fx + 0.5f) * fx, (0.5f * fx - 0.5f) * fx * fx};
  float wy[4] = {((-0.5f * fy + 1) * fy - 0.5f) * fy, (1.5f * fy - 2.5f) * fy * fy + 1,
                 ((-1.5f * fy + 2) * fy + 0.5f) * fy, (0.5f * fy - 0.5f) * fy * fy};
  const float *row = (const float *)s->data + ((y0 - 1) * s->width + x0 - 1) * 3;
  lanes a = {0}, b = {0}, c = {0};
  for (int j = 0; j < 4; j++, row += s->width * 3) {
    const lanes *p = (const lanes *)row;
    a += wy[j] * p[0];
    b += wy[j] * p[1];
    c += wy[j] * p[2];
  }
  out[0] = wx[0] * a[0] + wx[1] * a[3] + wx[2] * b[2] + wx[3] * c[1];
  out[1] = wx[0] * a[1] + wx[1] * b[0] + wx[2] * b[3] + wx[3] * c[2];
  out[2] = wx[0] * a[2] + wx[1] * b[1] + wx[2] * c[0] + wx[3] * c[3];
}

CR_CLONES static void bicubic_row(float *out, const source *s, int64_t width, double u, double v,
                                  double du, double dv, double scale_x, double scale_y, float *wx,
                                  float *wy, float *sums) {
  double right = (double)s->width - 1, bottom = (double)s->height - 1;
  bool plain = s->channels == 3 && scale_x == 1 && scale_y == 1;
  for (int64_t x = 0; x < width; x++) {
    double px = u + (double)x * du, py = v + (double)x * dv;
    px = px > 0 ? (px < right ? px : right) : 0;
    py = py > 0 ? (py < bottom ? py : bottom) : 0;
    float *pixel = out + x * s->channels;
    if (plain && px >= 1 && px < right - 1 && py >= 1 && py < bottom - 1) {
      bicubic_4x4(pixel, s, px, py);
      continue;
    }
    int64_t x0, y0;
    int nx = cubic_taps(wx, &x0, px, s->width, scale_x);
    int ny = cubic_taps(wy, &y0, py, s->height, scale_y);
    if (s->channels == 3)
      bicubic_pixel(pixel, s, 3, wx, nx, wy, ny, x0, y0, sums);
    else
      bicubic_pixel(pixel, s, s->channels, wx, nx, wy, ny, x0, y0, sums);
  }
}

int cr__cpu_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                         int32_t top) {
  float *weights = NULL;
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  if (rc >= 0) {
    source s = {cr__ptr(images.from), x->shape[0], x->shape[1], x->shape[2], false};
    int64_t height = out->shape[0], width = out->shape[1];
    double inverse[6];
    cr__affine_inverse(inverse, m);
    /* Source pixels per result pixel in the worst direction, along each axis. */
    double scale_x = fmax(1, hypot(inverse[0], inverse[1]));
    double scale_y = fmax(1, hypot(inverse[3], inverse[4]));
    double reach_x = fmin(4 * scale_x + 2, (double)s.width);
    double reach_y = fmin(4 * scale_y + 2, (double)s.height);
    int64_t taps_x = (int64_t)reach_x + 2, taps_y = (int64_t)reach_y + 2;
    int64_t taps = taps_x * (1 + s.channels) + taps_y;
    int threads = cr__image_threads(
        (int64_t)fmin((double)(height * width) * (20 + reach_x * reach_y * s.channels / 4), 1e15));
    weights = cr__scratch("warp_bicubic", taps * threads, sizeof(float));
    if (weights) {
      float *data = cr__ptr(images.to);
#pragma omp parallel num_threads(threads)
      {
        /* A team may have fewer threads than requested, never more. */
        float *wx = weights + taps * omp_get_thread_num();
#pragma omp for schedule(dynamic, 8)
        for (int64_t y = 0; y < height; y++) {
          double py = (double)(y + top);
          bicubic_row(data + y * width * s.channels, &s, width,
                      inverse[0] * left + inverse[1] * py + inverse[2],
                      inverse[3] * left + inverse[4] * py + inverse[5], inverse[0], inverse[3],
                      scale_x, scale_y, wx, wx + taps_x, wx + taps_x + taps_y);
        }
      }
    } else {
      rc = CR_ENOMEM;
    }
  }
  free(weights);
  return cr__image_end(&images, rc, out);
}
