/* Warps: each result pixel is mapped back into the source and sampled there.
 *
 * Invariants: those of image.h. A coordinate becomes an integer only after it is known to be near
 * the image, so no matrix can cause an overflow. Sources and results are dense. One thread for each
 * result pixel, in tiles of 32 x 8, which read a compact part of the source: its lines are read
 * from memory once and come from L1 for the neighbours. */
#include <math.h>
#include <stdlib.h>

#include "base/opencv.h"
#include "image/image.h"
#include "memory/transfer.h"

typedef struct warp {
  int64_t in_height, in_width, height, width;
  int channels;
  double u, v, du_x, dv_x, du_y, dv_y; /* see source_point() */
  double left, top;
  float fill;
} warp;

/* The source point of result pixel (x, y), rounded as the CPU's rows are: a row's first point, then
 * x steps to the right. */
__device__ __forceinline__ void source_point(double *px, double *py, const warp &w, int64_t x,
                                             int64_t y) {
  double row = (double)(y + (int64_t)w.top);
  double u = crk_add(crk_add(crk_mul(w.du_x, w.left), crk_mul(w.du_y, row)), w.u);
  double v = crk_add(crk_add(crk_mul(w.dv_x, w.left), crk_mul(w.dv_y, row)), w.v);
  *px = crk_add(u, crk_mul((double)x, w.du_x));
  *py = crk_add(v, crk_mul((double)x, w.dv_x));
}

static warp make_warp(const cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                      int32_t top, double fill) {
  double i[6];
  cr__affine_inverse(i, m);
  warp w = {x->shape[0], x->shape[1], out->shape[0], out->shape[1], x->shape[2]};
  w.u = i[2], w.du_x = i[0], w.du_y = i[1];
  w.v = i[5], w.dv_x = i[3], w.dv_y = i[4];
  w.left = left, w.top = top, w.fill = (float)fill;
  return w;
}

/* ---- bilinear -------------------------------------------------------------------------------- */

/* A chain of linear interpolations, so that flat areas stay exactly flat. */
__device__ __forceinline__ float lerp2(float a, float b, float c, float d, float fx, float fy) {
  float top = crk_add(a, crk_mul(fx, crk_sub(b, a)));
  float bottom = crk_add(c, crk_mul(fx, crk_sub(d, c)));
  return crk_add(top, crk_mul(fy, crk_sub(bottom, top)));
}

/* CHANNELS 0: w has their number. */
template <typename In, typename Out, int CHANNELS>
__global__ void warp_affine_kernel(Out *__restrict__ out, const In *__restrict__ in, warp w) {
  int64_t x = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  int channels = CHANNELS ? CHANNELS : w.channels;
  if (x >= w.width) return;
  CRK_EACH_ROW(y, w.height) {
    double px, py;
    source_point(&px, &py, w, x, y);
    Out *to = out + (y * w.width + x) * channels;
    if (!(px > -1 && px < (double)w.in_width && py > -1 && py < (double)w.in_height)) {
      for (int c = 0; c < channels; c++) crk_put(to + c, w.fill);
      continue;
    }
    int64_t x0 = (int64_t)crk_add(px, 1.0) - 1, y0 = (int64_t)crk_add(py, 1.0) - 1;
    float fx = (float)crk_add(px, -(double)x0), fy = (float)crk_add(py, -(double)y0);
    bool left = x0 >= 0, right = x0 + 1 < w.in_width;
    bool above = y0 >= 0, below = y0 + 1 < w.in_height;
    const In *a = in + (y0 * w.in_width + x0) * channels, *b = a + channels;
    const In *c = a + w.in_width * channels, *d = c + channels;
    for (int k = 0; k < channels; k++)
      crk_put(to + k,
              lerp2(left && above ? (float)a[k] : w.fill, right && above ? (float)b[k] : w.fill,
                    left && below ? (float)c[k] : w.fill, right && below ? (float)d[k] : w.fill, fx,
                    fy));
  }
}

template <typename In, typename Out>
static void launch_affine(crk_device *d, void *out, const void *in, const warp &w) {
  dim3 grid = crk_image_grid(w.width, w.height), block = crk_image_block();
  if (w.channels == 3)
    warp_affine_kernel<In, Out, 3><<<grid, block, 0, d->stream>>>((Out *)out, (const In *)in, w);
  else if (w.channels == 1)
    warp_affine_kernel<In, Out, 1><<<grid, block, 0, d->stream>>>((Out *)out, (const In *)in, w);
  else
    warp_affine_kernel<In, Out, 0><<<grid, block, 0, d->stream>>>((Out *)out, (const In *)in, w);
}

