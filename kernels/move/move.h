/* What the files that move bytes share. */
#ifndef CRK_MOVE_H
#define CRK_MOVE_H

#include "device/strided.h"

/* Whether a merged plan of a result and an operand is a transposition: the result is dense along
 * dimension 0, the operand along another, and both are long enough for tiles. */
bool crk_tiles_can(const crk_plan *p);
void crk_tiles(crk_device *d, const crk_plan *p);

#endif
