/* The formulas of the elementwise operations, which the CPU's loops and the cards' kernels share.
 *
 * cr__NAME_f32, _f64 and _i64 compute the operation NAME of base/operations.h of one element; the
 * last are there for operations that take integers (or bool). What is missing does not compile.
 * f32 forms that are not here are a device's own: vmath.h has the CPU's,
 * kernels/elementwise/unary.cu and binary.cu have the cards'. Comparisons give 0 or 1; a nan passes
 * on. */
#ifndef CR_ARITHMETIC_H
#define CR_ARITHMETIC_H

#include <math.h>
#include <stdint.h>

#include "base/host_device.h"
#include "crescent.h"

/* erf(z) = z * p / q for |z| <= 3.925, where it has come to 1: a minimax fit in z^2, relative error
 * 5e-8. Dividing is the caller's, since a card does it in its own way. */
CR_BOTH void cr__erf_fit(float z, float *p, float *q) {
  float t = z * z, a = 1.986964514e-08f, b = 0.0009599598803f;
  a = a * t - 1.956595126e-06f;
  a = a * t + 0.000142170773f;
  a = a * t + 0.003719142447f;
  a = a * t + 0.05063107515f;
  a = a * t + 0.2003640884f;
  a = a * t + 1.128379108f;
  b = b * t + 0.01438994146f;
  b = b * t + 0.1151795504f;
  b = b * t + 0.5108996815f;
  b = b * t + 1.0f;
  *p = a;
  *q = b;
}

/* ---- one operand ---- */

#define CR__FLOATS(NAME, EXPR)                                                                     \
  CR_BOTH float cr__##NAME##_f32(float x) { return EXPR; }                                         \
  CR__DOUBLE(NAME, EXPR)
#define CR__DOUBLE(NAME, EXPR)                                                                     \
  CR_BOTH double cr__##NAME##_f64(double x) { return EXPR; }
#define CR__WHOLE(NAME, EXPR)                                                                      \
  CR_BOTH int64_t cr__##NAME##_i64(int64_t x) { return EXPR; }
/* A function of the C library. */
#define CR__LIBRARY(NAME, FUNCTION)                                                                \
  CR_BOTH float cr__##NAME##_f32(float x) { return FUNCTION##f(x); }                               \
  CR__DOUBLE(NAME, FUNCTION(x))

CR__FLOATS(neg, -x)
CR__LIBRARY(abs, fabs)
CR__FLOATS(sign, x > 0 ? 1 : x < 0 ? -1 : x)
CR__DOUBLE(exp, exp(x))
CR__DOUBLE(log, log(x))
CR__DOUBLE(log10, log10(x))
CR__DOUBLE(log2, log2(x))
CR__DOUBLE(log1p, log1p(x))
CR__DOUBLE(expm1, expm1(x))
CR__LIBRARY(sqrt, sqrt)
CR__DOUBLE(rsqrt, 1 / sqrt(x))
CR__DOUBLE(sin, sin(x))
CR__DOUBLE(cos, cos(x))
CR__DOUBLE(tanh, tanh(x))
CR__DOUBLE(erf, erf(x))
CR__DOUBLE(gelu, x < -40 ? -0.0 : 0.5 * x * erfc(x * -0.70710678118654752440))
CR__FLOATS(relu, x < 0 ? 0 : x)
CR__LIBRARY(floor, floor)
CR__LIBRARY(ceil, ceil)
CR__LIBRARY(trunc, trunc)
CR__LIBRARY(round, rint)
CR__FLOATS(square, x *x)
CR__FLOATS(reciprocal, 1 / x)

/* exp of a negative number never overflows, and keeps the small side's precision. */
CR_BOTH double cr__sigmoid_f64(double x) {
  double e = exp(x >= 0 ? -x : x);
  return (x >= 0 ? 1 : e) / (1 + e);
}
CR_BOTH double cr__silu_f64(double x) {
  double e = exp(x >= 0 ? -x : x), q = (x >= 0 ? x : e) / (1 + e);
  return x >= 0 ? q : x < -750 ? -0.0 : x * q; /* -inf * 0 */
}

