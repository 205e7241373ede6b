/* What the files of 8-bit floating point share. */
#ifndef CRK_FP8_H
#define CRK_FP8_H

#include "cuda.h"

/* out[i] = the number of codes[i], unscaled (fp8.cu). */
void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n);

/* The table's fp8_linear (linear_fp8.cu). */
int crk_fp8_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                   const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                   const cr_tensor *residual, int32_t act);

#endif
