/* What the image operations of all backends do with their tensors before and after the arithmetic.
 *
 * They work on dense images. cr__image_out gives the dense tensor to write to: `out` itself where
 * it is dense, else a temporary one that cr__image_done copies into `out`. */
#ifndef CR_IMAGE_OPERANDS_H
#define CR_IMAGE_OPERANDS_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A dense tensor of `dtype` for out's numbers; NULL (message set) if there is no memory. */
cr_tensor *cr__image_out(cr_tensor *out, int32_t dtype, cr_tensor *temp);
/* Copies a temporary result into `out` and frees it; passes `status` on if that is negative. */
int cr__image_done(int status, cr_tensor *out, cr_tensor *temp);

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
