/* Convolutions by Winograd's method (winograd.c), which conv.c chooses where they fit. */
#ifndef CR_CPU_WINOGRAD_H
#define CR_CPU_WINOGRAD_H

#include "base/internal.h"

/* Whether it is for this convolution of f32: its window, and enough tiles and channels to be
 * faster. */
bool cr__winograd_fits(const cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                       const cr_conv *o);

/* conv2d of contiguous tensors that fit, all f32; or bf16 but for bias and slope, where
 * cr__dnnl_bf16() says that there are products of it. CR_ENOMEM without memory for the transforms.
 */
int cr__winograd(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
                 const cr_tensor *residual, const cr_tensor *slope, const cr_conv *o);

#endif
