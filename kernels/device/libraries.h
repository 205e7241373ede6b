/* cuBLASLt's and cuDNN's handles, made on first use (crk_lt and crk_cudnn in cuda.h) or ahead of
 * it. */
#ifndef CRK_LIBRARIES_H
#define CRK_LIBRARIES_H

#include "device/cuda.h"

/* What loads the rest of cuDNN, which it finds when it is asked for its first plan: told by the
 * family that makes such plans. It runs on a thread of its own. */
typedef void crk_warm_up(cudnnHandle_t handle);
void crk_libraries_warm_up(crk_warm_up *warm_up);
/* Begins to make both handles and to warm cuDNN up, on a thread of its own, if none of that has
 * been done. A failure is told by the first use, which tries again. */
void crk_libraries_prepare(crk_device *d);
/* Waits for that thread, if there is one, and takes its handles. */
void crk_libraries_prepared(crk_device *d);

#endif
