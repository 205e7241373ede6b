/* What the files for GEMMs of codes share. */
#ifndef CRK_LINEAR_QUANT_H
#define CRK_LINEAR_QUANT_H

#include "linear/linear.h"

/* Our own kernels for Hopper (gemm_quant_hopper.cu) and a CRK_FP8_SCALED or CRK_INT8 GEMM of dense
 * operands, with bias and residual: whether they take it, and the GEMM by one of them. Their tiles
 * are 128 rows by 160 columns, which two warpgroups share (wide) or have in turn (ping-pong), or by
 * 64 columns (narrow) for so few rows that there are not many tiles. They follow the option
 * fp8_fast; E4M3 has ping-pong tiles only with it. */
enum { CRK_TILE_WIDE, CRK_TILE_NARROW, CRK_TILE_PINGPONG };
bool crk_gemm_quant_takes(const crk_device *d, const crk_gemm *p);
int crk_gemm_quant(crk_device *d, const crk_gemm *p, int tile);

/* Decodes n dense E4M3 codes, unscaled (quantize.cu). */
void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n);

#endif
