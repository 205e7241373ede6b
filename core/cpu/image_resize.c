/* Resizing with separable filters from tables of taps (core/base/filters.h): rows first, then
 * columns.
 *
 * Invariants: float methods use f32 between the passes. u8 Lanczos uses OpenCV's fixed point:
 * 11-bit weights, each rounded by itself, both passes in 32-bit integers that may wrap around, and
 * one rounding at the end. u8 linear uses OpenCV's fixed point too, with other rounding
 * (base/opencv.h). */
#include "cpu/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/opencv.h"
#include "base/vmath.h"

typedef cr__axis axis;

/* ---- rows ------------------------------------------------------------------------------------ */

#define NAME(suffix) row_float##suffix
#define INPUT float
#define SUM float
#define WEIGHTS weight
#include "cpu/image_resize_row.h"

#define NAME(suffix) row_bytes##suffix
#define INPUT uint8_t
#define SUM float
#define WEIGHTS weight
#include "cpu/image_resize_row.h"

#define NAME(suffix) row_fixed##suffix
#define INPUT uint8_t
#define SUM int32_t
#define WEIGHTS fixed
#include "cpu/image_resize_row.h"

/* ---- columns: `rows` has `taps` rows of n numbers, one after another ------------------------- */

enum { TILE = 128 };

/* sum[j] += the weighted sum over all rows of element j, for j < m. */
static inline __attribute__((always_inline)) void add_rows(float *restrict sum,
                                                           const float *restrict rows,
                                                           const float *weight, int taps, int64_t n,
                                                           int64_t m) {
  for (int k = 0; k < taps; k++)
    for (int64_t j = 0; j < m; j++) sum[j] += weight[k] * rows[k * n + j];
}

/* Computes one row of the result: f32, or rounded u8. */
static inline __attribute__((always_inline)) void column(void *restrict out,
                                                         const float *restrict rows,
                                                         const float *weight, int taps, int64_t n,
                                                         bool bytes) {
  for (int64_t i = 0; i < n; i += TILE) {
    int64_t m = n - i < TILE ? n - i : TILE;
    float sum[TILE] = {0};
    add_rows(sum, rows + i, weight, taps, n, m);
    if (!bytes) memcpy((float *)out + i, sum, (size_t)m * sizeof *sum);
    for (int64_t j = 0; bytes && j < m; j++) {
      float v = sum[j] > 0 ? sum[j] : 0;
      ((uint8_t *)out)[i + j] = (uint8_t)(int32_t)((v < 255 ? v : 255) + 0.5f);
    }
  }
}

CR_CLONES static void column_float(float *restrict out, const float *restrict rows,
                                   const float *weight, int taps, int64_t n) {
  column(out, rows, weight, taps, n, false);
}

CR_CLONES static void column_bytes(uint8_t *restrict out, const float *restrict rows,
                                   const float *weight, int taps, int64_t n) {
  column(out, rows, weight, taps, n, true);
}

CR_CLONES static void column_fixed(uint8_t *restrict out, const int32_t *restrict rows,
                                   const int32_t *weight, int taps, int64_t n) {
  for (int64_t i = 0; i < n; i += TILE) {
    int64_t m = n - i < TILE ? n - i : TILE;
    uint32_t sum[TILE] = {0};
    for (int k = 0; k < taps; k++)
      for (int64_t j = 0; j < m; j++) sum[j] += (uint32_t)weight[k] * (uint32_t)rows[k * n + i + j];
    for (int64_t j = 0; j < m; j++) {
      int32_t v = (int32_t)(sum[j] + (1u << (2 * CR__FIXED_BITS - 1))) >> (2 * CR__FIXED_BITS);
      v = v > 0 ? v : 0;
      out[i + j] = (uint8_t)(v < 255 ? v : 255);
    }
  }
}

/* ---- one image ----------------------------------------------------------------------------- */

typedef struct job {
  axis x, y;
  int channels;
  bool bytes, fixed;
  float *between; /* [in height, out width, channels], int32_t if fixed */
} job;

static void resize_image(const job *s, void *out, const void *in) {
  const axis *x = &s->x, *y = &s->y;
  int64_t in_row = x->in * s->channels, n = x->out * s->channels;
  int32_t *between_fixed = (int32_t *)s->between;
#pragma omp parallel num_threads(cr__image_threads(n *(y->in * x->taps + y->out)))
  {
#pragma omp for
    for (int64_t r = 0; r < y->in; r++) {
      if (s->fixed)
        row_fixed(between_fixed + r * n, (const uint8_t *)in + r * in_row, x, s->channels);
      else if (s->bytes)
        row_bytes(s->between + r * n, (const uint8_t *)in + r * in_row, x, s->channels);
      else
        row_float(s->between + r * n, (const float *)in + r * in_row, x, s->channels);
    }
#pragma omp for
    for (int64_t r = 0; r < y->out; r++) {
      int64_t from = y->first[r] * n, w = r * y->taps;
      if (s->fixed)
        column_fixed((uint8_t *)out + r * n, between_fixed + from, y->fixed + w, y->taps, n);
      else if (s->bytes)
        column_bytes((uint8_t *)out + r * n, s->between + from, y->weight + w, y->taps, n);
      else
        column_float((float *)out + r * n, s->between + from, y->weight + w, y->taps, n);
    }
  }
}

