/* What the CPU backend's files share beyond backend.h. */
#ifndef CR_CPU_CPU_H
#define CR_CPU_CPU_H

#include "base/internal.h"

/* The dtype that two operands are computed in (crescent.h, cr_binary). */
int32_t cr__promote(int32_t a, int32_t b);
/* The same for a tensor of dtype `a` and a number: f32 or i64 where the tensor's own will not do.
 */
int32_t cr__scalar_arithmetic(int32_t op, int32_t a, double b);

int cr__cpu_reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask, int32_t keep);

#endif
