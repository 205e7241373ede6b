/* What the image operations of all backends do with their tensors before and after the arithmetic.
 *
 * They work on dense images, and free what they made for that. */
#ifndef CR_IMAGE_OPERANDS_H
#define CR_IMAGE_OPERANDS_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One image into another. Both are dense: the operands where they are that and of the dtypes asked
 * for, else temporaries. */
typedef struct cr__image_pair {
  cr_tensor *to;
  const cr_tensor *from;
  cr_tensor temps[2];
} cr__image_pair;
/* Fails if there is no memory; cr__image_end frees the temporaries also then. */
int cr__image_begin(cr__image_pair *p, cr_tensor *out, int32_t out_dtype, const cr_tensor *x,
                    int32_t x_dtype);
/* Copies a temporary result into `out`, unless `status` is negative, which it passes on. */
int cr__image_end(cr__image_pair *p, int status, cr_tensor *out);

/* The sizes of a resizing, and the dtype that it moves or computes in. */
typedef struct cr__resizing {
  int64_t images, in[2], out[2]; /* height, width */
  int32_t channels, dtype;
} cr__resizing;
cr__resizing cr__resizing_of(const cr_tensor *out, const cr_tensor *x, int32_t method);

/* The operands of cr_blend. Rows of `to` and `frame` may lie apart (a rectangle of a larger frame),
 * stride[0] bytes; pixels may not. face and weight are dense f32. */
typedef struct cr__blending {
  cr_tensor *to;
  const cr_tensor *frame, *face, *weight;
  cr_tensor temps[4];
} cr__blending;
/* Fails if there is no memory; cr__blending_end frees the temporaries also then, and passes a
 * negative status on. */
int cr__blending_begin(cr__blending *b, cr_tensor *out, const cr_tensor *frame,
                       const cr_tensor *face, const cr_tensor *weight);
int cr__blending_end(cr__blending *b, int status, cr_tensor *out);

#ifdef __cplusplus
}
#endif

#endif
