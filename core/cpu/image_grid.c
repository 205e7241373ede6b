/* Bilinear sampling with torch's rounding (affine_grid, grid_sample).
 *
 * Invariant: every operation below rounds exactly where torch's does. The compiler may not contract
 * other operations (-ffp-contract=off), and fmaf is exact with or without the instruction. */
#include <math.h>
#include <omp.h>

#include "cpu/image.h"

typedef struct grid {
  const void *data;
  int64_t height, width;
  int channels;
  bool bytes;
  float theta[6];
  float fill;
} grid;

/* torch.linspace(-1, 1, n), which is computed from both ends towards the middle. */
static inline float place(int64_t i, int64_t n) {
  float step = 2.0f / (float)(n - 1);
  return i < n / 2 ? fmaf(step, (float)i, -1.0f) : fmaf(-step, (float)(n - 1 - i), 1.0f);
}

/* Returns a pixel's value, 0 outside. */
static inline float value_at(const grid *g, int64_t x, int64_t y, int c) {
  if (x < 0 || y < 0 || x >= g->width || y >= g->height) return 0;
  int64_t i = (y * g->width + x) * g->channels + c;
  return g->bytes ? (float)((const uint8_t *)g->data)[i] : ((const float *)g->data)[i];
}

static inline float inside(const grid *g, int64_t x, int64_t y) {
  return x >= 0 && y >= 0 && x < g->width && y < g->height ? 1 : 0;
}

static inline float weighted(const float w[4], float a, float b, float c, float d) {
  return fmaf(d, w[3], fmaf(c, w[2], fmaf(b, w[1], a * w[0])));
}

static inline __attribute__((always_inline)) void sample_row(const grid *g, void *out, int64_t y,
                                                             int64_t height, int64_t width) {
  const float *t = g->theta;
  float gy = place(y, height);
  for (int64_t x = 0; x < width; x++) {
    float gx = place(x, width);
    float u = (gx * t[0] + gy * t[1]) + t[2], v = (gx * t[3] + gy * t[4]) + t[5];
    float px = (u + 1) / 2 * (float)(g->width - 1), py = (v + 1) / 2 * (float)(g->height - 1);
    float sum[4] = {g->fill, g->fill, g->fill, g->fill};
    /* Far outside the image only the fill is used. Coordinates are compared before they become
     * integers, which could overflow. */
    if (px > -2 && px < (float)g->width + 1 && py > -2 && py < (float)g->height + 1) {
      float fx = floorf(px), fy = floorf(py);
      float wx = px - fx, wy = py - fy, ex = 1 - wx, ey = 1 - wy;
      const float w[4] = {ex * ey, wx * ey, ex * wy, wx * wy};
      int64_t x0 = (int64_t)fx, y0 = (int64_t)fy;
      float covered = weighted(w, inside(g, x0, y0), inside(g, x0 + 1, y0), inside(g, x0, y0 + 1),
                               inside(g, x0 + 1, y0 + 1));
      for (int c = 0; c < g->channels; c++)
        sum[c] = weighted(w, value_at(g, x0, y0, c), value_at(g, x0 + 1, y0, c),
                          value_at(g, x0, y0 + 1, c), value_at(g, x0 + 1, y0 + 1, c)) +
                 (1 - covered) * g->fill;
    }
    for (int c = 0; c < g->channels; c++) {
      if (g->bytes)
        ((uint8_t *)out)[x * g->channels + c] =
            (uint8_t)(sum[c] > 0 ? (sum[c] < 255 ? sum[c] : 255) : 0);
      else
        ((float *)out)[x * g->channels + c] = sum[c];
    }
  }
}

/* Without the FMA instruction fmaf is a function call, so the loop is compiled twice. */
#ifdef __x86_64__
__attribute__((target("fma,avx2"))) static void sample_row_fma(const grid *g, void *out, int64_t y,
                                                               int64_t height, int64_t width) {
  sample_row(g, out, y, height, width);
}
#endif

int cr__cpu_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, double fill) {
  if (x->shape[2] > 4)
    return cr__fail(CR_EUNSUPPORTED, "grid_sample: takes at most 4 channels, not %s", cr__shape(x));
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, out->dtype, x, x->dtype);
  if (rc >= 0) {
    grid g = {cr__ptr(images.from), x->shape[0], x->shape[1], x->shape[2],
              x->dtype == CR_U8,    {0},         (float)fill};
    for (int i = 0; i < 6; i++) g.theta[i] = theta[i];
    int64_t height = out->shape[0], width = out->shape[1];
    int64_t row_bytes = width * g.channels * cr_dtype_size(out->dtype);
    char *data = cr__ptr(images.to);
    void (*row)(const grid *, void *, int64_t, int64_t, int64_t) = sample_row;
#ifdef __x86_64__
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) row = sample_row_fma;
#endif
#pragma omp parallel for num_threads(cr__image_threads(height *width * 12)) schedule(dynamic, 8)
    for (int64_t y = 0; y < height; y++) row(&g, data + y * row_bytes, y, height, width);
  }
  return cr__image_end(&images, rc, out);
}
