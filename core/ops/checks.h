/* Argument checks that plain operations share with their quantized forms (quant.c). Each message
 * begins with `name`. */
#ifndef CR_CHECKS_H
#define CR_CHECKS_H

#include "base/internal.h"

int cr__check_group_norm(const char *name, const cr_tensor *x, int32_t groups,
                         const cr_tensor *weight, const cr_tensor *bias, double eps,
                         const cr_tensor *bias_before);
int cr__check_layer_norm(const char *name, const cr_tensor *x, const cr_tensor *weight,
                         const cr_tensor *bias, double eps, const cr_tensor *after);
/* Also gives the result's shape, of q's rank, and replaces a scale that is not positive by the
 * default. */
int cr__check_attention(const char *name, const cr_tensor *q, const cr_tensor *k,
                        const cr_tensor *v, int32_t heads, double *scale, const cr_tensor *mask,
                        int32_t *shape);
/* x is [... 2D]. Also gives the result's shape. */
int cr__check_geglu(const char *name, const cr_tensor *x, int32_t *shape);
/* Checks everything except the dtypes of x and weight, and PReLU's slope; of weight only the shape
 * matters. Also gives the result's shape [4]. */
int cr__check_conv2d(const char *name, const cr_tensor *x, const cr_tensor *weight,
                     const cr_tensor *bias, const cr_tensor *residual, const cr_conv *options,
                     int32_t *shape);
/* Fails unless t is NULL or a float tensor [n] on x's device. */
int cr__check_vector(const char *name, const char *what, const cr_tensor *t, const cr_tensor *x,
                     int32_t n);

#endif
