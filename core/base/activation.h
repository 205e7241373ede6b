/* CR_ACT_* of one number in double precision, for the CPU's plain loops and the cards' alike. */
#ifndef CR_ACTIVATION_H
#define CR_ACTIVATION_H

#include <math.h>

#include "base/host_device.h"
#include "crescent.h"

/* The body of a function of (x, act, slope) that applies CR_ACT_* to x, given SiLU and GELU in its
 * precision. Comparisons are such that a nan passes on. */
#define CR__ACT_BODY(x, act, slope, silu, gelu)                                                    \
  switch (act) {                                                                                   \
  case CR_ACT_SILU:                                                                                \
    return (silu);                                                                                 \
  case CR_ACT_GELU:                                                                                \
    return (gelu);                                                                                 \
  case CR_ACT_RELU:                                                                                \
    return (x) < 0 ? 0 : (x);                                                                      \
  case CR_ACT_PRELU:                                                                               \
    return (x) < 0 ? (x) * (slope) : (x);                                                          \
  case CR_ACT_RELU6:                                                                               \
    return (x) < 0 ? 0 : (x) > 6 ? 6 : (x);                                                        \
  default:                                                                                         \
    return (x);                                                                                    \
  }

/* slope: CR_ACT_PRELU's. */
CR_BOTH double cr__act_f64(double x, int32_t act, double slope) {
  CR__ACT_BODY(x, act, slope, x / (1 + exp(-x)), 0.5 * x * erfc(-x * 0.70710678118654752440))
}

#endif
