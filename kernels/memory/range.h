/* Ranges of a card's addresses, and the memory behind them: what the allocator's pools grow in.
 *
 * A growing range reserves address space, into which memory is mapped and from which it is unmapped
 * in pieces, so that a pool's free memory is never divided over many separate segments. Where the
 * driver cannot do that, a range is one block of cudaMalloc. Called with the allocator's lock held.
 */
#ifndef CRK_MEMORY_RANGE_H
#define CRK_MEMORY_RANGE_H

#include "device/cuda.h"

enum { CRK_PAGE_BYTES = 2 << 20 }; /* memory is mapped in multiples of this */

/* Memory behind [offset, offset + bytes) of a growing range. */
typedef struct crk_piece {
  struct crk_piece *next; /* in the order of addresses */
  int64_t offset, bytes;
  unsigned long long handle;
} crk_piece;

typedef struct crk_range {
  char *base;        /* NULL: there is no range */
  int64_t bytes;     /* of address space */
  crk_piece *pieces; /* of a growing range */
  bool growing;
} crk_range;

/* Reserves a growing range without memory; CR_EUNSUPPORTED, without a message, where the driver
 * cannot. */
int crk_range_reserve(crk_range *r, crk_device *d, int64_t bytes);
/* Allocates a range with cudaMalloc. */
cudaError_t crk_range_malloc(crk_range *r, int64_t bytes);
/* Maps memory into a part of a growing range that has none; whole pages. */
cudaError_t crk_range_map(crk_range *r, crk_device *d, int64_t offset, int64_t bytes);
/* Unmaps one piece; the card must be done with it. Returns the piece after it. */
crk_piece *crk_range_unmap(crk_range *r, crk_piece *piece);
/* Frees a range and all memory behind it. After a fault the driver may refuse: then it returns
 * false, and the rest can be freed again after the reset. */
bool crk_range_free(crk_range *r);

#endif
