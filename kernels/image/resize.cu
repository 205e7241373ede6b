/* Resizing: nearest moves bytes; the filters use tables of taps, rows first, then columns.
 *
 * Invariants: those of image.h. Float methods are f32 between the passes. u8 Lanczos is OpenCV's
 * fixed point: 32-bit integers that may wrap in both passes, and one rounding at the end. u8 linear
 * is OpenCV's, too, with other roundings (base/opencv.h). */
#include <stdlib.h>

#include "base/opencv.h"
#include "image/image.h"
#include "memory/transfer.h"

/* ---- nearest --------------------------------------------------------------------------------- */

/* Twice the size: out[r][2x + b] = in[y][x] with r = 2y + a. The rows of images follow one another,
 * so a batch is one tall image. A pixel is `words` words of type W (16 bytes where C allows). One
 * thread for each word of the source: it is read once and written four times, in runs of whole
 * pixels. Rows are in blockIdx.x (there are many), parts of a row in blockIdx.y. Memory-bound: 1
 * read for 4 writes. */
template <typename W>
__global__ void __launch_bounds__(256)
    nearest_twice_kernel(W *__restrict__ out, const W *__restrict__ in, unsigned row_words,
                         unsigned words) {
  int64_t row = blockIdx.x;
  const W *from = in + row * row_words;
  W *to = out + row * 4 * row_words;
  int64_t next = 2 * (int64_t)row_words;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < row_words;
       i += gridDim.y * blockDim.x) {
    W v = from[i];
    unsigned x = i / words;
    int64_t at = (int64_t)i + (int64_t)x * words; /* 2 x words + (i - x words) */
    to[at] = v;
    to[at + words] = v;
    to[at + next] = v;
    to[at + next + words] = v;
  }
}

/* Any sizes: source index = min(floor(i * in / out), in - 1) in float, as in torch. Threads as
 * above, but over the words of the result's rows. */
template <typename W>
__global__ void __launch_bounds__(256)
    nearest_kernel(W *__restrict__ out, const W *__restrict__ in, int64_t in_height,
                   int64_t in_width, int64_t out_height, int64_t out_width, int64_t words,
                   float scale_y, float scale_x) {
  int64_t row = blockIdx.x, image = row / out_height;
  int64_t y = (int64_t)crk_mul((float)(row - image * out_height), scale_y);
  if (y > in_height - 1) y = in_height - 1;
  const W *from = in + (image * in_height + y) * in_width * words;
  W *to = out + row * out_width * words;
  for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < out_width * words;
       i += (int64_t)gridDim.y * blockDim.x) {
    int64_t pixel = i / words;
    int64_t x = (int64_t)crk_mul((float)pixel, scale_x);
    if (x > in_width - 1) x = in_width - 1;
    to[i] = from[x * words + i - pixel * words];
  }
}

static dim3 row_grid(int64_t rows, int64_t row_words) {
  int64_t pieces = crk_ceil_div(row_words, 256);
  return dim3((unsigned)rows, (unsigned)(pieces < 65535 ? pieces : 65535));
}

template <typename W>
static void launch_nearest(crk_device *d, void *out, const void *in, int64_t images,
                           const int64_t *from, const int64_t *to, int64_t words) {
  if (to[0] == 2 * from[0] && to[1] == 2 * from[1] && from[1] * words < (int64_t)1 << 30) {
    int64_t row_words = from[1] * words;
    nearest_twice_kernel<W><<<row_grid(images * from[0], row_words), 256, 0, d->stream>>>(
        (W *)out, (const W *)in, (unsigned)row_words, (unsigned)words);
  } else {
    nearest_kernel<W><<<row_grid(images * to[0], to[1] * words), 256, 0, d->stream>>>(
        (W *)out, (const W *)in, from[0], from[1], to[0], to[1], words,
        (float)from[0] / (float)to[0], (float)from[1] / (float)to[1]);
  }
}

/* Moves pixels in the largest words that pixels and both addresses are multiples of. */
static int resize_nearest(crk_device *d, void *out, const void *in, int64_t images,
                          const int64_t *from, const int64_t *to, int64_t pixel_bytes) {
  if (images * (from[0] > to[0] ? from[0] : to[0]) > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "resize: the images have more than 2^31 rows");
  uint64_t common = (uint64_t)(uintptr_t)out | (uint64_t)(uintptr_t)in | (uint64_t)pixel_bytes;
  if (common % 16 == 0)
    launch_nearest<uint4>(d, out, in, images, from, to, pixel_bytes / 16);
  else if (common % 8 == 0)
    launch_nearest<uint2>(d, out, in, images, from, to, pixel_bytes / 8);
  else if (common % 4 == 0)
    launch_nearest<uint32_t>(d, out, in, images, from, to, pixel_bytes / 4);
  else if (common % 2 == 0)
    launch_nearest<uint16_t>(d, out, in, images, from, to, pixel_bytes / 2);
  else
    launch_nearest<uint8_t>(d, out, in, images, from, to, pixel_bytes);
  return crk_launched("resize", d);
}

