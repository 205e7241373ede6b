/* The rules that give a result's dtype and shape from the operands' (crescent.h, cr_binary).
 * Operations check by them, and the CPU's loops compute by them. */
#ifndef CR_DTYPE_H
#define CR_DTYPE_H

#include "base/internal.h"

/* Returns the dtype in which two operands are computed. */
int32_t cr__promote(int32_t a, int32_t b);
/* The same for a tensor of dtype `a` and a number: f32 or i64 if the tensor's own dtype cannot hold
 * the result. */
int32_t cr__scalar_arithmetic(int32_t op, int32_t a, double b);
/* Gives the shape to which a and b broadcast, as in NumPy. It fails with both shapes in the message
 * if they do not. */
int cr__broadcast(const char *name, const cr_tensor *a, const cr_tensor *b, int32_t *rank,
                  int32_t *shape);

#endif
