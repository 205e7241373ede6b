/* What the files that move bytes share. */
#ifndef CRK_MOVE_H
#define CRK_MOVE_H

#include "device/strided.h"

/* Whether a merged plan of a result and an operand is a transposition: the result is dense along
 * dimension 0, the operand along another, and both are long enough for tiles. */
bool crk_tiles_can(const crk_plan *p);
void crk_tiles(crk_device *d, const crk_plan *p);

/* Fails unless all numbers of an index (i32 or i64 [T]) are rows of x. Reads them back, unless work
 * is being recorded. */
int crk_check_rows(const char *name, crk_device *d, const cr_tensor *x, const cr_tensor *index);

int crk_scatter_rows(cr_tensor *t, const cr_tensor *index, const cr_tensor *x, int32_t add);

#endif
