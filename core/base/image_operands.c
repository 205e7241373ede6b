/* Dense operands and results for the image operations (image_operands.h). */
#include "base/image_operands.h"

/* Returns the dense tensor to write to: `out` itself, or a temporary one, which copy_back copies
 * and frees. */
static cr_tensor *dense_out(cr_tensor *out, int32_t dtype, cr_tensor *temp) {
  if (out->dtype == dtype && cr_is_contiguous(out)) return out;
  return cr_empty(temp, out->rank, out->shape, dtype, out->device) < 0 ? NULL : temp;
}

static int copy_back(int status, cr_tensor *out, cr_tensor *temp) {
  if (status >= 0 && temp->storage) status = cr_copy(out, temp);
  cr_free(temp);
  return status;
}

CR_EXPORT int cr__image_begin(cr__image_pair *p, cr_tensor *out, int32_t out_dtype,
                              const cr_tensor *x, int32_t x_dtype) {
  *p = (cr__image_pair){0};
  p->to = dense_out(out, out_dtype, &p->temps[0]);
  p->from = cr__dense(x, x_dtype, &p->temps[1]);
  return p->to && p->from ? CR_OK : CR_ENOMEM;
}

CR_EXPORT int cr__image_end(cr__image_pair *p, int status, cr_tensor *out) {
  cr_free(&p->temps[1]);
  return copy_back(status, out, &p->temps[0]);
}

CR_EXPORT cr__resizing cr__resizing_of(const cr_tensor *out, const cr_tensor *x, int32_t method) {
  int32_t axis = x->rank - 3;
  return (cr__resizing){.images = axis ? x->shape[0] : 1,
                        .in = {x->shape[axis], x->shape[axis + 1]},
                        .out = {out->shape[axis], out->shape[axis + 1]},
                        .channels = x->shape[axis + 2],
                        .dtype = method == CR_NEAREST || x->dtype == CR_U8 ? x->dtype : CR_F32};
}

static bool dense_rows(const cr_tensor *t) {
  return (t->shape[2] == 1 || t->stride[2] == 1) &&
         (t->shape[1] == 1 || t->stride[1] == t->shape[2]);
}

CR_EXPORT int cr__blending_begin(cr__blending *b, cr_tensor *out, const cr_tensor *frame,
                                 const cr_tensor *face, const cr_tensor *weight) {
  *b = (cr__blending){0};
  b->to = dense_rows(out) ? out : dense_out(out, CR_U8, &b->temps[0]);
  b->frame = dense_rows(frame) ? frame : cr__dense(frame, CR_U8, &b->temps[1]);
  b->face = cr__dense(face, CR_F32, &b->temps[2]);
  b->weight = cr__dense(weight, CR_F32, &b->temps[3]);
  return b->to && b->frame && b->face && b->weight ? CR_OK : CR_ENOMEM;
}

CR_EXPORT int cr__blending_end(cr__blending *b, int status, cr_tensor *out) {
  for (int i = 1; i < 4; i++) cr_free(&b->temps[i]);
  return copy_back(status, out, &b->temps[0]);
}
