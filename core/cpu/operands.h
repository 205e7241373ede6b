/* What the CPU's heavy operations share: operands made dense and of the arithmetic's dtype.
 *
 *   cr__operands op = {0};
 *   x = cr__operand(&op, x, CR_F32);            x itself where it is dense f32 already
 *   cr_tensor *result = cr__result(&op, out, CR_F32);
 *   return cr__operands_end(&op, out, op.rc < 0 ? op.rc : work(result, x));
 *
 * Invariant: after a failure op.rc is negative, and further calls do nothing but return NULL. */
#ifndef CR_CPU_OPERANDS_H
#define CR_CPU_OPERANDS_H

#include "base/activation.h"
#include "cpu/cpu.h"

enum { CR_OPERANDS = 6 };

typedef struct cr__operands {
  int rc;
  int32_t n;
  cr_tensor temp[CR_OPERANDS];
  cr_tensor result; /* holds the result until it is copied to `out`; empty if not needed */
} cr__operands;

/* x as a contiguous tensor of `dtype`; NULL for NULL and after a failure. */
const cr_tensor *cr__operand(cr__operands *op, const cr_tensor *x, int32_t dtype);
/* Where to put a contiguous result of `dtype`: `out` itself if it is that. */
cr_tensor *cr__result(cr__operands *op, cr_tensor *out, int32_t dtype);
/* Copies the result to `out` if it stands elsewhere and rc >= 0, frees all temporaries; returns rc
 * or what went wrong. */
int cr__operands_end(cr__operands *op, cr_tensor *out, int rc);

/* Kinds of keys of oneDNN's primitives. */
enum { CR_KEY_CONV = 1, CR_KEY_MATMUL };

#endif
