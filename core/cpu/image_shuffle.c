/* Pixel shuffle: a pixel's channels become a square of pixels, and a base image is added. */
#include <math.h>

#include "cpu/image.h"

/* Writes a run of n sums as `dtype`. Returns false if one is not finite. */
static bool put(void *out, int32_t dtype, int64_t at, const float *sum, int64_t n) {
  bool finite = true;
  for (int64_t i = 0; i < n; i++) {
    finite = finite && isfinite(sum[i]);
    float v = sum[i] > 0 ? sum[i] : 0; /* nan becomes 0 */
    v = v < 1 ? v : 1;
    if (dtype == CR_F32)
      ((float *)out)[at + i] = sum[i];
    else if (dtype == CR_U8)
      ((uint8_t *)out)[at + i] = (uint8_t)nearbyintf(v * 255.0f);
    else
      ((uint16_t *)out)[at + i] = (uint16_t)nearbyintf(v * 65535.0f);
  }
  return finite;
}

int cr__cpu_pixel_shuffle(cr_tensor *out, const cr_tensor *x, const cr_tensor *base,
                          cr_tensor *flaw) {
  int64_t rows = (int64_t)x->shape[0] * x->shape[1], width = x->shape[2], c = out->shape[3];
  int64_t s = out->shape[2] / width, run = s * c;
  /* Sums are computed in f32 for all dtypes and rounded once. */
  int32_t dtype = cr__is_float(out->dtype) ? CR_F32 : out->dtype;
  cr_tensor base_temp = {0};
  cr__image_pair images;
  int rc = cr__image_begin(&images, out, dtype, x, CR_F32);
  const cr_tensor *add = base && rc >= 0 ? cr__dense(base, CR_F32, &base_temp) : NULL;
  if (base && rc >= 0 && !add) rc = CR_ENOMEM;
  if (rc >= 0) {
    const float *from = cr__ptr(images.from), *more = add ? cr__ptr(add) : NULL;
    void *to = cr__ptr(images.to);
    bool bad = false;
#pragma omp parallel for num_threads(cr__image_threads(cr_numel(out))) reduction(|| : bad)
    for (int64_t row = 0; row < rows; row++) {
      float sum[16 * 16];
      for (int64_t at = row * width; at < (row + 1) * width; at++)
        for (int64_t r = 0; r < s; r++) {
          const float *v = from + (at * s + r) * run;
          int64_t place = ((row * s + r) * width + at - row * width) * run;
          for (int64_t i = 0; i < run; i++) sum[i] = more ? v[i] + more[at * c + i % c] : v[i];
          bad = !put(to, dtype, place, sum, run) || bad;
        }
    }
    if (bad && flaw) *(int32_t *)cr__ptr(flaw) = 1;
  }
  cr_free(&base_temp);
  return cr__image_end(&images, rc, out);
}
