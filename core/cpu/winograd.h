/* Convolutions by Winograd's algorithm (winograd.c), which conv.c selects where they are faster. */
#ifndef CR_CPU_WINOGRAD_H
#define CR_CPU_WINOGRAD_H

#include "base/internal.h"

/* Whether the algorithm supports this f32 convolution and has enough tiles and channels to be
 * faster. */
bool cr__winograd_fits(const cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                       const cr_conv *o);

/* conv2d of contiguous tensors for which cr__winograd_fits is true. All are f32; or, if
 * cr__dnnl_bf16() is true, all are bf16 except bias and slope. Returns CR_ENOMEM if there is no
 * memory for the transforms. */
int cr__winograd(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
                 const cr_tensor *residual, const cr_tensor *slope, const cr_conv *o);

#endif
