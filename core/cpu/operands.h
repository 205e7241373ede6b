/* Dense operands in the dtype of the arithmetic, for the CPU's compute-intensive operations.
 *
 *   cr__operands op = {0};
 *   x = cr__operand(&op, x, CR_F32);            x itself if it is dense f32 already
 *   cr_tensor *result = cr__result(&op, out, CR_F32);
 *   return cr__operands_end(&op, out, op.rc < 0 ? op.rc : work(result, x));
 *
 * Invariant: after a failure op.rc is negative, and further calls only return NULL. */
#ifndef CR_CPU_OPERANDS_H
#define CR_CPU_OPERANDS_H

#include "base/activation.h"
#include "cpu/cpu.h"

enum { CR_OPERANDS = 6 };

typedef struct cr__operands {
  int rc;
  int32_t n;
  cr_tensor temp[CR_OPERANDS];
  /* Holds the result until it is copied to `out`; empty if `out` is used directly. */
  cr_tensor result;
} cr__operands;

/* Returns x as a contiguous tensor of `dtype`; NULL if x is NULL or after a failure. */
const cr_tensor *cr__operand(cr__operands *op, const cr_tensor *x, int32_t dtype);
/* Returns the tensor for a contiguous result of `dtype`: `out` itself if it is suitable. */
cr_tensor *cr__result(cr__operands *op, cr_tensor *out, int32_t dtype);
/* Copies the result to `out` if necessary and rc >= 0, and frees all temporaries. Returns rc, or
 * the error of the copy. */
int cr__operands_end(cr__operands *op, cr_tensor *out, int rc);

/* Kinds of the keys of oneDNN primitives. */
enum { CR_KEY_CONV = 1, CR_KEY_MATMUL };

#endif
