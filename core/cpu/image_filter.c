/* Erosion and Gaussian blur. Both are separable: rows first, then columns.
 *
 * The minimum over a window of n is built by doubling: minima over 2, 4, 8, ... neighbours, each
 * from the previous ones, then one step that overlaps two of them. These are log2(n) passes that
 * vectorize, unlike van Herk's scans. Invariant: every pass reads ahead of its writes, so it may
 * run in place. */
#include "cpu/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/vmath.h"

/* b[i] = min(b[i], b[i + step]) for i < n. */
CR_CLONES static void minimum_ahead(float *b, int64_t step, int64_t n) {
  const float *ahead = b + step;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) b[i] = ahead[i] < b[i] ? ahead[i] : b[i];
}

/* Replaces element i of b by the minimum of i, i + unit, ..., i + (window - 1) unit. b has n
 * elements; those past the end take no part. */
static void minimum_window(float *b, int64_t unit, int64_t window, int64_t n) {
  int64_t done = 1;
  while (done < window) {
    int64_t step = done * 2 <= window ? done : window - done;
    if (step * unit < n) minimum_ahead(b, step * unit, n - step * unit);
    done += step;
  }
}

/* The window of element i is i - before ... i + after. After minimum_window its minimum stands at i
 * - before; at the start, where this would be negative, infinities in front of the row truncate the
 * window to 0 ... i + after. */
static void erode_row(float *out, const float *in, float *line, int64_t width, int64_t channels,
                      int64_t before, int64_t after) {
  int64_t lead = before * channels, n = width * channels;
  for (int64_t i = 0; i < lead; i++) line[i] = INFINITY;
  memcpy(line + lead, in, (size_t)n * sizeof *line);
  minimum_window(line, channels, before + after + 1, lead + n);
  memcpy(out, line, (size_t)n * sizeof *line);
}

enum { STRIPE = 64 };

/* The same for the columns [first, first + count) of an image whose rows are `step` apart. */
static void erode_columns(float *image, float *block, int64_t height, int64_t step, int64_t first,
                          int64_t count, int64_t before, int64_t after) {
  for (int64_t i = 0; i < before * count; i++) block[i] = INFINITY;
  for (int64_t y = 0; y < height; y++)
    memcpy(block + (before + y) * count, image + y * step + first, (size_t)count * sizeof *block);
  minimum_window(block, count, before + after + 1, (before + height) * count);
  for (int64_t y = 0; y < height; y++)
    memcpy(image + y * step + first, block + y * count, (size_t)count * sizeof *block);
}

int cr__cpu_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after) {
  int64_t height = x->shape[0], width = x->shape[1], channels = x->shape[2];
  int64_t n = width * channels, longest = height > width ? height : width;
  int64_t b = before < longest ? before : longest, a = after < longest ? after : longest;
  int failed = 0;
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  if (rc >= 0) {
    const float *in = cr__ptr(images.from);
    float *result = cr__ptr(images.to);
#pragma omp parallel num_threads(cr__image_threads(n *height)) reduction(| : failed)
    {
      float *line = cr__scratch("erode", n + b * channels, sizeof *line);
      float *block = cr__scratch("erode", (height + b) * STRIPE, sizeof *block);
      failed = !line || !block;
#pragma omp for
      for (int64_t y = 0; y < height; y++)
        if (!failed) erode_row(result + y * n, in + y * n, line, width, channels, b, a);
#pragma omp for
      for (int64_t i = 0; i < n; i += STRIPE)
        if (!failed)
          erode_columns(result, block, height, n, i, n - i < STRIPE ? n - i : STRIPE, b, a);
      free(line);
      free(block);
    }
    rc = failed ? cr__fail(CR_ENOMEM, "erode: out of memory for %s", cr__shape(x)) : CR_OK;
  }
  return cr__image_end(&images, rc, out);
}

/* ---- Gaussian blur --------------------------------------------------------------------------- */

/* Reflects the index i into 0 ... n - 1 without repeating the border, as often as needed. */
static inline int64_t reflect(int64_t i, int64_t n) {
  if (n == 1) return 0;
  int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

/* A vector of 16 floats, which GCC splits into the machine's registers; any alignment. */
typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));

enum { TILE = 64 };

