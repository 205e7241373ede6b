/* What the elementwise family's files share. */
#ifndef CRK_ELEMENTWISE_H
#define CRK_ELEMENTWISE_H

#include "device/map.h"

/* ---- the family's entries in other files ---- */
int crk_unary(cr_tensor *out, int32_t op, const cr_tensor *x);
int crk_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b);
int crk_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed);
int crk_geglu(cr_tensor *out, const cr_tensor *x);

#endif
