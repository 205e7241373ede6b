/* Pixel shuffle: a pixel's channels spread over a square of pixels, and the picture itself added.
 */
#include "image/image.h"

typedef struct shuffle {
  int64_t images, height, width; /* of x */
  int64_t sx[3];                 /* strides of x: from pictures, lines and pixels to the next */
  int32_t scale, channels;
} shuffle;

__device__ __forceinline__ void crk_finish(float *out, float v) { *out = v; }
__device__ __forceinline__ void crk_finish(__half *out, float v) { *out = __float2half_rn(v); }
__device__ __forceinline__ void crk_finish(__nv_bfloat16 *out, float v) {
  *out = __float2bfloat16_rn(v);
}
__device__ __forceinline__ void crk_finish(uint8_t *out, float v) {
  v = v > 0 ? v : 0; /* nan: 0 */
  *out = (uint8_t)rintf(crk_mul(v < 1 ? v : 1, 255.0f));
}

/* out[n][s y + r][s x + q][c] = x[n][y][x][(r s + q) C + c] + base[n][y][x][c]
 *
 * A thread takes one r of a pixel: RUN = s C neighbours in x and in out (0: told at run time), in
 * packs of 4 where RUN allows. Threads of a block are 32 pixels of a line and all their r, so that
 * the lines of the cache that they share are read once. Bound by memory. flaw: see crescent.h. */
template <typename T, typename O, int RUN>
__global__ void __launch_bounds__(512)
    shuffle_kernel(O *out, const T *x, const T *base, int32_t *flaw, shuffle p) {
  constexpr int PACK = RUN > 0 && RUN % 4 == 0 ? 4 : 1;
  int run = RUN > 0 ? RUN : p.scale * p.channels, r = threadIdx.y;
  int64_t at = blockIdx.x * 32ll + threadIdx.x;
  if (at >= p.width) return;
  bool bad = false;
  for (int64_t line = blockIdx.y; line < p.images * p.height; line += gridDim.y) {
    int64_t n = line / p.height, y = line - n * p.height;
    const T *from = x + n * p.sx[0] + y * p.sx[1] + at * p.sx[2] + r * run;
    const T *more = base + (line * p.width + at) * p.channels;
    O *to = out + ((line * p.scale + r) * p.width + at) * run;
#pragma unroll
    for (int i = 0; i < run; i += PACK) {
      crk_pack<T, PACK> v = *(const crk_pack<T, PACK> *)(from + i);
      crk_pack<O, PACK> w;
#pragma unroll
      for (int k = 0; k < PACK; k++) {
        float sum = crk_float(v.v[k]);
        if (base) sum = crk_add(sum, crk_float(more[(i + k) % p.channels]));
        bad = bad || !isfinite(sum);
        crk_finish(&w.v[k], sum);
      }
      *(crk_pack<O, PACK> *)(to + i) = w;
    }
  }
  if (bad && flaw) *flaw = 1;
}

template <typename T, typename O>
static void launch(crk_device *d, cr_tensor *out, const cr_tensor *x, const cr_tensor *base,
                   int32_t *flaw, const shuffle *p) {
  int64_t lines = p->images * p->height;
  dim3 grid((unsigned)crk_ceil_div(p->width, 32), (unsigned)(lines < 65535 ? lines : 65535));
  dim3 block(32, (unsigned)p->scale);
  O *to = (O *)crk_ptr(out);
  const T *from = (const T *)crk_ptr(x), *more = base ? (const T *)crk_ptr(base) : NULL;
  bool packs =
      crk_aligned(from, 3, p->sx, sizeof(T), 4 * sizeof(T)) && (uintptr_t)to % (4 * sizeof(O)) == 0;
  if (p->scale == 4 && p->channels == 3 && packs)
    shuffle_kernel<T, O, 12><<<grid, block, 0, d->stream>>>(to, from, more, flaw, *p);
  else
    shuffle_kernel<T, O, 0><<<grid, block, 0, d->stream>>>(to, from, more, flaw, *p);
}

template <typename T>
static int shuffle_to(crk_device *d, cr_tensor *out, const cr_tensor *x, const cr_tensor *base,
                      int32_t *flaw, const shuffle *p) {
  if (out->dtype == CR_U8)
    launch<T, uint8_t>(d, out, x, base, flaw, p);
  else if (out->dtype == CR_F32)
    launch<T, float>(d, out, x, base, flaw, p);
  else
    launch<T, T>(d, out, x, base, flaw, p);
  return crk_launched("pixel_shuffle", d);
}

int crk_pixel_shuffle(cr_tensor *out, const cr_tensor *x, const cr_tensor *base, cr_tensor *flaw) {
  CRK_DEVICE(d, "pixel_shuffle", out);
  cr_tensor base_temp = {}, x_temp = {}, out_temp = {};
  cr_tensor *to = cr_is_contiguous(out) ? out : &out_temp;
  if (to != out) CR_TRY(cr_empty(to, 4, out->shape, out->dtype, out->device));
  const cr_tensor *add = base ? cr__dense(base, x->dtype, &base_temp) : NULL;
  const cr_tensor *from = x->stride[3] == 1 ? x : cr__dense(x, x->dtype, &x_temp);
  int rc = from && (add || !base) ? CR_OK : CR_ENOMEM;
  if (rc >= 0) {
    shuffle p = {x->shape[0], x->shape[1], x->shape[2]};
    for (int i = 0; i < 3; i++) p.sx[i] = from->stride[i];
    p.scale = out->shape[2] / x->shape[2];
    p.channels = out->shape[3];
    int32_t *mark = flaw ? (int32_t *)crk_ptr(flaw) : NULL;
    CRK_FLOAT_TYPES("pixel_shuffle", x->dtype, rc = shuffle_to<T>(d, to, from, add, mark, &p));
  }
  if (rc >= 0 && to != out) rc = cr_copy(out, to);
  cr_free(&base_temp);
  cr_free(&x_temp);
  cr_free(&out_temp);
  return rc;
}
