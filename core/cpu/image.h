/* What the files of core/cpu/image_*.c share: dense results and borrowed memory.
 *
 * Their operations work on dense pictures. cr__picture_out gives the dense tensor to write to:
 * `out` itself where it is dense, else a temporary one that cr__picture_done copies into `out`. */
#ifndef CR_CPU_IMAGE_H
#define CR_CPU_IMAGE_H

#include "base/filters.h"
#include "cpu/cpu.h"

/* A dense tensor of `dtype` for out's numbers; NULL (message set) if there is no memory. */
cr_tensor *cr__picture_out(cr_tensor *out, int32_t dtype, cr_tensor *temp);
/* Copies a temporary result into `out` and frees it; passes `status` on if that is negative. */
int cr__picture_done(int status, cr_tensor *out, cr_tensor *temp);

/* malloc with a message: count elements of `size` bytes. */
void *cr__scratch(const char *name, int64_t count, int64_t size);

/* Threads worth starting for this many elementary steps (about a nanosecond each). */
static inline int cr__picture_threads(int64_t steps) {
  int32_t n = cr_threads();
  int64_t useful = steps / 20000 + 1;
  return useful < n ? (int)useful : (int)n;
}

#endif
