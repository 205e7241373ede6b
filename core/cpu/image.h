/* What the CPU's image operations share. */
#ifndef CR_CPU_IMAGE_H
#define CR_CPU_IMAGE_H

#include "base/filters.h"
#include "base/image_operands.h"
#include "cpu/cpu.h"

/* Allocates count elements of `size` bytes, with a message on failure. Free it with free. */
void *cr__scratch(const char *name, int64_t count, int64_t size);

/* Returns how many threads are worth starting for this many elementary steps of about a
 * nanosecond. */
static inline int cr__image_threads(int64_t steps) {
  int32_t n = cr_threads();
  int64_t useful = steps / 20000 + 1;
  return useful < n ? (int)useful : (int)n;
}

#endif
