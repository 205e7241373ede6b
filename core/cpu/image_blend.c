/* Blending a face into a frame, and the scratch memory that the image operations share (image.h).
 *
 * Invariant: where the weight is 0 the frame's value is kept, whatever the face holds there, which
 * may be undefined. */
#include "cpu/image.h"

#include <stdlib.h>

void *cr__scratch(const char *name, int64_t count, int64_t size) {
  int64_t bytes;
  void *p = NULL;
  if (!__builtin_mul_overflow(count, size, &bytes) && bytes >= 0 && bytes <= INT64_MAX - 64)
    p = aligned_alloc(64, ((size_t)bytes + 64) / 64 * 64);
  if (!p)
    cr__fail(CR_ENOMEM, "%s: out of memory for %lld x %lld bytes", name, (long long)count,
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

int cr__cpu_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
                  const cr_tensor *weight) {
  cr__blending b;
  int rc = cr__blending_begin(&b, out, frame, face, weight);
  if (rc >= 0) {
    int64_t height = out->shape[0], width = out->shape[1], channels = out->shape[2];
    uint8_t *to = cr__ptr(b.to);
    const uint8_t *from = cr__ptr(b.frame);
    const float *paint = cr__ptr(b.face), *w = cr__ptr(b.weight);
    int64_t to_step = b.to->stride[0], from_step = b.frame->stride[0];
#pragma omp parallel for num_threads(cr__image_threads(height *width *channels))
    for (int64_t y = 0; y < height; y++)
      blend_row(to + y * to_step, from + y * from_step, paint + y * width * channels, w + y * width,
                width, (int)channels);
  }
  return cr__blending_end(&b, rc, out);
}
