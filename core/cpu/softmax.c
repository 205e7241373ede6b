/* Softmax over the last dimension, and GEGLU, in parallel over rows. Softmax reads a row three
 * times while it is in the cache. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* allows FMA; see vmath.h */
#endif
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "base/arithmetic.h"
#include "base/vmath.h"
#include "cpu/operands.h"
#include "cpu/view.h"

/* Eight partial sums keep the precision of long rows and let the loop vectorize. */
CR_CLONES static void softmax_f32(float *out, const float *x, int64_t n) {
  float high = -INFINITY;
  for (int64_t i = 0; i < n; i++) high = x[i] > high ? x[i] : high;
  /* A row of -inf gives nan, as in torch. A nan in x reaches every result through the sum. */
  for (int64_t i = 0; i < n; i++) out[i] = cr__exp_f32(x[i] - high);
  double part[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; k++) part[k] += out[i + k];
  for (; i < n; i++) sum += out[i];
  for (int k = 0; k < 8; k++) sum += part[k];
  float f = (float)(1.0 / sum);
  for (i = 0; i < n; i++) out[i] *= f;
}

static void softmax_f64(double *out, const double *x, int64_t n) {
  double high = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++) high = x[i] > high ? x[i] : high;
  for (int64_t i = 0; i < n; i++) sum += out[i] = exp(x[i] - high);
  for (int64_t i = 0; i < n; i++) out[i] /= sum;
}

/* Computes each row [to] of out from a row [from] of x, in double for f64 and in float otherwise.
 * The functions get the two rows and `to`. */
typedef void row_f32(float *out, const float *x, int64_t n);
typedef void row_f64(double *out, const double *x, int64_t n);
static int each_row(cr_tensor *out, const cr_tensor *x, row_f32 *in_float, row_f64 *in_double) {
  int64_t from = x->shape[x->rank - 1], to = out->shape[out->rank - 1];
  int64_t rows = cr_numel(x) / from, room = from + to;
  int threads = rows * to > 4000 ? cr_threads() : 1;
  double *memory = malloc((size_t)(threads * room) * sizeof *memory);
  if (memory == NULL) return cr__fail(CR_ENOMEM, "softmax, geglu: out of memory");
  cr__view in = cr__view_of(x, x->rank, x->shape), result = cr__view_of(out, out->rank, out->shape);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; i++) {
    double *a = memory + omp_get_thread_num() * room, *b = a + from;
    if (x->dtype == CR_F64) {
      const double *row = cr__load_f64(&in, i * from, from, a);
      double *y = cr__target_f64(&result, i * to, b);
      in_double(y, row, to);
      cr__store_f64(&result, i * to, to, y);
    } else {
      const float *row = cr__load_f32(&in, i * from, from, (float *)a);
      float *y = cr__target_f32(&result, i * to, (float *)b);
      in_float(y, row, to);
      cr__store_f32(&result, i * to, to, y);
    }
  }
  free(memory);
  return CR_OK;
}

int cr__cpu_softmax(cr_tensor *out, const cr_tensor *x) {
  return each_row(out, x, softmax_f32, softmax_f64);
}

/* g Phi(g), the exact GELU. */
static inline float gelu(float g) {
  float z = g * 0.707106781f, p, q;
  z = z > 3.925f ? 3.925f : z;
  z = z < -3.925f ? -3.925f : z;
  cr__erf_fit(z, &p, &q);
  float half = 0.5f * g;
  return g < -5.55f ? -0.0f : half + half * (z * p / q); /* the tail is 0, also for -inf */
}

CR_CLONES static void geglu_f32(float *restrict out, const float *restrict x, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * gelu(x[n + i]);
}

static void geglu_f64(double *out, const double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * cr__act_f64(x[n + i], CR_ACT_GELU, 0);
}

int cr__cpu_geglu(cr_tensor *out, const cr_tensor *x) {
  return each_row(out, x, geglu_f32, geglu_f64);
}
