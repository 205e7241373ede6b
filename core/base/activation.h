/* The activations CR_ACT_* of one number, for the CPU's scalar loops and the GPU's kernels.
 *
 * cr__act_NAME_f64 computes the activation NAME of base/operations.h, cr__act_NAME_f32 does so in
 * float. The f32 forms that are missing here are in kernels/device/cuda.h; an activation without a
 * form does not compile. `slope` belongs to CR_ACT_PRELU. Comparisons are written so that a nan
 * passes through. */
#ifndef CR_ACTIVATION_H
#define CR_ACTIVATION_H

#include <math.h>

#include "base/host_device.h"
#include "base/operations.h"

#define CR__ACT_DOUBLE(NAME, EXPR)                                                                 \
  CR_HOST_DEVICE double cr__act_##NAME##_f64(double x, double slope) {                             \
    (void)slope;                                                                                   \
    return EXPR;                                                                                   \
  }
#define CR__ACT(NAME, EXPR)                                                                        \
  CR_HOST_DEVICE float cr__act_##NAME##_f32(float x, float slope) {                                \
    (void)slope;                                                                                   \
    return EXPR;                                                                                   \
  }                                                                                                \
  CR__ACT_DOUBLE(NAME, EXPR)

CR__ACT_DOUBLE(silu, x / (1 + exp(-x)))
CR__ACT_DOUBLE(gelu, 0.5 * x * erfc(-x * 0.70710678118654752440))
CR__ACT(relu, x < 0 ? 0 : x)
CR__ACT(prelu, x < 0 ? x * slope : x)
CR__ACT(relu6, x < 0 ? 0 : (x > 6 ? 6 : x))

/* The body of a function that applies the activation `act` to x. SUFFIX: f32 or f64. */
#define CR__ACT_SWITCH(SUFFIX)                                                                     \
  switch (act) {                                                                                   \
    CR_ACT_FORMULAS(CR__ACT_CASE_##SUFFIX)                                                         \
  default:                                                                                         \
    return x;                                                                                      \
  }
#define CR__ACT_CASE_f32(ACT, NAME)                                                                \
  case ACT:                                                                                        \
    return cr__act_##NAME##_f32(x, slope);
#define CR__ACT_CASE_f64(ACT, NAME)                                                                \
  case ACT:                                                                                        \
    return cr__act_##NAME##_f64(x, slope);

CR_HOST_DEVICE double cr__act_f64(double x, int32_t act, double slope) { CR__ACT_SWITCH(f64) }

#endif
