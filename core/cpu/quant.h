/* What the CPU's quantized operations share: making codes of rows, and numbers of codes. */
#ifndef CR_CPU_QUANT_H
#define CR_CPU_QUANT_H

#include "base/internal.h"

enum { CR_INT4_GROUP = 64 }; /* neighbours that share one of int4's scales */

/* Where codes go and how they are made (cr_quantize). */
typedef struct cr__coder {
  void *codes;
  float *scale;   /* of each row; NULL: static */
  float *inverse; /* 1 / divisor, ones without one */
  int64_t width;
  bool e4m3;
  int lanes; /* cr__lanes() */
} cr__coder;

/* Fills it; CR_ENOMEM. Freed by cr__coder_end. */
int cr__coder_begin(cr__coder *coder, cr_tensor *codes, cr_tensor *scale, const cr_tensor *divisor);
void cr__coder_end(cr__coder *coder);
/* Codes (and scales) of `rows` dense rows of x, which become those from `row` on. Any thread. */
void cr__code_rows(const cr__coder *coder, int64_t row, int64_t rows, const float *x);

/* Whether a weight is int4. */
bool cr__int4(const cr_tensor *codes, const cr_tensor *scale);
/* out = a weight's or an activation's numbers, f32 and dense (cr_dequantize); the scale may be
 * NULL, but for int4. */
void cr__numbers(float *out, const cr_tensor *codes, const cr_tensor *scale);

#endif
