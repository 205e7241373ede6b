/* cuBLASLt's and cuDNN's handles, made on first use (crk_lt and crk_cudnn in cuda.h) or ahead of
 * it. */
#ifndef CRK_LIBRARIES_H
#define CRK_LIBRARIES_H

#include "device/cuda.h"

/* Begins to make both handles, and loads what cuDNN loads with its first plan, on a thread of its
 * own, if none of that has been done. A failure is told by the first use, which tries again. */
void crk_libraries_prepare(crk_device *d);
/* Waits for that thread, if there is one, and takes its handles. */
void crk_libraries_prepared(crk_device *d);

#endif