int crk_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                    double fill) {
  CRK_DEVICE(d, "warp_affine", out);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, out->dtype, x, x->dtype);
  if (rc >= 0) {
    warp w = make_warp(out, x, m, left, top, fill);
    void *p = crk_ptr(images.to);
    const void *q = crk_ptr(images.from);
    if (x->dtype == CR_U8 && out->dtype == CR_U8)
      launch_affine<uint8_t, uint8_t>(d, p, q, w);
    else if (x->dtype == CR_U8)
      launch_affine<uint8_t, float>(d, p, q, w);
    else if (out->dtype == CR_U8)
      launch_affine<float, uint8_t>(d, p, q, w);
    else
      launch_affine<float, float>(d, p, q, w);
    rc = crk_launched("warp_affine", d);
  }
  return cr__image_end(&images, rc, out);
}

/* ---- bytes, as OpenCV ------------------------------------------------------------------------ */

__global__ void warp_fixed_kernel(uint8_t *__restrict__ out, const uint8_t *__restrict__ in,
                                  const int32_t *__restrict__ places, int64_t in_height,
                                  int64_t in_width, int64_t height, int64_t width, int channels) {
  int64_t x = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= width) return;
  CRK_EACH_ROW(y, height)
  cr__warp_bytes(out + (y * width + x) * channels, in, in_height, in_width, channels,
                 places + 2 * x, places + 2 * (width + y));
}

int crk_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m) {
  CRK_DEVICE(d, "warp_fixed", out);
  int64_t height = out->shape[0], width = out->shape[1], bytes = 8 * (width + height);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_U8, x, CR_U8);
  int32_t *places = rc >= 0 ? cr__warp_positions_new(m, height, width) : NULL;
  cr_storage *table = places ? cr__storage_new(bytes, d->device) : NULL;
  rc = table ? crk_upload("warp_fixed", d, table->data, places, bytes) : CR_ENOMEM;
  if (rc >= 0) {
    warp_fixed_kernel<<<crk_image_grid(width, height), crk_image_block(), 0, d->stream>>>(
        (uint8_t *)crk_ptr(images.to), (const uint8_t *)crk_ptr(images.from),
        (const int32_t *)table->data, x->shape[0], x->shape[1], height, width, x->shape[2]);
    rc = crk_launched("warp_fixed", d);
  }
  if (table) cr__release(table);
  free(places);
  return cr__image_end(&images, rc, out);
}

/* ---- bicubic, antialiased -------------------------------------------------------------------- */

/* Keys' kernel with a = -0.5. */
__device__ __forceinline__ float cubic(float t) {
  t = fabsf(t);
  float p = crk_sub(crk_mul(1.5f, t), 2.5f), q = crk_add(crk_mul(-0.5f, t), 2.5f);
  float near = crk_add(crk_mul(crk_mul(p, t), t), 1.0f);
  float far = crk_add(crk_mul(crk_sub(crk_mul(q, t), 4.0f), t), 2.0f);
  return t < 1 ? near : t < 2 ? far : 0.0f;
}

/* The source pixels around a point on one axis and the sum of their weights. Weight k, before the
 * division, is computed again wherever it is needed: there may be any number of weights, and
 * computing them costs less than local memory. */
typedef struct taps {
  int64_t first, count;
  double p;
  float narrow, total;
} taps;

__device__ __forceinline__ float tap_at(const taps &t, int64_t k) {
  return cubic(crk_mul((float)crk_add((double)(t.first + k), -t.p), t.narrow));
}

__device__ __forceinline__ taps make_taps(double p, int64_t n, double scale, float narrow) {
  double reach = 2 * scale;
  taps t;
  t.first = (int64_t)fmax(0.0, ceil(crk_add(p, -reach)));
  int64_t last = (int64_t)fmin((double)(n - 1), floor(crk_add(p, reach)));
  t.count = last - t.first + 1;
  t.p = p;
  t.narrow = narrow;
  t.total = 0;
  for (int64_t k = 0; k < t.count; k++) t.total = crk_add(t.total, tap_at(t, k));
  return t;
}

/* The four weights around a point, `f` of the way from the second tap to the third. */
__device__ __forceinline__ void four_weights(float *w, float f) {
  w[0] = crk_mul(crk_sub(crk_mul(crk_add(crk_mul(-0.5f, f), 1.0f), f), 0.5f), f);
  w[1] = crk_add(crk_mul(crk_mul(crk_sub(crk_mul(1.5f, f), 2.5f), f), f), 1.0f);
  w[2] = crk_mul(crk_add(crk_mul(crk_add(crk_mul(-1.5f, f), 2.0f), f), 0.5f), f);
  w[3] = crk_mul(crk_mul(crk_sub(crk_mul(0.5f, f), 0.5f), f), f);
}

