/* What the files of products of codes share. */
#ifndef CRK_LINEAR_QUANT_H
#define CRK_LINEAR_QUANT_H

#include "linear/linear.h"

/* Kernels of our own for Hopper and a CRK_FP8_SCALED or CRK_INT8 product of dense operands, with
 * bias and residual (gemm_quant_hopper.cu): whether they take it, and the product by one of them.
 * Tiles of 128 rows by 160 columns, shared by two groups of warps or in turns; or by 64 for so few
 * rows that there are not many tiles. The option fp8_fast is followed; only with it are there turns
 * for E4M3. */
enum { CRK_TILE_WIDE, CRK_TILE_NARROW, CRK_TILE_PINGPONG };
bool crk_gemm_quant_takes(const crk_device *d, const crk_gemm *p);
int crk_gemm_quant(crk_device *d, const crk_gemm *p, int tile);

/* The numbers of n dense E4M3 codes, unscaled (quantize.cu). */
void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n);

#endif
