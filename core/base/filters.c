/* Tables of the image operations (filters.h).
 *
 * Invariant: every step has the order and the precision of the library whose results it reproduces
 * (OpenCV, torch, libswscale). No step may be merged with another one. */
#include "base/filters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- taps of resizing ------------------------------------------------------------------------ */

CR_EXPORT void cr__axis_free(cr__axis *a) {
  free(a->block);
  *a = (cr__axis){0};
}

static int axis_alloc(cr__axis *a, int64_t in, int64_t out, int64_t taps, bool fixed) {
  if (taps > in) taps = in;
  *a = (cr__axis){.in = in, .out = out, .taps = (int)taps};
  int64_t n = 0, bytes = 0;
  int64_t each = (int64_t)sizeof *a->weight + (fixed ? (int64_t)sizeof *a->fixed : 0);
  if (!__builtin_mul_overflow(out, taps, &n) && !__builtin_mul_overflow(n, each, &bytes) &&
      !__builtin_add_overflow(bytes, out * (int64_t)sizeof *a->first, &bytes))
    a->block = calloc(1, (size_t)bytes);
  if (!a->block)
    return cr__fail(CR_ENOMEM, "resize: no memory for %lld x %lld taps", (long long)out,
                    (long long)taps);
  a->bytes = bytes;
  a->first = a->block;
  a->weight = (float *)(a->first + out);
  a->fixed = fixed ? (int32_t *)(a->weight + n) : NULL;
  return CR_OK;
}

/* Stores n weights for the source indices start ... start + n - 1, and adds those of indices
 * outside the image to its border pixels. */
static void axis_store(cr__axis *a, int64_t i, int64_t start, const float *weight, int n) {
  int64_t first = start < 0 ? 0 : start;
  if (first > a->in - a->taps) first = a->in - a->taps;
  a->first[i] = first;
  for (int k = 0; k < n; k++) {
    int64_t at = start + k;
    at = at < 0 ? 0 : at > a->in - 1 ? a->in - 1 : at;
    int64_t slot = i * a->taps + (at - first);
    a->weight[slot] += weight[k];
    if (a->fixed) a->fixed[slot] += (int32_t)lrintf(weight[k] * (1 << CR__FIXED_BITS));
  }
}

/* Lanczos weights sin(pi t) sin(pi t / 4) / t^2 at t = f + 3 - k, normalized. The first sine has
 * the same magnitude for all k, so only its sign is computed. */
static void lanczos4(float *weight, float f) {
  float total = 0;
  for (int k = 0; k < 8; k++) {
    float t = f + 3 - (float)k;
    double angle = t * M_PI * 0.25, sign = k & 1 ? 1 : -1;
    /* At t = 0 the first sine is 0, which makes all other weights vanish beside this one. */
    weight[k] = fabsf(t) < 1e-6f ? 1e30f : (float)(sign * sin(angle) / (angle * angle));
    total += weight[k];
  }
  total = 1 / total;
  for (int k = 0; k < 8; k++) weight[k] *= total;
}

static float cubic(float t) {
  t = fabsf(t);
  if (t < 1) return (1.5f * t - 2.5f) * t * t + 1;
  return t < 2 ? ((-0.5f * t + 2.5f) * t - 4) * t + 2 : 0;
}

/* The kernel widens as the image shrinks, and weights outside the image are dropped. The arithmetic
 * is in float like torch's, since it decides which taps take part at exact halves. */
static int bicubic_axis(cr__axis *a, int64_t in, int64_t out) {
  float scale = (float)in / (float)out, reach = scale >= 1 ? 2 * scale : 2;
  float narrow = scale >= 1 ? 1 / scale : 1;
  int64_t most = (int64_t)ceilf(reach) * 2 + 1;
  CR_TRY(axis_alloc(a, in, out, most, false));
  float *weight = malloc((size_t)most * sizeof *weight);
  if (!weight) return cr__fail(CR_ENOMEM, "resize: no memory for %lld taps", (long long)most);
  for (int64_t i = 0; i < out; i++) {
    float center = scale * ((float)i + 0.5f), total = 0;
    int64_t first = (int64_t)fmaxf(center - reach + 0.5f, 0);
    int64_t last = (int64_t)(center + reach + 0.5f);
    if (last > in) last = in;
    int n = (int)(last - first < most ? last - first : most);
    for (int k = 0; k < n; k++) {
      weight[k] = cubic(((float)(first + k) - center + 0.5f) * narrow);
      total += weight[k];
    }
    for (int k = 0; k < n; k++) weight[k] /= total;
    axis_store(a, i, first, weight, n);
  }
  free(weight);
  return CR_OK;
}

