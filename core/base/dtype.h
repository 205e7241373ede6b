/* The rules by which operands' dtypes and shapes become a result's (crescent.h, cr_binary): the
 * operations check by them, and the CPU's loops compute by them. */
#ifndef CR_DTYPE_H
#define CR_DTYPE_H

#include "base/internal.h"

/* The dtype that two operands are computed in. */
int32_t cr__promote(int32_t a, int32_t b);
/* The same for a tensor of dtype `a` and a number: f32 or i64 where the tensor's own will not do.
 */
int32_t cr__scalar_arithmetic(int32_t op, int32_t a, double b);
/* The shape to which a and b broadcast, as in NumPy; fails with both shapes if they do not. */
int cr__broadcast(const char *name, const cr_tensor *a, const cr_tensor *b, int32_t *rank,
                  int32_t *shape);

#endif
