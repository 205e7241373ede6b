/* ONNX files: what the reader of the graph (onnx.c) and that of its tensors (onnx_tensor.c) share.
 */
#ifndef CR_ONNX_H
#define CR_ONNX_H

#include "weights/protobuf.h"
#include "weights/weights.h"

/* Fails with the place in the file. */
#define cr__onnx_damaged(w, at, what) (cr__onnx_message(w, at, what), CR_EFORMAT)
void cr__onnx_message(const cr_weights *w, const uint8_t *at, const char *what);

/* The last field `number` of a message as bytes, empty if there is none; an error if damaged. */
int cr__onnx_find(const cr_weights *w, cr__proto message, uint32_t number, cr__proto_field *out);
/* The same of a string that is to be a name: UTF-8 without NUL. */
int cr__onnx_name(cr_weights *w, cr__proto message, uint32_t number, const char **out);

/* Adds a TensorProto as an entry; name NULL: its own. What cannot be read here gets an entry with
 * trouble. */
int cr__onnx_tensor(cr_weights *w, cr__proto message, const char *name);

#endif
