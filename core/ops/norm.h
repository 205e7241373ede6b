/* A check that normalizations share. */
#ifndef CR_NORM_H
#define CR_NORM_H

#include "base/internal.h"

/* Fails unless a layer norm's `after` (may be NULL) is floats that broadcast to x. */
int cr__check_after(const char *name, const cr_tensor *after, const cr_tensor *x);

#endif
