/* cuBLASLt's and cuDNN's handles, created on first use (crk_lt and crk_cudnn in cuda.h) or ahead of
 * it. */
#ifndef CRK_LIBRARIES_H
#define CRK_LIBRARIES_H

#include "device/cuda.h"

/* A function that makes cuDNN load the rest of itself, which it does for its first plan. The family
 * that makes such plans registers it. It runs on a thread of its own. */
typedef void crk_warm_up(cudnnHandle_t handle);
void crk_libraries_warm_up(crk_warm_up *warm_up);
/* Starts to create both handles and to warm up cuDNN, on a thread of its own, unless that has been
 * done. A failure is reported by the first use, which tries again. */
void crk_libraries_prepare(crk_device *d);
/* Waits for that thread, if there is one, and takes over its handles. */
void crk_libraries_prepared(crk_device *d);

#endif