/* ---- filters --------------------------------------------------------------------------------- */

__device__ __forceinline__ float tap(float sum, float w, float v) {
  return crk_add(sum, crk_mul(w, v));
}
__device__ __forceinline__ int32_t tap(int32_t sum, int32_t w, int32_t v) {
  return (int32_t)((uint32_t)sum + (uint32_t)w * (uint32_t)v);
}

__device__ __forceinline__ void finish(float *out, float sum) { *out = sum; }
__device__ __forceinline__ void finish(uint8_t *out, float sum) {
  sum = sum > 0 ? sum : 0;
  *out = (uint8_t)(int32_t)crk_add(sum < 255 ? sum : 255, 0.5f);
}
__device__ __forceinline__ void finish(uint8_t *out, int32_t sum) {
  int32_t v = (int32_t)((uint32_t)sum + (1u << (2 * CR__FIXED_BITS - 1))) >> (2 * CR__FIXED_BITS);
  v = v > 0 ? v : 0;
  *out = (uint8_t)(v < 255 ? v : 255);
}

/* between[r][i][c] = sum over k of weight[i][k] in[r][first[i] + k][c] for all rows r of the batch;
 * `n` is the width of the result times C, the numbers of a row. One thread for each number of the
 * result, side by side along the row: the taps of neighbours overlap in L1. */
template <typename In, typename Sum>
__global__ void resize_rows_kernel(Sum *__restrict__ between, const In *__restrict__ in,
                                   const int64_t *__restrict__ first,
                                   const Sum *__restrict__ weight, int taps, int64_t rows,
                                   int64_t in_width, int64_t n, int channels) {
  int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= n) return;
  int64_t i = j / channels, start = first[i] * channels + (j - i * channels);
  const Sum *w = weight + i * taps;
  CRK_EACH_ROW(r, rows) {
    const In *from = in + r * in_width * channels + start;
    Sum sum = 0;
    for (int k = 0; k < taps; k++) sum = tap(sum, w[k], (Sum)from[k * channels]);
    between[r * n + j] = sum;
  }
}

/* out[p][r][j] = sum over k of weight[r][k] between[p][first[r] + k][j], rounded to the result's
 * type. One thread for each number, side by side along the row. */
template <typename Out, typename Sum>
__global__ void resize_columns_kernel(Out *__restrict__ out, const Sum *__restrict__ between,
                                      const int64_t *__restrict__ first,
                                      const Sum *__restrict__ weight, int taps, int64_t rows,
                                      int64_t in_height, int64_t out_height, int64_t n) {
  int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= n) return;
  CRK_EACH_ROW(r, rows) {
    int64_t image = r / out_height, y = r - image * out_height;
    const Sum *from = between + (image * in_height + first[y]) * n + j, *w = weight + y * taps;
    Sum sum = 0;
    for (int k = 0; k < taps; k++) sum = tap(sum, w[k], from[k * n]);
    finish(out + r * n + j, sum);
  }
}

/* The weights in a table that was uploaded to `at`. */
template <typename Sum> static const Sum *weights_at(const cr__axis *a, char *at);
template <> const float *weights_at(const cr__axis *a, char *at) {
  return (const float *)(at + ((char *)a->weight - (char *)a->block));
}
template <> const int32_t *weights_at(const cr__axis *a, char *at) {
  return (const int32_t *)(at + ((char *)a->fixed - (char *)a->block));
}

template <typename T, typename Sum>
static void launch_filters(crk_device *d, void *out, const void *in, Sum *between,
                           const cr__axis *x, char *x_at, const cr__axis *y, char *y_at,
                           int64_t images, int channels) {
  int64_t n = x->out * channels;
  resize_rows_kernel<T, Sum>
      <<<crk_image_grid(n, images * y->in), crk_image_block(), 0, d->stream>>>(
          between, (const T *)in, (const int64_t *)x_at, weights_at<Sum>(x, x_at), x->taps,
          images * y->in, x->in, n, channels);
  resize_columns_kernel<T, Sum>
      <<<crk_image_grid(n, images * y->out), crk_image_block(), 0, d->stream>>>(
          (T *)out, between, (const int64_t *)y_at, weights_at<Sum>(y, y_at), y->taps,
          images * y->out, y->in, y->out, n);
}

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

