/* Maximum pooling of channels-last images.
 *
 * Invariant: as on the CPU, padding does not count, and a nan in a window is its result. */
#include "conv/conv.h"

typedef struct pooling {
  int64_t total;           /* elements of out */
  int64_t sx[4], so[4];    /* strides of x and out */
  int32_t h, w, oh, ow, c; /* of x, of out, channels */
  int32_t kernel_h, kernel_w, stride_h, stride_w, top, left;
} pooling;

/* One thread for each element of out, channels fastest, so that a warp reads neighbouring channels.
 * The windows overlap little, and share through the L1 cache. Grid-stride loop. */
template <typename T>
__global__ void __launch_bounds__(256) max_pool_kernel(T *out, const T *x, pooling p) {
  typedef typename crk_sum<T>::type A;
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < p.total; i += gridDim.x * 256ll) {
    int64_t at = i / p.c;
    int32_t c = (int32_t)(i - at * p.c);
    int32_t ox = (int32_t)(at % p.ow);
    at /= p.ow;
    int32_t oy = (int32_t)(at % p.oh);
    int64_t n = at / p.oh;
    int64_t y0 = (int64_t)oy * p.stride_h - p.top, x0 = (int64_t)ox * p.stride_w - p.left;
    int64_t y1 = min(y0 + p.kernel_h, (int64_t)p.h), x1 = min(x0 + p.kernel_w, (int64_t)p.w);
    if (y0 < 0) y0 = 0;
    if (x0 < 0) x0 = 0;
    const T *from = x + n * p.sx[0] + c * p.sx[3];
    T best = from[y0 * p.sx[1] + x0 * p.sx[2]];
    A high = crk_widen<A>(best);
    for (int64_t r = y0; r < y1; r++)
      for (int64_t s = x0; s < x1; s++) {
        T value = from[r * p.sx[1] + s * p.sx[2]];
        A v = crk_widen<A>(value);
        if (v > high || v != v) {
          best = value;
          high = v;
        }
      }
    out[n * p.so[0] + oy * p.so[1] + ox * p.so[2] + c * p.so[3]] = best;
  }
}

int crk_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                   int32_t stride_h, int32_t stride_w, const int32_t *pad) {
  CRK_DEVICE(d, "max_pool2d", x);
  pooling p = {};
  p.total = cr_numel(out);
  if (p.total == 0) return CR_OK;
  for (int i = 0; i < 4; i++) {
    p.sx[i] = x->stride[i];
    p.so[i] = out->stride[i];
  }
  p.h = x->shape[1], p.w = x->shape[2];
  p.oh = out->shape[1], p.ow = out->shape[2], p.c = out->shape[3];
  p.kernel_h = kernel_h, p.kernel_w = kernel_w;
  p.stride_h = stride_h, p.stride_w = stride_w;
  p.top = pad[0], p.left = pad[2];
  int64_t most = (int64_t)d->multiprocessors * 64, blocks = crk_ceil_div(p.total, 256);
  unsigned grid = (unsigned)(blocks < most ? blocks : most);
  CRK_CONV_TYPES("max_pool2d", x->dtype,
                 max_pool_kernel<T>
                 <<<grid, 256, 0, d->stream>>>((T *)crk_ptr(out), (const T *)crk_ptr(x), p));
  return crk_launched("max_pool2d", d);
}
