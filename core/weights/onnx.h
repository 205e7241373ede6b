/* What the reader of an ONNX graph (onnx.c) and that of its tensors (onnx_tensor.c) share. */
#ifndef CR_ONNX_H
#define CR_ONNX_H

#include "weights/protobuf.h"
#include "weights/weights.h"

/* Fails with the position in the file. */
#define cr__onnx_damaged(w, at, what) (cr__onnx_message(w, at, what), CR_EFORMAT)
void cr__onnx_message(const cr_weights *w, const uint8_t *at, const char *what);

/* Finds the last field `number` of a message; an empty one if there is none. Fails if the message
 * is damaged. */
int cr__onnx_find(const cr_weights *w, cr__proto message, uint32_t number, cr__proto_field *out);
/* The same for a string field that is a name: UTF-8 without NUL. */
int cr__onnx_name(cr_weights *w, cr__proto message, uint32_t number, const char **out);

/* Adds a TensorProto as an entry; name NULL: under its own name. A tensor that is not supported
 * gets an entry with `trouble`. */
int cr__onnx_tensor(cr_weights *w, cr__proto message, const char *name);

#endif
