/* CR_ACT_* of one number in double precision, for the CPU's plain loops and the cards' alike. */
#ifndef CR_ACTIVATION_H
#define CR_ACTIVATION_H

#include <math.h>

#include "base/host_device.h"
#include "crescent.h"

/* slope: CR_ACT_PRELU's. Comparisons are such that a nan passes on. */
CR_BOTH double cr__act_f64(double x, int32_t act, double slope) {
  switch (act) {
  case CR_ACT_SILU:
    return x / (1 + exp(-x));
  case CR_ACT_GELU:
    return 0.5 * x * erfc(-x * 0.70710678118654752440);
  case CR_ACT_RELU:
    return x < 0 ? 0 : x;
  case CR_ACT_PRELU:
    return x < 0 ? x * slope : x;
  case CR_ACT_RELU6:
    return x < 0 ? 0 : x > 6 ? 6 : x;
  default:
    return x;
  }
}

#endif
