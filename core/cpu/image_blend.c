/* Blending a face into a frame, and what the picture operations share (image.h).
 *
 * Invariant: where the weight is 0 the frame's value is passed on untouched, whatever stands in the
 * face (it may be undefined there). */
#include "cpu/image.h"

#include <stdlib.h>

cr_tensor *cr__picture_out(cr_tensor *out, int32_t dtype, cr_tensor *temp) {
  if (out->dtype == dtype && cr_is_contiguous(out)) return out;
  return cr_empty(temp, out->rank, out->shape, dtype, CR_CPU) < 0 ? NULL : temp;
}

int cr__picture_done(int status, cr_tensor *out, cr_tensor *temp) {
  if (status >= 0 && temp->storage) status = cr_copy(out, temp);
  cr_free(temp);
  return status;
}

void *cr__scratch(const char *name, int64_t count, int64_t size) {
  int64_t bytes;
  void *p = NULL;
  if (!__builtin_mul_overflow(count, size, &bytes) && bytes >= 0 && bytes <= INT64_MAX - 64)
    p = aligned_alloc(64, ((size_t)bytes + 64) / 64 * 64);
  if (!p)
    cr__fail(CR_ENOMEM, "%s: no memory for %lld x %lld bytes", name, (long long)count,
             (long long)size);
  return p;
}

static inline __attribute__((always_inline)) void blend_pixels(uint8_t *out, const uint8_t *frame,
                                                               const float *face,
                                                               const float *weight, int64_t width,
                                                               int channels) {
  for (int64_t x = 0; x < width; x++) {
    float w = weight[x];
    for (int c = 0; c < channels; c++) {
      int64_t i = x * channels + c;
      float old = frame[i], v = w * face[i] + (1 - w) * old;
      v = v > 0 ? v : 0;
      v = v < 255 ? v : 255;
      out[i] = w == 0 ? frame[i] : (uint8_t)(int32_t)v;
    }
  }
}

static void blend_row(uint8_t *out, const uint8_t *frame, const float *face, const float *weight,
                      int64_t width, int channels) {
  if (channels == 3)
    blend_pixels(out, frame, face, weight, width, 3);
  else
    blend_pixels(out, frame, face, weight, width, channels);
}

/* Rows may lie apart (a rectangle of a larger frame), pixels may not. */
static bool dense_rows(const cr_tensor *t) {
  return (t->shape[2] == 1 || t->stride[2] == 1) &&
         (t->shape[1] == 1 || t->stride[1] == t->shape[2]);
}

int cr__cpu_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
                  const cr_tensor *weight) {
  cr_tensor temps[4] = {{0}};
  int rc = CR_ENOMEM;
  cr_tensor *to = dense_rows(out) ? out : cr__picture_out(out, CR_U8, &temps[0]);
  const cr_tensor *from = dense_rows(frame) ? frame : cr__dense(frame, CR_U8, &temps[1]);
  const cr_tensor *paint = cr__dense(face, CR_F32, &temps[2]);
  const cr_tensor *w = cr__dense(weight, CR_F32, &temps[3]);
  if (to && from && paint && w) {
    int64_t height = out->shape[0], width = out->shape[1], channels = out->shape[2];
    uint8_t *to_data = cr__ptr(to);
    const uint8_t *from_data = cr__ptr(from);
    const float *paint_data = cr__ptr(paint), *w_data = cr__ptr(w);
    int64_t to_step = to->stride[0], from_step = from->stride[0];
#pragma omp parallel for num_threads(cr__picture_threads(height *width *channels))
    for (int64_t y = 0; y < height; y++)
      blend_row(to_data + y * to_step, from_data + y * from_step, paint_data + y * width * channels,
                w_data + y * width, width, (int)channels);
    rc = CR_OK;
  }
  for (int i = 1; i < 4; i++) cr_free(&temps[i]);
  return cr__picture_done(rc, out, &temps[0]);
}
