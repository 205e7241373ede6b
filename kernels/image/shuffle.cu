/* Pixel shuffle: spreads a pixel's channels over a square of pixels, and adds the image itself.
 */
#include "image/image.h"

typedef struct shuffle {
  int64_t lines, width; /* of x, in all images */
  int32_t scale, channels;
} shuffle;

__device__ __forceinline__ void crk_finish(float *out, float v) { *out = v; }
__device__ __forceinline__ void crk_finish(__half *out, float v) { *out = __float2half_rn(v); }
__device__ __forceinline__ void crk_finish(__nv_bfloat16 *out, float v) {
  *out = __float2bfloat16_rn(v);
}
/* Rounds to integers from 0 to `most`; nan becomes 0. */
__device__ __forceinline__ float crk_whole(float v, float most) {
  v = v > 0 ? v : 0;
  return rintf(crk_mul(v < 1 ? v : 1, most));
}
__device__ __forceinline__ void crk_finish(uint8_t *out, float v) {
  *out = (uint8_t)crk_whole(v, 255.0f);
}
__device__ __forceinline__ void crk_finish(uint16_t *out, float v) {
  *out = (uint16_t)crk_whole(v, 65535.0f);
}

/* out[n][s y + r][s x + q][c] = x[n][y][x][(r s + q) C + c] + base[n][y][x][c]
 *
 * A thread handles one r of a pixel: RUN = s C neighbours in x and in out (0: known at run time),
 * in packs of 4 where RUN allows. The threads of a block are 32 pixels of a line and all their r,
 * so that shared cache lines are read once. Memory-bound. For flaw see crescent.h. */
template <typename T, typename O, int RUN>
__global__ void __launch_bounds__(512)
    shuffle_kernel(O *out, const T *x, const T *base, int32_t *flaw, shuffle p) {
  constexpr int PACK = RUN > 0 && RUN % 4 == 0 ? 4 : 1;
  int run = RUN > 0 ? RUN : p.scale * p.channels, r = threadIdx.y;
  int64_t at = blockIdx.x * 32ll + threadIdx.x;
  if (at >= p.width) return;
  bool bad = false;
  for (int64_t line = blockIdx.y; line < p.lines; line += gridDim.y) {
    const T *from = x + ((line * p.width + at) * p.scale + r) * run;
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
  dim3 grid((unsigned)crk_ceil_div(p->width, 32), (unsigned)(p->lines < 65535 ? p->lines : 65535));
  dim3 block(32, (unsigned)p->scale);
  O *to = (O *)crk_ptr(out);
  const T *from = (const T *)crk_ptr(x), *more = base ? (const T *)crk_ptr(base) : NULL;
  bool packs = (uintptr_t)from % (4 * sizeof(T)) == 0 && (uintptr_t)to % (4 * sizeof(O)) == 0;
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
  else if (out->dtype == CR_I16)
    launch<T, uint16_t>(d, out, x, base, flaw, p);
  else if (out->dtype == CR_F32)
    launch<T, float>(d, out, x, base, flaw, p);
  else
    launch<T, T>(d, out, x, base, flaw, p);
  return crk_launched("pixel_shuffle", d);
}

static int shuffle_of(crk_device *d, cr_tensor *out, const cr_tensor *x, const cr_tensor *base,
                      int32_t *flaw, const shuffle *p) {
  CRK_FLOAT_TYPES("pixel_shuffle", x->dtype, return shuffle_to<T>(d, out, x, base, flaw, p));
  return CR_OK;
}

int crk_pixel_shuffle(cr_tensor *out, const cr_tensor *x, const cr_tensor *base, cr_tensor *flaw) {
  CRK_DEVICE(d, "pixel_shuffle", out);
  cr_tensor base_temp = {};
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, out->dtype, x, x->dtype);
  const cr_tensor *add = base && rc >= 0 ? cr__dense(base, x->dtype, &base_temp) : NULL;
  if (base && rc >= 0 && !add) rc = CR_ENOMEM;
  if (rc >= 0) {
    shuffle p = {(int64_t)x->shape[0] * x->shape[1], x->shape[2], out->shape[2] / x->shape[2],
                 out->shape[3]};
    rc = shuffle_of(d, images.to, images.from, add, flaw ? (int32_t *)crk_ptr(flaw) : NULL, &p);
  }
  cr_free(&base_temp);
  return cr__image_end(&images, rc, out);
}
