/* Softmax over the last dimension, and GEGLU. Both go over rows in one pass each, in parallel; a
 * row of softmax is read three times but stays in the cache. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* products and sums are fused where they can be */
#endif
#include <math.h>

#include "base/arithmetic.h"
#include "base/vmath.h"
#include "cpu/operands.h"

/* Sums eight partial sums, so that long rows lose no precision and the loop is a vector. */
CR_CLONES static void softmax_f32(float *out, const float *x, int64_t n) {
  float high = -INFINITY;
  for (int64_t i = 0; i < n; i++) high = x[i] > high ? x[i] : high;
  /* A row of -inf gives nan, as everywhere; a nan in x reaches every result through the sum. */
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

/* Each row [to] of out from the row [from] of x, in double for f64 and in float for all else: the
 * functions take the two rows and `to`. */
typedef void row_f32(float *out, const float *x, int64_t n);
typedef void row_f64(double *out, const double *x, int64_t n);
static int each_row(cr_tensor *out, const cr_tensor *x, row_f32 *in_float, row_f64 *in_double) {
  int32_t dtype = x->dtype == CR_F64 ? CR_F64 : CR_F32;
  cr__operands op = {0};
  x = cr__operand(&op, x, dtype);
  cr_tensor *result = cr__result(&op, out, dtype);
  if (op.rc < 0) return cr__operands_end(&op, out, op.rc);
  int64_t from = x->shape[x->rank - 1], to = result->shape[result->rank - 1];
  int64_t rows = cr_numel(x) / from;
  const void *px = cr__ptr(x);
  void *po = cr__ptr(result);
#pragma omp parallel for num_threads(cr_threads()) if (rows * to > 4000)
  for (int64_t i = 0; i < rows; i++) {
    if (dtype == CR_F64)
      in_double((double *)po + i * to, (const double *)px + i * from, to);
    else
      in_float((float *)po + i * to, (const float *)px + i * from, to);
  }
  return cr__operands_end(&op, out, CR_OK);
}

int cr__cpu_softmax(cr_tensor *out, const cr_tensor *x) {
  return each_row(out, x, softmax_f32, softmax_f64);
}

/* g Phi(g). */
static inline float gelu(float g) {
  float z = g * 0.707106781f, p, q;
  z = z > 3.925f ? 3.925f : z;
  z = z < -3.925f ? -3.925f : z;
  cr__erf_fit(z, &p, &q);
  float half = 0.5f * g;
  return g < -5.55f ? -0.0f : half + half * (z * p / q); /* so that the tail ends, for -inf too */
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