CR_EXPORT int cr__axis_new(cr__axis *a, int64_t in, int64_t out, int32_t method, bool fixed) {
  if (method == CR_BICUBIC_AA) return bicubic_axis(a, in, out);
  bool lanczos = method == CR_LANCZOS4;
  CR_TRY(axis_alloc(a, in, out, lanczos ? 8 : 2, fixed));
  double scale = 1 / ((double)out / (double)in); /* rounded as OpenCV does */
  for (int64_t i = 0; i < out; i++) {
    float weight[8], at;
    if (method == CR_BILINEAR_EDGE)
      at = (float)i * ((float)in / (float)out);
    else
      at = (float)(((double)i + 0.5) * scale - 0.5);
    int64_t first = (int64_t)floorf(at);
    float f = at - (float)first;
    if (lanczos) {
      lanczos4(weight, f);
      axis_store(a, i, first - 3, weight, 8);
    } else {
      weight[0] = 1 - f;
      weight[1] = f;
      axis_store(a, i, first, weight, 2);
    }
  }
  return CR_OK;
}

/* ---- OpenCV's fixed-point tables
 * -------------------------------------------------------------- */

static int32_t *new_table(const char *name, int64_t n) {
  int32_t *table = malloc((size_t)n * sizeof *table);
  if (!table) cr__fail(CR_ENOMEM, "%s: no memory for a table of %lld", name, (long long)n);
  return table;
}

static int32_t within(int64_t i, int64_t n) { return (int32_t)(i < 0 ? 0 : i > n - 1 ? n - 1 : i); }

CR_EXPORT int32_t *cr__linear_taps_new(int64_t in, int64_t out, bool across) {
  int32_t *table = new_table("resize", 4 * out);
  if (!table) return NULL;
  double scale = 1 / ((double)out / (double)in);
  for (int64_t i = 0; i < out; i++) {
    float at = (float)(((double)i + 0.5) * scale - 0.5);
    int64_t first = (int64_t)floorf(at);
    float f = at - (float)first;
    if (across && (first < 0 || first >= in - 1)) f = 0;
    int32_t *entry = table + 4 * i;
    entry[0] = within(first, in);
    entry[1] = within(first + 1, in);
    entry[2] = (int32_t)lrintf((1 - f) * (1 << CR__FIXED_BITS));
    entry[3] = (int32_t)lrintf(f * (1 << CR__FIXED_BITS));
  }
  return table;
}

/* Converts a coordinate to units of 2^-10 pixels, rounded half to even. Coordinates far outside any
 * image are clamped, so that sums of two do not overflow. */
static int32_t fixed_place(double v) {
  const double most = 1 << 29;
  v *= 1024;
  return (int32_t)lrint(v > most ? most : v < -most ? -most : v);
}

CR_EXPORT int32_t *cr__warp_positions_new(const double *m, int64_t height, int64_t width) {
  int32_t *table = new_table("warp_fixed", 2 * (width + height));
  if (!table) return NULL;
  double d = 1 / (m[0] * m[4] - m[1] * m[3]);
  double a = m[4] * d, b = -m[1] * d, e = -m[3] * d, f = m[0] * d;
  double u = -a * m[2] - b * m[5], v = -e * m[2] - f * m[5];
  for (int64_t x = 0; x < width; x++) {
    table[2 * x] = fixed_place(a * (double)x);
    table[2 * x + 1] = fixed_place(e * (double)x);
  }
  int32_t *rows = table + 2 * width;
  for (int64_t y = 0; y < height; y++) {
    rows[2 * y] = fixed_place(b * (double)y + u) + 16;
    rows[2 * y + 1] = fixed_place(f * (double)y + v) + 16;
  }
  return table;
}

/* ---- chroma ---------------------------------------------------------------------------------- */

/* Rounds the taps of result i so that they sum to `one`: each rounding error is carried to the next
 * tap. */
