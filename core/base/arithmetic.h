/* The formulas of the elementwise operations, shared by the CPU's loops and the GPU's kernels.
 *
 * cr__NAME_f32, _f64 and _i64 compute the operation NAME of base/operations.h for one element; an
 * _i64 form exists for operations that take integers or bool. The f32 forms that are missing here
 * are specific to a device: vmath.h has the CPU's, kernels/elementwise/unary.cu and binary.cu have
 * the GPU's. An operation without a form does not compile. Comparisons give 0 or 1; a nan passes
 * through. */
#ifndef CR_ARITHMETIC_H
#define CR_ARITHMETIC_H

#include <math.h>
#include <stdint.h>

#include "base/host_device.h"
#include "crescent.h"

/* erf(z) = z * p / q for |z| <= 3.925, where erf reaches 1 in float: a minimax fit in z^2 with a
 * relative error of 5e-8. The caller divides, since a GPU has its own division. */
CR_HOST_DEVICE void cr__erf_fit(float z, float *p, float *q) {
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
  CR_HOST_DEVICE float cr__##NAME##_f32(float x) { return EXPR; }                                  \
  CR__DOUBLE(NAME, EXPR)
#define CR__DOUBLE(NAME, EXPR)                                                                     \
  CR_HOST_DEVICE double cr__##NAME##_f64(double x) { return EXPR; }
#define CR__INTEGER(NAME, EXPR)                                                                    \
  CR_HOST_DEVICE int64_t cr__##NAME##_i64(int64_t x) { return EXPR; }
/* FUNCTION is one of the C library's. */
#define CR__LIBRARY(NAME, FUNCTION)                                                                \
  CR_HOST_DEVICE float cr__##NAME##_f32(float x) { return FUNCTION##f(x); }                        \
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

/* The argument of exp is never positive, so it cannot overflow, and small results keep their
 * precision. */
CR_HOST_DEVICE double cr__sigmoid_f64(double x) {
  double e = exp(x >= 0 ? -x : x);
  return (x >= 0 ? 1 : e) / (1 + e);
}
CR_HOST_DEVICE double cr__silu_f64(double x) {
  double e = exp(x >= 0 ? -x : x), q = (x >= 0 ? x : e) / (1 + e);
  return x >= 0 ? q : x < -750 ? -0.0 : x * q; /* avoids -inf * 0 */
}

/* Integers wrap around on overflow, so the arithmetic is unsigned. */
CR__INTEGER(neg, (int64_t)(0 - (uint64_t)x))
CR__INTEGER(abs, x < 0 ? (int64_t)(0 - (uint64_t)x) : x)
CR__INTEGER(sign, (x > 0) - (x < 0))
CR__INTEGER(floor, x)
CR__INTEGER(ceil, x)
CR__INTEGER(trunc, x)
CR__INTEGER(round, x)
CR__INTEGER(relu, x < 0 ? 0 : x)
CR__INTEGER(square, (int64_t)((uint64_t)x *(uint64_t)x))
CR__INTEGER(logical_not, x == 0)

/* ---- two operands ---- */

#define CR__FLOAT_PAIR(NAME, EXPR)                                                                 \
  CR_HOST_DEVICE float cr__##NAME##_f32(float a, float b) { return EXPR; }                         \
  CR_HOST_DEVICE double cr__##NAME##_f64(double a, double b) { return EXPR; }
#define CR__INTEGER_PAIR(NAME, EXPR)                                                               \
  CR_HOST_DEVICE int64_t cr__##NAME##_i64(int64_t a, int64_t b) { return EXPR; }
#define CR__ANY_PAIR(NAME, EXPR) CR__FLOAT_PAIR(NAME, EXPR) CR__INTEGER_PAIR(NAME, EXPR)

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

CR__INTEGER_PAIR(maximum, a > b ? a : b)
CR__INTEGER_PAIR(minimum, a < b ? a : b)
/* Integers wrap around on overflow here as well. */
CR__INTEGER_PAIR(add, (int64_t)((uint64_t)a + (uint64_t)b))
CR__INTEGER_PAIR(sub, (int64_t)((uint64_t)a - (uint64_t)b))
CR__INTEGER_PAIR(mul, (int64_t)((uint64_t)a *(uint64_t)b))

/* For float operands fmod in double is exact, and its result fits into a float. */
CR_HOST_DEVICE double cr__fmod_f64(double a, double b) { return fmod(a, b); }
CR_HOST_DEVICE float cr__fmod_f32(float a, float b) { return (float)fmod(a, b); }
CR_HOST_DEVICE double cr__remainder_f64(double a, double b) {
  double r = fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
CR_HOST_DEVICE float cr__remainder_f32(float a, float b) {
  float r = cr__fmod_f32(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
/* INT64_MIN / -1 overflows, so b = -1 is a case of its own; its remainder is always 0. */
CR_HOST_DEVICE int64_t cr__fmod_i64(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
CR_HOST_DEVICE int64_t cr__remainder_i64(int64_t a, int64_t b) {
  int64_t r = cr__fmod_i64(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
CR__FLOAT_PAIR(atan2, atan2(a, b))

CR_HOST_DEVICE double cr__pow_f64(double a, double b) { return pow(a, b); }
/* A negative exponent gives the true result truncated to an integer, and 0 for a base of 0. */
CR_HOST_DEVICE int64_t cr__pow_i64(int64_t base, int64_t exponent) {
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

/* Returns the unary operation that equals x^exponent, since pow takes a hundred times as long; -1
 * if there is none. */
CR_HOST_DEVICE int cr__power_as_unary(double exponent) {
  if (exponent == 2.0) return CR_SQUARE;
  if (exponent == 0.5) return CR_SQRT;
  if (exponent == -0.5) return CR_RSQRT;
  return exponent == -1.0 ? CR_RECIPROCAL : -1;
}

#endif
