/* What the CPU's image operations share. */
#ifndef CR_CPU_IMAGE_H
#define CR_CPU_IMAGE_H

#include "base/filters.h"
#include "base/image_operands.h"
#include "cpu/cpu.h"

/* malloc with a message: count elements of `size` bytes. */
void *cr__scratch(const char *name, int64_t count, int64_t size);

/* Threads worth starting for this many elementary steps (about a nanosecond each). */
static inline int cr__image_threads(int64_t steps) {
  int32_t n = cr_threads();
  int64_t useful = steps / 20000 + 1;
  return useful < n ? (int)useful : (int)n;
}

#endif