static void fix_taps(cr__axis *a, int64_t i, const double *slot, double total, int32_t one) {
  double carry = 0;
  for (int k = 0; k < a->taps; k++) {
    double v = slot[k] / total * one + carry;
    int32_t fixed = (int32_t)round(v);
    a->fixed[i * a->taps + k] = fixed;
    carry = v - fixed;
  }
}

static int chroma_axis(cr__axis *a, int64_t in, int64_t out, int32_t one) {
  CR_TRY(axis_alloc(a, in, out, in == out ? 1 : 4, true));
  int64_t increment =
      ((in << 16) + (out >> 1)) / out; /* the step between pixels as libswscale rounds it */
  for (int64_t i = 0; i < out; i++) {
    int32_t *fixed = a->fixed + i * a->taps;
    if (in == out) {
      a->first[i] = i;
      *fixed = one;
      continue;
    }
    /* Positions are in units of 2^-17. libswscale rounds the first of its five taps towards 0, so
     * near the start of the image a tap with a weight is dropped. */
    int64_t at = increment * (2 * i + 1) - 65536, start = (at - 3 * 65536) / 131072;
    double weight[5], slot[4] = {0}, total = 0;
    int from = 0, to = 5;
    for (int k = 0; k < 5; k++) {
      double d = fabs((double)((start + k) * 131072 - at)) / 131072;
      weight[k] = d < 1   ? (1.4 * d - 2.4) * d * d + 1
                  : d < 2 ? ((-0.6 * d + 3) * d - 4.8) * d + 2.4
                          : 0;
    }
    while (fabs(weight[from]) <= 0.002) from++; /* libswscale drops such small weights */
    while (fabs(weight[to - 1]) == 0) to--;
    int64_t first = start + from < 0 ? 0 : start + from;
    if (first > in - a->taps) first = in - a->taps;
    a->first[i] = first;
    for (int k = from; k < to; k++) {
      int64_t place = start + k;
      place = place < 0 ? 0 : place > in - 1 ? in - 1 : place;
      slot[place - first] += weight[k];
      total += weight[k];
    }
    fix_taps(a, i, slot, total, one);
  }
  return CR_OK;
}

static int chroma_half_axis(cr__axis *a, int64_t in, int64_t out, int32_t one) {
  /* The same cubic kernel stretched by 2, at distances of 1/4, 3/4, 5/4 and 7/4 samples. */
  static const double side[4] = {0.871875, 0.240625, -0.084375, -0.028125};
  CR_TRY(axis_alloc(a, in, out, in == out ? 1 : 8, true));
  for (int64_t i = 0; i < out; i++) {
    if (in == out) {
      a->first[i] = i;
      a->fixed[i] = one;
      continue;
    }
    double slot[8] = {0};
    int64_t start = 2 * i - 3, first = start < 0 ? 0 : start;
    if (first > in - a->taps) first = in - a->taps;
    a->first[i] = first;
    for (int k = 0; k < 8; k++) {
      int64_t place = start + k;
      place = place < 0 ? 0 : place > in - 1 ? in - 1 : place;
      slot[place - first] += side[k < 4 ? 3 - k : k - 4];
    }
    fix_taps(a, i, slot, 2, one);
  }
  return CR_OK;
}

CR_EXPORT int cr__chroma_axes_new(cr__axis *across, cr__axis *down, const cr_yuv *f, bool back) {
  int64_t width = f->width, height = f->height;
  int64_t w = (width + f->shift_x) >> f->shift_x, h = (height + f->shift_y) >> f->shift_y;
  CR_TRY(back ? chroma_half_axis(across, width, w, 1 << 14)
              : chroma_axis(across, w, width, 1 << 14));
  return back ? chroma_half_axis(down, height, h, 1 << 12) : chroma_axis(down, h, height, 1 << 12);
}

static int32_t rounded(int64_t x) {
  int64_t r = (x * 8192 + 32768) >> 16;
  return (int32_t)(r < -0x7fff ? -0x7fff : r > 0x7fff ? 0x7fff : r);
}

CR_EXPORT cr__yuv_matrix cr__yuv_matrix_of(const cr_yuv *f) {
  int64_t gain = 65536, offset = 0, share[4];
  for (int i = 0; i < 4; i++)
    share[i] = f->full_range ? (int64_t)f->matrix[i] * 224 / 255 : f->matrix[i];
  if (!f->full_range) {
    gain = gain * 255 / 219;
    offset = 16 * 512;
  }
  return (cr__yuv_matrix){(int32_t)offset,   rounded(gain),      rounded(share[0]),
                          rounded(share[1]), rounded(-share[2]), rounded(-share[3])};
}

