/* Timestep embedding and posterior sampling on the CPU. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* allows FMA; see vmath.h */
#endif
#include <math.h>

#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/view.h"

int cr__cpu_timestep_embedding(cr_tensor *out, const cr_tensor *t) {
  cr__view to = cr__view_of(out, 2, out->shape), from = cr__view_of(t, 1, t->shape);
  int64_t dim = out->shape[1], half = dim / 2, total = cr_numel(out);
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK, loaded = -1;
    double buffer[CR__CHUNK], one, step = 0;
    double *r = cr__target_f64(&to, start, buffer);
    for (int64_t i = 0; i < n; i++) {
      int64_t row = (start + i) / dim, k = (start + i) % dim;
      if (row != loaded) step = *cr__load_f64(&from, loaded = row, 1, &one);
      double angle = half ? step * exp(-log(10000) * (double)(k % half) / (double)half) : 0;
      r[i] = k < half ? cos(angle) : k < 2 * half ? sin(angle) : 0;
    }
    cr__store_f64(&to, start, n, r);
  }
  return CR_OK;
}

/* The deviation and the sum are separate loops: with FMA across them, the result would differ in
 * its last bit from that of the plain operations. */
CR_CLONES static void deviation_f32(float *to, const float *logvar, const float *noise, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float x = logvar[i] < -30.0f ? -30.0f : logvar[i];
    to[i] = cr__exp_f32((x > 20.0f ? 20.0f : x) * 0.5f) * noise[i];
  }
}

CR_CLONES static void sum_f32(float *to, const float *mean, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] = mean[i] + to[i];
}

CR_CLONES static void scaled_f32(float *out, const float *x, int64_t n, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale;
}

static double draw_f64(double mean, double logvar, double noise) {
  double x = logvar < -30 ? -30 : logvar;
  return mean + exp((x > 20 ? 20 : x) * 0.5) * noise;
}

int cr__cpu_posterior_sample(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                             const cr_tensor *noise, double scale) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view m = cr__view_of(mean, out->rank, out->shape);
  cr__view v = cr__view_of(logvar, out->rank, out->shape);
  cr__view e = cr__view_of(noise ? noise : mean, out->rank, out->shape);
  bool wide = out->dtype == CR_F64;
  int64_t total = cr_numel(out);
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    if (wide) {
      double a[CR__CHUNK], b[CR__CHUNK], c[CR__CHUNK], r[CR__CHUNK];
      const double *pm = cr__load_f64(&m, start, n, a), *pv = cr__load_f64(&v, start, n, b),
                   *pe = cr__load_f64(&e, start, n, c);
      for (int64_t i = 0; i < n; i++)
        r[i] = (noise ? draw_f64(pm[i], pv[i], pe[i]) : pm[i]) * scale;
      cr__store_f64(&to, start, n, r);
    } else {
      float a[CR__CHUNK], b[CR__CHUNK], c[CR__CHUNK], r[CR__CHUNK];
      const float *pm = cr__load_f32(&m, start, n, a), *sum = pm;
      if (noise) {
        deviation_f32(r, cr__load_f32(&v, start, n, b), cr__load_f32(&e, start, n, c), n);
        sum_f32(r, pm, n);
        sum = r;
      }
      scaled_f32(r, sum, n, (float)scale);
      cr__store_f32(&to, start, n, r);
    }
  }
  return CR_OK;
}