/* Integers wrap around, so their arithmetic is done unsigned. */
CR__WHOLE(neg, (int64_t)(0 - (uint64_t)x))
CR__WHOLE(abs, x < 0 ? (int64_t)(0 - (uint64_t)x) : x)
CR__WHOLE(sign, (x > 0) - (x < 0))
CR__WHOLE(floor, x)
CR__WHOLE(ceil, x)
CR__WHOLE(trunc, x)
CR__WHOLE(round, x)
CR__WHOLE(relu, x < 0 ? 0 : x)
CR__WHOLE(square, (int64_t)((uint64_t)x *(uint64_t)x))
CR__WHOLE(logical_not, x == 0)

/* ---- two operands ---- */

#define CR__FLOAT_PAIR(NAME, EXPR)                                                                 \
  CR_BOTH float cr__##NAME##_f32(float a, float b) { return EXPR; }                                \
  CR_BOTH double cr__##NAME##_f64(double a, double b) { return EXPR; }
#define CR__WHOLE_PAIR(NAME, EXPR)                                                                 \
  CR_BOTH int64_t cr__##NAME##_i64(int64_t a, int64_t b) { return EXPR; }
#define CR__ANY_PAIR(NAME, EXPR) CR__FLOAT_PAIR(NAME, EXPR) CR__WHOLE_PAIR(NAME, EXPR)

CR__FLOAT_PAIR(add, a + b)
CR__FLOAT_PAIR(sub, a - b)
CR__FLOAT_PAIR(mul, a *b)
CR__FLOAT_PAIR(div, a / b)
CR__FLOAT_PAIR(maximum, a > b || a != a ? a : b)
CR__FLOAT_PAIR(minimum, a < b || a != a ? a : b)
CR__ANY_PAIR(eq, a == b)
CR__ANY_PAIR(ne, a != b)
CR__ANY_PAIR(lt, a < b)
CR__ANY_PAIR(le, a <= b)
CR__ANY_PAIR(gt, a > b)
CR__ANY_PAIR(ge, a >= b)

CR__WHOLE_PAIR(maximum, a > b ? a : b)
CR__WHOLE_PAIR(minimum, a < b ? a : b)
/* They wrap. */
CR__WHOLE_PAIR(add, (int64_t)((uint64_t)a + (uint64_t)b))
CR__WHOLE_PAIR(sub, (int64_t)((uint64_t)a - (uint64_t)b))
CR__WHOLE_PAIR(mul, (int64_t)((uint64_t)a *(uint64_t)b))

/* fmod of float operands is exact in double, and a float. */
CR_BOTH double cr__fmod_f64(double a, double b) { return fmod(a, b); }
CR_BOTH float cr__fmod_f32(float a, float b) { return (float)fmod(a, b); }
CR_BOTH double cr__remainder_f64(double a, double b) {
  double r = fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
CR_BOTH float cr__remainder_f32(float a, float b) {
  float r = cr__fmod_f32(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
/* Dividing the smallest number by -1 would overflow; what is left is 0. */
CR_BOTH int64_t cr__fmod_i64(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
CR_BOTH int64_t cr__remainder_i64(int64_t a, int64_t b) {
  int64_t r = cr__fmod_i64(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
CR__FLOAT_PAIR(atan2, atan2(a, b))

CR_BOTH double cr__pow_f64(double a, double b) { return pow(a, b); }
/* A negative exponent gives the whole part of the true result, 0 for 0. */
CR_BOTH int64_t cr__pow_i64(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 1 || (base == -1 && exponent % 2 == 0)) return 1;
    return base == -1 ? -1 : 0;
  }
  uint64_t result = 1, square = (uint64_t)base;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= square;
    square *= square;
  }
  return (int64_t)result;
}

/* The unary operation that x^exponent is, for which pow would take a hundred times as long; -1:
 * none. */
CR_BOTH int cr__easy_power(double exponent) {
  if (exponent == 2.0) return CR_SQUARE;
  if (exponent == 0.5) return CR_SQRT;
  if (exponent == -0.5) return CR_RSQRT;
  return exponent == -1.0 ? CR_RECIPROCAL : -1;
}

#endif
