/* 8-bit floating point on the CPU: the arithmetic that cards' kernels are compared with, not a fast
 * one. Codes are decoded to f32, products are f32's. */
#include <math.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/operands.h"

enum { E4M3_NAN = 0x7f };

/* The nearest of E4M3, ties to even; beyond 448 it is 448; nan stays nan. */
static uint8_t code_of(float x) {
  uint32_t bits = cr__to_bits(x);
  uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
  uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return E4M3_NAN;
  if (rest >= 0x43e00000u) return sign | 0x7e; /* 448 */
  if (rest < 0x3c800000u) {
    /* Below 2^-6: adding 2^14 leaves multiples of 2^-9 in the low bits, rounded by the addition. */
    float sum = cr__from_bits(rest) + 16384.0f;
    return (uint8_t)(sign | (cr__to_bits(sum) - 0x46800000u));
  }
  rest += 0x7ffffu + (rest >> 20 & 1u);
  return (uint8_t)(sign | (rest - 0x3c000000u) >> 20); /* exponents: 127 - 7 less */
}

static float number_of(uint8_t code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  float x = (code & 0x7f) == E4M3_NAN ? NAN
            : exponent                ? ldexpf((float)(8 + mantissa), exponent - 10)
                                      : ldexpf((float)mantissa, -9);
  return code & 0x80 ? -x : x;
}

static void quantize_row(uint8_t *codes, float *scale, const float *x, int64_t n, int32_t fixed) {
  float s = *scale;
  if (!fixed) {
    float most = 1e-30f;
    for (int64_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    *scale = s = most / 448.0f;
  }
  float inverse = 1.0f / s;
  for (int64_t i = 0; i < n; i++) codes[i] = code_of(x[i] * inverse);
}

/* x: dense f32. */
static void quantize_rows(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t fixed) {
  int64_t n = codes->shape[codes->rank - 1], rows = cr_numel(scale);
  uint8_t *c = cr__ptr(codes);
  float *s = cr__ptr(scale);
  const float *p = cr__ptr(x);
#pragma omp parallel for num_threads(cr_threads()) if (rows * n > 4000)
  for (int64_t i = 0; i < rows; i++) quantize_row(c + i * n, s + i, p + i * n, n, fixed);
}

int cr__cpu_fp8_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t fixed) {
  cr__operands op = {0};
  x = cr__operand(&op, x, CR_F32);
  if (x && op.rc >= 0) quantize_rows(codes, scale, x, fixed);
  return cr__operands_end(&op, codes, op.rc);
}

int cr__cpu_fp8_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale) {
  cr__operands op = {0};
  cr_tensor *result = cr__result(&op, out, CR_F32);
  if (result) {
    int64_t n = codes->shape[codes->rank - 1], rows = cr_numel(scale);
    const uint8_t *c = cr__ptr(codes);
    const float *s = cr__ptr(scale);
    float *p = cr__ptr(result);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = 0; k < n; k++) p[i * n + k] = number_of(c[i * n + k]) * s[i];
  }
  return cr__operands_end(&op, out, op.rc);
}

int cr__cpu_fp8_geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x) {
  cr__operands op = {0};
  cr_tensor y = {0};
  x = cr__operand(&op, x, CR_F32);
  if (x) op.rc = cr_empty(&y, codes->rank, codes->shape, CR_F32, CR_CPU);
  if (op.rc >= 0) op.rc = cr__cpu_geglu(&y, x);
  if (op.rc >= 0) quantize_rows(codes, scale, &y, 0);
  cr_free(&y);
  return cr__operands_end(&op, codes, op.rc);
}

int cr__cpu_fp8_layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                           const cr_tensor *weight, const cr_tensor *bias, double eps,
                           const cr_tensor *after) {
  cr__operands op = {0};
  cr_tensor y = {0};
  x = cr__operand(&op, x, CR_F32);
  if (x) op.rc = cr_empty(&y, codes->rank, codes->shape, CR_F32, CR_CPU);
  if (op.rc >= 0) op.rc = cr__cpu_layer_norm(&y, x, weight, bias, eps, after);
  if (op.rc >= 0) quantize_rows(codes, scale, &y, 0);
  cr_free(&y);
  return cr__operands_end(&op, codes, op.rc);
}

/* Codes [rows K] as the numbers they stand for, unscaled. */
static int numbers_of(cr_tensor *out, const cr_tensor *codes, int64_t rows) {
  int32_t shape[2] = {(int32_t)rows, codes->shape[codes->rank - 1]};
  CR_TRY(cr_empty(out, 2, shape, CR_F32, CR_CPU));
  const uint8_t *c = cr__ptr(codes);
  float *p = cr__ptr(out);
  int64_t n = cr_numel(out);
  for (int64_t i = 0; i < n; i++) p[i] = number_of(c[i]);
  return CR_OK;
}

static int product(cr_tensor *result, const cr_tensor *x, const cr_tensor *x_scale,
                   const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                   const cr_tensor *residual, int32_t act, cr_tensor temp[3]) {
  int64_t m = cr_numel(x_scale), n = weight->shape[0];
  CR_TRY(numbers_of(&temp[0], x, m));
  CR_TRY(numbers_of(&temp[1], weight, n));
  int32_t shape[2] = {(int32_t)m, (int32_t)n};
  CR_TRY(cr_empty(&temp[2], 2, shape, CR_F32, CR_CPU));
  CR_TRY(cr__cpu_linear(&temp[2], &temp[0], &temp[1], NULL, NULL, CR_ACT_NONE));
  const float *y = cr__ptr(&temp[2]), *a = cr__ptr(x_scale), *b = cr__ptr(weight_scale);
  const float *pb = bias ? cr__ptr(bias) : NULL, *pr = residual ? cr__ptr(residual) : NULL;
  float *out = cr__ptr(result);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      int64_t at = i * n + j;
      float sum = y[at] * (a[i] * b[j]) + (pb ? pb[j] : 0);
      out[at] = (float)cr__act_f64(sum, act, 0) + (pr ? pr[at] : 0);
    }
  return CR_OK;
}

int cr__cpu_fp8_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                       const cr_tensor *weight, const cr_tensor *weight_scale,
                       const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  cr__operands op = {0};
  cr_tensor codes = {0}, scale = {0}, temp[3] = {{0}, {0}, {0}};
  bias = cr__operand(&op, bias, CR_F32);
  residual = cr__operand(&op, residual, CR_F32);
  cr_tensor *result = cr__result(&op, out, CR_F32);
  int rc = op.rc;
  if (rc >= 0 && !x_scale) {
    rc = cr_empty(&codes, x->rank, x->shape, CR_U8, CR_CPU);
    if (rc >= 0) rc = cr_empty(&scale, x->rank - 1, x->shape, CR_F32, CR_CPU);
    if (rc >= 0) rc = cr__cpu_fp8_quantize(&codes, &scale, x, 0);
    x = &codes, x_scale = &scale;
  }
  if (rc >= 0) rc = product(result, x, x_scale, weight, weight_scale, bias, residual, act, temp);
  for (int i = 0; i < 3; i++) cr_free(&temp[i]);
  cr_free(&codes);
  cr_free(&scale);
  return cr__operands_end(&op, out, rc);
}
