/* What the CPU's quantized operations share: quantizing rows, and the values of codes. */
#ifndef CR_CPU_QUANT_H
#define CR_CPU_QUANT_H

#include "base/internal.h"

enum { CR_INT4_GROUP = 64 }; /* elements that share an int4 scale */

/* Quantizes rows as cr_quantize does. */
typedef struct cr__quantizer {
  void *codes;
  float *scale;   /* of each row; NULL: static codes */
  float *inverse; /* 1 / divisor, or ones */
  int64_t width;
  bool e4m3;
  int lanes; /* cr__lanes() */
} cr__quantizer;

/* Fills a quantizer. Returns CR_ENOMEM on failure. Free it with cr__quantizer_end. */
int cr__quantizer_begin(cr__quantizer *quantizer, cr_tensor *codes, cr_tensor *scale,
                        const cr_tensor *divisor);
void cr__quantizer_end(cr__quantizer *quantizer);
/* Quantizes `rows` dense rows of x, to codes and scales from `row` on. Any thread. */
void cr__quantize_rows(const cr__quantizer *quantizer, int64_t row, int64_t rows, const float *x);

/* Whether a weight is int4. */
bool cr__int4(const cr_tensor *codes, const cr_tensor *scale);
/* out = the values of a weight or an activation, f32 and dense (cr_dequantize). scale may be NULL
 * except for int4. */
void cr__code_values(float *out, const cr_tensor *codes, const cr_tensor *scale);

#endif
