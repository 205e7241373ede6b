/* Out-of-range indices in index tensors, which only the card sees. A kernel writes down one of them
 * and continues with a valid index; the next call that waits for the card fails with the
 * operation's name.
 *
 * Invariant: the error lies in pinned memory of the host, which the card writes and the host reads
 * after a wait. If there were several errors since the last wait, one is reported. The memory
 * belongs to a card's context and is lost with it. */
#ifndef CRK_INDEX_ERROR_H
#define CRK_INDEX_ERROR_H

#include "device/cuda.h"

/* The valid indices, from 1 to `size` or from -1 to -size (backwards), and what the message about
 * others says. */
typedef struct crk_index_bounds {
  struct crk_index_error *error;
  const char *name; /* of the operation: a constant string, which the card does not read */
  int64_t size;
  int32_t dim, rank, shape[CR_MAX_RANK];
} crk_index_bounds;

typedef struct crk_index_error {
  crk_index_bounds bounds;
  int64_t index;
  int32_t set; /* 1: there is an error */
} crk_index_error;

/* The bounds of indices into x's dimension `dim`. */
int crk_index_bounds_of(crk_index_bounds *p, const char *name, crk_device *d, const cr_tensor *x,
                        int32_t dim);
/* Reports an index error that the card has written until now, and forgets it; CR_OK if there is
 * none. Any thread may call it, after a wait. */
int crk_index_error_take(const crk_device *d);

#ifdef __CUDACC__
/* The position, counted from 0, of an index. */
__device__ __forceinline__ int64_t crk_index_resolve(const crk_index_bounds &p, int64_t index) {
  int64_t at = index < 0 ? index + p.size : index - 1;
  if ((uint64_t)at < (uint64_t)p.size) return at;
  p.error->bounds = p;
  p.error->index = index;
  p.error->set = 1;
  return 0;
}
#endif

#endif
