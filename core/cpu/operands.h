/* What the CPU's heavy operations share: operands made dense and of the arithmetic's dtype, and the
 * functions that the table of core/base/backend.h takes.
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
#include "base/internal.h"

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

int cr__cpu_matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b);
int cr__cpu_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, const cr_tensor *residual, int32_t act);
int cr__cpu_attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                      int32_t heads, double scale, const cr_tensor *mask);
int cr__cpu_geglu(cr_tensor *out, const cr_tensor *x);
int cr__cpu_softmax(cr_tensor *out, const cr_tensor *x);
int cr__cpu_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                   const cr_conv *options);
int cr__cpu_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                       int32_t stride_h, int32_t stride_w, const int32_t *pad);

#endif
