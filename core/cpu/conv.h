/* Convolutions with oneDNN, which other operations also use. */
#ifndef CR_CPU_CONV_H
#define CR_CPU_CONV_H

#include "base/internal.h"

/* out = act(conv(x, weight) * factor + bias) + residual; all tensors are dense and alive. factor
 * and bias are f32 [O] or NULL. residual has out's shape and dtype and must not be out itself, or
 * is NULL. x and weight are f32, bf16 or int8 codes; out is f32 or bf16 (f32 for f32 inputs).
 * Returns CR_EUNSUPPORTED if oneDNN has no implementation. */
int cr__conv_dnnl(const char *name, cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *factor, const cr_tensor *bias, const cr_tensor *residual,
                  const cr_conv *o);

#endif
