/* Conversion of decoded planes to RGB in libswscale's fixed point (cr_yuv_to_rgb), and of RGB to an
 * encoder's planes (cr_rgb_to_yuv).
 *
 * Invariants: chroma is filtered along rows to 15 bits, then along columns. Sums have 32 bits and,
 * on the way to RGB, may wrap around for invalid colours, as libswscale's do. */
#include <omp.h>
#include <stdlib.h>

#include "base/yuv_levels.h"
#include "cpu/image.h"

/* Upsamples a line of chroma to every pixel, in units of 2^-7 levels. */
static void upsample_line(int32_t *out, const uint8_t *in, const cr__axis *a) {
  for (int64_t x = 0; x < a->out; x++) {
    int32_t sum = 0;
    for (int k = 0; k < a->taps; k++) sum += a->fixed[x * a->taps + k] * in[a->first[x] + k];
    sum >>= 7;
    out[x] = sum < 32767 ? sum : 32767;
  }
}

static inline int32_t column(const int32_t *lines, int64_t width, const int32_t *weight, int taps) {
  int32_t sum = (1 << 9) - (128 << 19);
  for (int k = 0; k < taps; k++) sum += weight[k] * lines[k * width];
  return sum >> 10;
}

static inline uint8_t level(uint32_t wrapped) {
  int32_t v = (int32_t)wrapped;
  return v < 0 ? 0 : v >> 22 > 255 ? 255 : (uint8_t)(v >> 22);
}

static void convert_row(uint8_t *out, const uint8_t *luma, const int32_t *u, const int32_t *v,
                        int64_t width, const int32_t *weight, int taps, cr__yuv_matrix m) {
  for (int64_t x = 0; x < width; x++) {
    uint32_t y = (uint32_t)((luma[x] * 512 - m.offset) * m.gain) + (1u << 21);
    int32_t cu = column(u + x, width, weight, taps), cv = column(v + x, width, weight, taps);
    out[3 * x] = level(y + (uint32_t)(cv * m.vr));
    out[3 * x + 1] = level(y + (uint32_t)(cv * m.vg) + (uint32_t)(cu * m.ug));
    out[3 * x + 2] = level(y + (uint32_t)(cu * m.ub));
  }
}

int cr__cpu_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *f) {
  cr__image_pair images = {0};
  cr__axis across = {0}, down = {0};
  int64_t width = f->width, height = f->height;
  int64_t w = (width + f->shift_x) >> f->shift_x, h = (height + f->shift_y) >> f->shift_y;
  int rc = cr__chroma_axes_new(&across, &down, f, false);
  if (rc >= 0) rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  int32_t *lines = rc >= 0 ? cr__scratch("yuv_to_rgb", 2 * h * width, sizeof *lines) : NULL;
  if (!lines && rc >= 0) rc = CR_ENOMEM;
  if (lines) {
    const uint8_t *luma = cr__ptr(images.from), *chroma = luma + width * height;
    uint8_t *data = cr__ptr(images.to);
    cr__yuv_matrix m = cr__yuv_matrix_of(f);
#pragma omp parallel num_threads(cr__image_threads(height *width * 8))
    {
#pragma omp for
      for (int64_t r = 0; r < 2 * h; r++) upsample_line(lines + r * width, chroma + r * w, &across);
#pragma omp for
      for (int64_t r = 0; r < height; r++)
        convert_row(data + r * width * 3, luma + r * width, lines + down.first[r] * width,
                    lines + (h + down.first[r]) * width, width, down.fixed + r * down.taps,
                    down.taps, m);
    }
  }
  free(lines);
  cr__axis_free(&across);
  cr__axis_free(&down);
  return cr__image_end(&images, rc, out);
}

/* ---- RGB to YUV ---------------------------------------------------------------------------- */

static void luma_row(uint8_t *out, const cr__rgb_source *s, int64_t y, int64_t width) {
  const uint8_t *row = s->rgb + (y < s->height ? y : s->height - 1) * s->width * 3;
  for (int64_t x = 0; x < width; x++)
    out[x] = cr__luma_level(row + 3 * (x < s->width ? x : s->width - 1), &s->matrix);
}

/* Computes U and V of a row at every chroma column, in units of 2^-7 levels. `each` has room for
 * width numbers. */
static void chroma_row(int32_t *u, int32_t *v, int32_t *each, const cr__rgb_source *s, int64_t y,
                       int64_t width, const cr__axis *across) {
  const uint8_t *row = s->rgb + (y < s->height ? y : s->height - 1) * s->width * 3;
  for (int p = 1; p < 3; p++) {
    int32_t *out = p == 1 ? u : v;
    for (int64_t x = 0; x < width; x++)
      each[x] =
          cr__rgb_mixed(row + 3 * (x < s->width ? x : s->width - 1), s->matrix.coefficient[p], 128);
    for (int64_t x = 0; x < across->out; x++) {
      int32_t sum = 0;
      const int32_t *from = each + across->first[x], *weight = across->fixed + x * across->taps;
      for (int k = 0; k < across->taps; k++) sum += weight[k] * from[k];
      out[x] = cr__chroma_line(sum, &s->matrix);
    }
  }
}

static void chroma_column(uint8_t *out, const int32_t *lines, int64_t w, const int32_t *weight,
                          int taps) {
  for (int64_t x = 0; x < w; x++) {
    int32_t sum = 64 << 12;
    for (int k = 0; k < taps; k++) sum += weight[k] * lines[k * w + x];
    out[x] = cr__level_clipped(sum >> 19);
  }
}

int cr__cpu_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *f) {
  cr__image_pair images = {0};
  cr__axis across = {0}, down = {0};
  int64_t width = f->width, height = f->height, w = width >> f->shift_x, h = height >> f->shift_y;
  int rc = cr__chroma_axes_new(&across, &down, f, true);
  if (rc >= 0) rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  int threads = cr__image_threads(height * width * 8);
  int64_t space = 2 * height * w + threads * width;
  int32_t *lines = rc >= 0 ? cr__scratch("rgb_to_yuv", space, sizeof *lines) : NULL;
  if (!lines && rc >= 0) rc = CR_ENOMEM;
  if (lines) {
    cr__rgb_source s = {cr__ptr(images.from), x->shape[0], x->shape[1], cr__rgb_matrix_of(f)};
    uint8_t *luma = cr__ptr(images.to), *chroma = luma + width * height;
#pragma omp parallel num_threads(threads)
    {
      int32_t *each = lines + 2 * height * w + omp_get_thread_num() * width;
#pragma omp for
      for (int64_t y = 0; y < height; y++) {
        luma_row(luma + y * width, &s, y, width);
        chroma_row(lines + y * w, lines + (height + y) * w, each, &s, y, width, &across);
      }
#pragma omp for
      for (int64_t r = 0; r < 2 * h; r++)
        chroma_column(chroma + r * w, lines + (r / h * height + down.first[r % h]) * w, w,
                      down.fixed + r % h * down.taps, down.taps);
    }
  }
  free(lines);
  cr__axis_free(&across);
  cr__axis_free(&down);
  return cr__image_end(&images, rc, out);
}
