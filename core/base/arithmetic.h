/* Arithmetic of elementwise operations that the CPU's loops and the cards' kernels share. */
#ifndef CR_ARITHMETIC_H
#define CR_ARITHMETIC_H

#include <stdint.h>

#include "base/host_device.h"

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

/* Wraps; a negative exponent gives the whole part of the true result, 0 for 0. */
CR_BOTH int64_t cr__whole_power(int64_t base, int64_t exponent) {
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

#endif
