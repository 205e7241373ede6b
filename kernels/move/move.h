/* What the files that move bytes share. */
#ifndef CRK_MOVE_H
#define CRK_MOVE_H

#include "device/strided.h"

/* Whether a merged plan of a result and an operand is a transposition: the result is dense along
 * dimension 0, the operand along another one, and both are long enough for tiles. */
bool crk_tiles_can(const crk_plan *p);
void crk_tiles(crk_device *d, const crk_plan *p);

/* The table's entries in index.cu. */
int crk_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index);
int crk_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x, int32_t add);
int crk_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat);

#endif