static int resize_filtered(void *out, const void *in, const cr__resizing *r, int32_t method) {
  bool bytes = r->dtype == CR_U8;
  job s = {.channels = r->channels, .bytes = bytes, .fixed = bytes && method == CR_LANCZOS4};
  int rc = cr__axis_new(&s.x, r->in[1], r->out[1], method, s.fixed);
  if (rc >= 0) rc = cr__axis_new(&s.y, r->in[0], r->out[0], method, s.fixed);
  int64_t between;
  if (rc >= 0) {
    if (__builtin_mul_overflow(r->in[0] * r->out[1], (int64_t)s.channels, &between)) between = -1;
    s.between = cr__scratch("resize", between, sizeof(float));
    if (!s.between) rc = CR_ENOMEM;
  }
  int64_t pixel = s.channels * (bytes ? 1 : (int64_t)sizeof(float));
  for (int64_t n = 0; n < r->images && rc >= 0; n++)
    resize_image(&s, (char *)out + n * r->out[0] * r->out[1] * pixel,
                 (const char *)in + n * r->in[0] * r->in[1] * pixel);
  free(s.between);
  cr__axis_free(&s.x);
  cr__axis_free(&s.y);
  return rc;
}

/* ---- u8 linear as in OpenCV ---------------------------------------------------------------- */

static inline __attribute__((always_inline)) void
linear_channels(uint8_t *restrict out, const uint8_t *top, const uint8_t *bottom, const int32_t *x,
                const int32_t *y, int64_t n, int channels) {
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < channels; c++)
      out[i * channels + c] = cr__linear_byte(top, bottom, x + 4 * i, y, channels, c);
}

static void linear_row(uint8_t *out, const uint8_t *in, const cr__resizing *r, const int32_t *x,
                       const int32_t *y) {
  int64_t row = r->in[1] * r->channels;
  const uint8_t *top = in + y[0] * row, *bottom = in + y[1] * row;
  if (r->channels == 3)
    linear_channels(out, top, bottom, x, y, r->out[1], 3);
  else
    linear_channels(out, top, bottom, x, y, r->out[1], r->channels);
}

static int resize_linear(uint8_t *out, const uint8_t *in, const cr__resizing *r) {
  int32_t *x = cr__linear_taps_new(r->in[1], r->out[1], true);
  int32_t *y = x ? cr__linear_taps_new(r->in[0], r->out[0], false) : NULL;
  int64_t rows = r->images * r->out[0], n = r->out[1] * r->channels;
  if (y) {
#pragma omp parallel for num_threads(cr__image_threads(rows *n * 3))
    for (int64_t i = 0; i < rows; i++)
      linear_row(out + i * n, in + i / r->out[0] * r->in[0] * r->in[1] * r->channels, r, x,
                 y + 4 * (i % r->out[0]));
  }
  int rc = y ? CR_OK : CR_ENOMEM;
  free(x);
  free(y);
  return rc;
}

/* Copies pixels of any dtype. */
static void resize_nearest(char *out, const char *in, int64_t images, const int64_t *from,
                           const int64_t *to, int64_t pixel_bytes) {
  float scale_y = (float)from[0] / (float)to[0], scale_x = (float)from[1] / (float)to[1];
#pragma omp parallel for num_threads(                                                              \
    cr__image_threads(images *to[0] * to[1] * (2 + pixel_bytes / 16)))
  for (int64_t r = 0; r < images * to[0]; r++) {
    int64_t n = r / to[0], y = (int64_t)((float)(r % to[0]) * scale_y);
    if (y > from[0] - 1) y = from[0] - 1;
    const char *row = in + (n * from[0] + y) * from[1] * pixel_bytes;
    char *to_row = out + r * to[1] * pixel_bytes;
    for (int64_t i = 0; i < to[1]; i++) {
      int64_t x = (int64_t)((float)i * scale_x);
      if (x > from[1] - 1) x = from[1] - 1;
      memcpy(to_row + i * pixel_bytes, row + x * pixel_bytes, (size_t)pixel_bytes);
    }
  }
}

int cr__cpu_resize(cr_tensor *out, const cr_tensor *x, int32_t method) {
  cr__resizing r = cr__resizing_of(out, x, method);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, r.dtype, x, r.dtype);
  if (rc >= 0 && method == CR_NEAREST) {
    resize_nearest(cr__ptr(images.to), cr__ptr(images.from), r.images, r.in, r.out,
                   (int64_t)r.channels * cr_dtype_size(r.dtype));
  } else if (rc >= 0 && method == CR_LINEAR && r.dtype == CR_U8) {
    rc = resize_linear(cr__ptr(images.to), cr__ptr(images.from), &r);
  } else if (rc >= 0) {
    rc = resize_filtered(cr__ptr(images.to), cr__ptr(images.from), &r, method);
  }
  return cr__image_end(&images, rc, out);
}
