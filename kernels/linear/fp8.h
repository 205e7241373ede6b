/* What the files of 8-bit floating point share. */
#ifndef CRK_FP8_H
#define CRK_FP8_H

#include "linear/linear.h"

/* out[i] = the number of codes[i], unscaled (fp8_quantize.cu). */
void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n);

/* Fails unless codes are E4M3 with a scale for each row and no divisor (fp8_quantize.cu). */
int crk_fp8_only(const char *name, const cr_tensor *codes, bool scales, const cr_tensor *divisor);

/* The table's quant_linear (fp8.cu). */
int crk_fp8_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                   const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                   const cr_tensor *residual, int32_t act);

/* Kernels of our own for a CRK_FP8_SCALED product of dense operands, with bias and residual
 * (fp8_gemm_hopper.cu): whether they take it, and the product by one of them. Tiles of 160 columns,
 * or of 64 for so few rows that there are not many tiles. The option fp8_fast is followed. */
enum { CRK_FP8_WIDE, CRK_FP8_NARROW };
bool crk_fp8_gemm_takes(const crk_device *d, const crk_product *p);
int crk_fp8_gemm(crk_device *d, const crk_product *p, int tile);

#endif
