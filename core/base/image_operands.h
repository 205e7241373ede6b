/* The preparation of operands that the image operations of all backends share: they compute on
 * dense images, and temporaries made for that are freed afterwards. */
#ifndef CR_IMAGE_OPERANDS_H
#define CR_IMAGE_OPERANDS_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One input image and one output image, both dense. These are the operands themselves if they are
 * dense and have the requested dtypes, else temporaries. */
typedef struct cr__image_pair {
  cr_tensor *to;
  const cr_tensor *from;
  cr_tensor temps[2];
} cr__image_pair;
/* Fails if there is no memory. Call cr__image_end even then: it frees the temporaries. */
int cr__image_begin(cr__image_pair *p, cr_tensor *out, int32_t out_dtype, const cr_tensor *x,
                    int32_t x_dtype);
/* Copies a temporary result into `out` and returns `status`; if `status` is negative, it copies
 * nothing. */
int cr__image_end(cr__image_pair *p, int status, cr_tensor *out);

/* The sizes of a resizing, and the dtype in which it moves or computes data. */
typedef struct cr__resizing {
  int64_t images, in[2], out[2]; /* height, width */
  int32_t channels, dtype;
} cr__resizing;
cr__resizing cr__resizing_of(const cr_tensor *out, const cr_tensor *x, int32_t method);

/* The operands of cr_blend. `to` and `frame` may be rectangles of a larger frame: their rows are
 * stride[0] bytes apart, and each row is dense. face and weight are dense f32. */
typedef struct cr__blending {
  cr_tensor *to;
  const cr_tensor *frame, *face, *weight;
  cr_tensor temps[4];
} cr__blending;
/* Fails if there is no memory. Call cr__blending_end even then: it frees the temporaries and
 * returns a negative `status` unchanged. */
int cr__blending_begin(cr__blending *b, cr_tensor *out, const cr_tensor *frame,
                       const cr_tensor *face, const cr_tensor *weight);
int cr__blending_end(cr__blending *b, int status, cr_tensor *out);

#ifdef __cplusplus
}
#endif

#endif