/* x / y rounded half away from 0, as libswscale divides (y > 0). */
static int64_t divided(int64_t x, int64_t y) { return (x >= 0 ? x + y / 2 : x - y / 2) / y; }

CR_EXPORT cr__rgb_matrix cr__rgb_matrix_of(const cr_yuv *f) {
  const int64_t one = 65536, scale = 1 << 15;
  static const int32_t bt601[4] = {104597, 132201, 25675, 53279};
  /* For BT.601 libswscale uses the rounded coefficients of textbooks instead of computing them as
   * below. */
  static const double share[3][3] = {
      {0.299, 0.587, 0.114}, {-0.169, -0.331, 0.5}, {0.5, -0.419, -0.081}};
  cr__rgb_matrix m = {.full_range = f->full_range != 0};
  if (memcmp(f->matrix, bt601, sizeof bt601) == 0) {
    for (int i = 0; i < 3; i++)
      for (int k = 0; k < 3; k++) {
        double v = fabs(share[i][k]) * (i ? 224 : 219) / 255 * (double)scale + 0.5;
        m.coefficient[i][k] = share[i][k] < 0 ? -(int32_t)v : (int32_t)v;
      }
    return m;
  }
  /* format->matrix is the inverse of this matrix: the row of Y is (v w z), and the rows of U and V
   * are scaled differences of blue and red from Y. */
  int64_t vr = f->matrix[0], ub = f->matrix[1];
  int64_t w = divided(-one * one * f->matrix[2], ub), v = divided(-one * one * f->matrix[3], vr);
  int64_t z = one * one - w - v;
  int64_t y = divided(one * 255 / 219 * z, one), u = divided(ub * z, one);
  int64_t r = divided(vr * z, one);
  int64_t rows[3][3] = {{-v, one * one, -w}, {v, -one * one, z + w}, {v + z, -one * one, w}};
  int64_t under[3] = {y, u, r};
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 3; k++)
      m.coefficient[i][k] = (int32_t)divided(scale * rows[i][k], under[i]);
  return m;
}

/* ---- Gaussian, square, affine map
 * --------------------------------------------------------------- */

CR_EXPORT float *cr__gaussian_new(int64_t half, double sigma) {
  float *weight = malloc((size_t)(2 * half + 1) * sizeof *weight);
  if (!weight) {
    cr__fail(CR_ENOMEM, "gaussian_blur: no memory for %lld taps", 2 * (long long)half + 1);
    return NULL;
  }
  double total = 0;
  for (int64_t k = -half; k <= half; k++) total += exp(-(double)(k * k) / (2 * sigma * sigma));
  for (int64_t k = -half; k <= half; k++)
    weight[k + half] = (float)(exp(-(double)(k * k) / (2 * sigma * sigma)) / total);
  return weight;
}

CR_EXPORT cr__cut cr__cut_of(const double *square, int32_t size, double scale) {
  double side = square[2], angle = square[3], ratio = side / size;
  cr__cut c = {.points = angle == 0 && ratio >= 4, .x = square[0], .y = square[1]};
  /* For a square much larger than the result, the mean of about every second pixel is as good as
   * that of bilinear samples, and faster. */
  if (c.points)
    c.samples = (int)floor(ratio / fmax(2, ceil(ratio / 5)) + 0.5);
  else
    c.samples = (int)fmax(1, fmin(4, ceil(ratio / 3)));
  c.step = side / ((double)size * c.samples);
  c.left = c.x - side / 2;
  c.top = c.y - side / 2;
  c.cosine = cos(angle) * c.step;
  c.sine = sin(angle) * c.step;
  c.factor = scale / ((double)c.samples * c.samples);
  return c;
}

CR_EXPORT void cr__affine_inverse(double *inverse, const double *m) {
  double det = m[0] * m[4] - m[1] * m[3];
  inverse[0] = m[4] / det;
  inverse[1] = -m[1] / det;
  inverse[3] = -m[3] / det;
  inverse[4] = m[0] / det;
  inverse[2] = -(inverse[0] * m[2] + inverse[1] * m[5]);
  inverse[5] = -(inverse[3] * m[2] + inverse[4] * m[5]);
}