/* out[j] = the blurred middle[j] for j < TILE. Tap k reads above(k)[j] and below(k)[j]. */
#define BLUR_TILE(out, middle, above, below)                                                       \
  do {                                                                                             \
    const lanes *at = (const lanes *)(middle);                                                     \
    lanes s0 = weight[half] * at[0], s1 = weight[half] * at[1];                                    \
    lanes s2 = weight[half] * at[2], s3 = weight[half] * at[3];                                    \
    for (int64_t k = 1; k <= half; k++) {                                                          \
      const lanes *p = (const lanes *)(above), *q = (const lanes *)(below);                        \
      float w = weight[half - k];                                                                  \
      s0 += w * (p[0] + q[0]);                                                                     \
      s1 += w * (p[1] + q[1]);                                                                     \
      s2 += w * (p[2] + q[2]);                                                                     \
      s3 += w * (p[3] + q[3]);                                                                     \
    }                                                                                              \
    lanes *to = (lanes *)(out);                                                                    \
    to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;                                                \
  } while (0)

/* out[i] = sum of weight[k] line[i + k step]. The kernel is symmetric with 2 half + 1 taps. */
CR_CLONES static void blur_line(float *restrict out, const float *restrict line,
                                const float *weight, int64_t half, int64_t step, int64_t n) {
  const float *middle = line + half * step;
  int64_t i = 0;
  for (; i + TILE <= n; i += TILE)
    BLUR_TILE(out + i, middle + i, middle + i - k * step, middle + i + k * step);
  for (; i < n; i++) {
    float sum = weight[half] * middle[i];
    for (int64_t k = 1; k <= half; k++)
      sum += weight[half - k] * (middle[i - k * step] + middle[i + k * step]);
    out[i] = sum;
  }
}

/* One row of the vertical pass: row y from the rows around it. */
CR_CLONES static void blur_column(float *restrict out, const float *restrict image,
                                  const float *weight, int64_t half, int64_t y, int64_t height,
                                  int64_t n) {
#define ROW(v) (image + ((v) >= 0 && (v) < height ? (v) : reflect(v, height)) * n + i)
  int64_t i = 0;
  for (; i + TILE <= n; i += TILE) BLUR_TILE(out + i, ROW(y), ROW(y - k), ROW(y + k));
  if (i == n) return;
  for (int64_t j = 0; j < n - i; j++) out[i + j] = weight[half] * ROW(y)[j];
  for (int64_t k = 1; k <= half; k++) {
    const float *above = ROW(y - k), *below = ROW(y + k);
    for (int64_t j = 0; j < n - i; j++) out[i + j] += weight[half - k] * (above[j] + below[j]);
  }
#undef ROW
}

static void blur_row(float *out, const float *in, float *line, const float *weight, int64_t half,
                     int64_t width, int64_t channels) {
  memcpy(line + half * channels, in, (size_t)(width * channels) * sizeof *line);
  for (int64_t i = -half; i < width + half; i++) {
    if (i == 0) i = width;
    memcpy(line + (i + half) * channels, in + reflect(i, width) * channels,
           (size_t)channels * sizeof *line);
  }
  blur_line(out, line, weight, half, channels, width * channels);
}

int cr__cpu_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma) {
  int64_t height = x->shape[0], width = x->shape[1], channels = x->shape[2];
  int64_t half = size / 2, n = width * channels;
  int failed = 0;
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  float *between = rc >= 0 ? cr__scratch("gaussian_blur", height * n, sizeof *between) : NULL;
  float *weight = between ? cr__gaussian_new(half, sigma) : NULL;
  if (weight) {
    const float *in = cr__ptr(images.from);
    float *result = cr__ptr(images.to);
#pragma omp parallel num_threads(cr__image_threads(n *height *(1 + size / 8))) reduction(| : failed)
    {
      float *line = cr__scratch("gaussian_blur", n + 2 * half * channels, sizeof *line);
      failed = !line;
#pragma omp for
      for (int64_t y = 0; y < height; y++)
        if (!failed) blur_row(between + y * n, in + y * n, line, weight, half, width, channels);
#pragma omp for
      for (int64_t y = 0; y < height; y++)
        blur_column(result + y * n, between, weight, half, y, height, n);
      free(line);
    }
    rc = failed ? cr__fail(CR_ENOMEM, "gaussian_blur: out of memory for %s", cr__shape(x)) : CR_OK;
  } else {
    rc = CR_ENOMEM;
  }
  free(weight);
  free(between);
  return cr__image_end(&images, rc, out);
}
