/* Convolutions by oneDNN, for what is built on them. */
#ifndef CR_CPU_CONV_H
#define CR_CPU_CONV_H

#include "base/internal.h"

/* out = act(conv(x, weight) * factor + bias) + residual, all dense and alive; factor and bias are
 * f32 [O] or NULL, the residual as out and not out itself, or NULL. x and weight: f32, bf16 or int8
 * codes; out: f32 or bf16 (f32 of f32). CR_EUNSUPPORTED where oneDNN has none. */
int cr__conv_dnnl(const char *name, cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *factor, const cr_tensor *bias, const cr_tensor *residual,
                  const cr_conv *o);

#endif