/* Three channels, four taps in each direction: the common case of a face that is not made smaller.
 */
__device__ __forceinline__ void bicubic_4x4(float *out, const float *in, int64_t in_width,
                                            double px, double py) {
  int64_t x0 = (int64_t)px, y0 = (int64_t)py;
  float wx[4], wy[4];
  four_weights(wx, (float)crk_add(px, -(double)x0));
  four_weights(wy, (float)crk_add(py, -(double)y0));
  const float *row = in + ((y0 - 1) * in_width + x0 - 1) * 3;
  float sum[12] = {0};
#pragma unroll
  for (int j = 0; j < 4; j++, row += in_width * 3)
#pragma unroll
    for (int i = 0; i < 12; i++) sum[i] = crk_add(sum[i], crk_mul(wy[j], row[i]));
#pragma unroll
  for (int c = 0; c < 3; c++) {
    float v = crk_mul(wx[0], sum[c]);
#pragma unroll
    for (int k = 1; k < 4; k++) v = crk_add(v, crk_mul(wx[k], sum[3 * k + c]));
    out[c] = v;
  }
}

/* Any channels and widths: columns first, in the CPU's order; a column of taps is one pass over j,
 * for up to 4 channels at once. */
__device__ __forceinline__ void bicubic_taps(float *out, const float *in, int64_t in_width,
                                             int channels, const taps &tx, const taps &ty) {
  for (int first = 0; first < channels; first += 4) {
    int n = channels - first < 4 ? channels - first : 4;
    float sum[4] = {0};
    for (int64_t k = 0; k < tx.count; k++) {
      const float *p = in + (ty.first * in_width + tx.first + k) * channels + first;
      float wx = __fdiv_rn(tap_at(tx, k), tx.total), column[4] = {0};
      for (int64_t j = 0; j < ty.count; j++, p += in_width * channels) {
        float wy = __fdiv_rn(tap_at(ty, j), ty.total);
#pragma unroll
        for (int c = 0; c < 4; c++)
          if (c < n) {
            float v = crk_mul(wy, p[c]);
            column[c] = j ? crk_add(column[c], v) : v;
          }
      }
#pragma unroll
      for (int c = 0; c < 4; c++) {
        float v = crk_mul(wx, column[c]);
        sum[c] = k ? crk_add(sum[c], v) : v;
      }
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
      if (c < n) out[first + c] = sum[c];
  }
}

__global__ void warp_bicubic_kernel(float *__restrict__ out, const float *__restrict__ in, warp w,
                                    double scale_x, double scale_y) {
  int64_t x = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= w.width) return;
  double right = (double)w.in_width - 1, bottom = (double)w.in_height - 1;
  bool plain = w.channels == 3 && scale_x == 1 && scale_y == 1;
  float narrow_x = (float)__ddiv_rn(1, scale_x), narrow_y = (float)__ddiv_rn(1, scale_y);
  CRK_EACH_ROW(y, w.height) {
    double px, py;
    source_point(&px, &py, w, x, y);
    px = px > 0 ? (px < right ? px : right) : 0;
    py = py > 0 ? (py < bottom ? py : bottom) : 0;
    float *to = out + (y * w.width + x) * w.channels;
    if (plain && px >= 1 && px < right - 1 && py >= 1 && py < bottom - 1)
      bicubic_4x4(to, in, w.in_width, px, py);
    else
      bicubic_taps(to, in, w.in_width, w.channels, make_taps(px, w.in_width, scale_x, narrow_x),
                   make_taps(py, w.in_height, scale_y, narrow_y));
  }
}

int crk_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                     int32_t top) {
  CRK_DEVICE(d, "warp_bicubic", out);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, CR_F32, x, CR_F32);
  if (rc >= 0) {
    warp w = make_warp(out, x, m, left, top, 0);
    /* How many source pixels a step of one result pixel covers in the worst direction. */
    double scale_x = fmax(1, hypot(w.du_x, w.du_y)), scale_y = fmax(1, hypot(w.dv_x, w.dv_y));
    warp_bicubic_kernel<<<crk_image_grid(w.width, w.height), crk_image_block(), 0, d->stream>>>(
        (float *)crk_ptr(images.to), (const float *)crk_ptr(images.from), w, scale_x, scale_y);
    rc = crk_launched("warp_bicubic", d);
  }
  return cr__image_end(&images, rc, out);
}

/* ---- torch's affine_grid and grid_sample ----------------------------------------------------- */