static int resize_filtered(crk_device *d, void *out, const void *in, int64_t images,
                           const int64_t *from, const int64_t *to, int channels, bool bytes,
                           int32_t method) {
  bool fixed = bytes && method == CR_LANCZOS4;
  cr__axis x = {0}, y = {0};
  cr_storage *scratch = NULL;
  int rc = cr__axis_new(&x, from[1], to[1], method, fixed);
  if (rc >= 0) rc = cr__axis_new(&y, from[0], to[0], method, fixed);
  if (rc >= 0) {
    int64_t tables = aligned(x.bytes) + aligned(y.bytes);
    scratch = cr__storage_new(tables + images * from[0] * to[1] * channels * 4, d->device);
    if (!scratch) rc = CR_ENOMEM;
    if (rc >= 0) {
      char *x_at = (char *)scratch->data, *y_at = x_at + aligned(x.bytes), *between = x_at + tables;
      rc = crk_upload("resize", d, x_at, x.block, x.bytes);
      if (rc >= 0) rc = crk_upload("resize", d, y_at, y.block, y.bytes);
      if (rc >= 0) {
        if (fixed)
          launch_filters<uint8_t, int32_t>(d, out, in, (int32_t *)between, &x, x_at, &y, y_at,
                                           images, channels);
        else if (bytes)
          launch_filters<uint8_t, float>(d, out, in, (float *)between, &x, x_at, &y, y_at, images,
                                         channels);
        else
          launch_filters<float, float>(d, out, in, (float *)between, &x, x_at, &y, y_at, images,
                                       channels);
        rc = crk_launched("resize", d);
      }
    }
  }
  if (scratch) cr__release(scratch);
  cr__axis_free(&x);
  cr__axis_free(&y);
  return rc;
}

/* ---- bytes, as OpenCV ------------------------------------------------------------------------ */

/* One thread for each pixel of the result: its four neighbours come through L1, and so do the
 * tables of 16 bytes for each index. It is for a network's input, so it takes microseconds. */
__global__ void resize_linear_kernel(uint8_t *__restrict__ out, const uint8_t *__restrict__ in,
                                     const int32_t *__restrict__ x, const int32_t *__restrict__ y,
                                     int64_t rows, int64_t in_height, int64_t in_width,
                                     int64_t out_height, int64_t out_width, int channels) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= out_width) return;
  CRK_EACH_ROW(r, rows) {
    int64_t image = r / out_height;
    const int32_t *row = y + 4 * (r - image * out_height);
    const uint8_t *top = in + (image * in_height + row[0]) * in_width * channels;
    const uint8_t *bottom = in + (image * in_height + row[1]) * in_width * channels;
    for (int c = 0; c < channels; c++)
      out[(r * out_width + i) * channels + c] =
          cr__linear_byte(top, bottom, x + 4 * i, row, channels, c);
  }
}

static int resize_linear(crk_device *d, uint8_t *out, const uint8_t *in, const cr__resizing *r) {
  int64_t x_bytes = 16 * r->out[1], y_bytes = 16 * r->out[0];
  int32_t *x = cr__linear_taps_new(r->in[1], r->out[1], true);
  int32_t *y = x ? cr__linear_taps_new(r->in[0], r->out[0], false) : NULL;
  cr_storage *tables = y ? cr__storage_new(x_bytes + y_bytes, d->device) : NULL;
  int rc = tables ? CR_OK : CR_ENOMEM;
  char *at = tables ? (char *)tables->data : NULL;
  if (rc >= 0) rc = crk_upload("resize", d, at, x, x_bytes);
  if (rc >= 0) rc = crk_upload("resize", d, at + x_bytes, y, y_bytes);
  if (rc >= 0) {
    int64_t rows = r->images * r->out[0];
    resize_linear_kernel<<<crk_image_grid(r->out[1], rows), crk_image_block(), 0, d->stream>>>(
        out, in, (const int32_t *)at, (const int32_t *)(at + x_bytes), rows, r->in[0], r->in[1],
        r->out[0], r->out[1], r->channels);
    rc = crk_launched("resize", d);
  }
  if (tables) cr__release(tables);
  free(x);
  free(y);
  return rc;
}

int crk_resize(cr_tensor *out, const cr_tensor *x, int32_t method) {
  CRK_DEVICE(d, "resize", out);
  cr__resizing r = cr__resizing_of(out, x, method);
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, r.dtype, x, r.dtype);
  if (rc >= 0 && method == CR_NEAREST)
    rc = resize_nearest(d, crk_ptr(images.to), crk_ptr(images.from), r.images, r.in, r.out,
                        (int64_t)r.channels * cr_dtype_size(r.dtype));
  else if (rc >= 0 && method == CR_LINEAR && r.dtype == CR_U8)
    rc = resize_linear(d, (uint8_t *)crk_ptr(images.to), (const uint8_t *)crk_ptr(images.from), &r);
  else if (rc >= 0)
    rc = resize_filtered(d, crk_ptr(images.to), crk_ptr(images.from), r.images, r.in, r.out,
                         r.channels, r.dtype == CR_U8, method);
  return cr__image_end(&images, rc, out);
}