typedef struct sampling {
  int in_height, in_width, height, width, channels;
  float theta[6];
  float fill;
} sampling;

/* torch.linspace(-1, 1, n), computed from both ends to the middle. */
__device__ __forceinline__ float linspace(int i, int n) {
  float step = __fdiv_rn(2.0f, (float)(n - 1));
  return i < n / 2 ? __fmaf_rn(step, (float)i, -1.0f) : __fmaf_rn(-step, (float)(n - 1 - i), 1.0f);
}

__device__ __forceinline__ float weighted(const float *w, float a, float b, float c, float d) {
  return __fmaf_rn(d, w[3], __fmaf_rn(c, w[2], __fmaf_rn(b, w[1], crk_mul(a, w[0]))));
}

/* Every operation is one of torch's roundings, in single precision. Threads as above. */
template <typename T>
__global__ void grid_sample_kernel(T *__restrict__ out, const T *__restrict__ in, sampling g) {
  int x = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (x >= g.width) return;
  const float *t = g.theta;
  CRK_EACH_ROW(y, g.height) {
    float gx = linspace(x, g.width), gy = linspace((int)y, g.height);
    float u = crk_add(crk_add(crk_mul(gx, t[0]), crk_mul(gy, t[1])), t[2]);
    float v = crk_add(crk_add(crk_mul(gx, t[3]), crk_mul(gy, t[4])), t[5]);
    float px = crk_mul(crk_mul(crk_add(u, 1.0f), 0.5f), (float)(g.in_width - 1));
    float py = crk_mul(crk_mul(crk_add(v, 1.0f), 0.5f), (float)(g.in_height - 1));
    T *to = out + (y * g.width + x) * g.channels;
    /* Far outside only the fill is used; this is tested before a coordinate becomes an integer. */
    if (!(px > -2 && px < crk_add((float)g.in_width, 1.0f) && py > -2 &&
          py < crk_add((float)g.in_height, 1.0f))) {
      for (int c = 0; c < g.channels; c++) crk_put(to + c, g.fill);
      continue;
    }
    float fx = floorf(px), fy = floorf(py);
    float wx = crk_sub(px, fx), wy = crk_sub(py, fy), ex = crk_sub(1.0f, wx),
          ey = crk_sub(1.0f, wy);
    const float w[4] = {crk_mul(ex, ey), crk_mul(wx, ey), crk_mul(ex, wy), crk_mul(wx, wy)};
    int64_t x0 = (int64_t)fx, y0 = (int64_t)fy;
    bool left = x0 >= 0 && x0 < g.in_width, right = x0 + 1 >= 0 && x0 + 1 < g.in_width;
    bool above = y0 >= 0 && y0 < g.in_height, below = y0 + 1 >= 0 && y0 + 1 < g.in_height;
    float covered = weighted(w, left && above, right && above, left && below, right && below);
    float border = crk_mul(crk_sub(1.0f, covered), g.fill);
    const T *a = in + (y0 * g.in_width + x0) * g.channels, *b = a + g.channels;
    const T *c = a + (int64_t)g.in_width * g.channels, *d = c + g.channels;
    for (int k = 0; k < g.channels; k++)
      crk_put(to + k, crk_add(weighted(w, left && above ? (float)a[k] : 0.0f,
                                       right && above ? (float)b[k] : 0.0f,
                                       left && below ? (float)c[k] : 0.0f,
                                       right && below ? (float)d[k] : 0.0f),
                              border));
  }
}

int crk_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, double fill) {
  if (x->shape[2] > 4)
    return cr__fail(CR_EUNSUPPORTED, "grid_sample: at most 4 channels, not %s", cr__shape(x));
  CRK_DEVICE(d, "grid_sample", out);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, out->dtype, x, x->dtype);
  if (rc >= 0) {
    sampling g = {x->shape[0], x->shape[1], out->shape[0], out->shape[1], x->shape[2]};
    for (int i = 0; i < 6; i++) g.theta[i] = theta[i];
    g.fill = (float)fill;
    dim3 grid = crk_image_grid(g.width, g.height), block = crk_image_block();
    if (x->dtype == CR_U8)
      grid_sample_kernel<<<grid, block, 0, d->stream>>>((uint8_t *)crk_ptr(images.to),
                                                        (const uint8_t *)crk_ptr(images.from), g);
    else
      grid_sample_kernel<<<grid, block, 0, d->stream>>>((float *)crk_ptr(images.to),
                                                        (const float *)crk_ptr(images.from), g);
    rc = crk_launched("grid_sample", d);
  }
  return cr__image_end(&images, rc, out);
}
