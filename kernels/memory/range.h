/* Ranges of a card's addresses, and the memory behind them: what the allocator's pools grow in.
 *
 * A growing range is address space of its own, behind which memory is put and taken away in pieces,
 * so that a pool's free memory is never split over many separate segments. Where the driver cannot
 * do that, a range is one block of cudaMalloc. Called with the allocator's lock held. */
#ifndef CRK_MEMORY_RANGE_H
#define CRK_MEMORY_RANGE_H

#include "device/cuda.h"

enum { CRK_PAGE_BYTES = 2 << 20 }; /* memory behind a range comes in multiples of this */

/* Memory behind [offset, offset + bytes) of a growing range. */
typedef struct crk_piece {
  struct crk_piece *next; /* by address */
  int64_t offset, bytes;
  unsigned long long handle;
} crk_piece;

typedef struct crk_range {
  char *base;        /* NULL: nothing is here */
  int64_t bytes;     /* of addresses */
  crk_piece *pieces; /* of a growing range */
  bool growing;
} crk_range;

/* Makes a growing range without memory; CR_EUNSUPPORTED, with no message, where there are none. */
int crk_range_reserve(crk_range *r, crk_device *d, int64_t bytes);
/* Makes a range of cudaMalloc. */
cudaError_t crk_range_malloc(crk_range *r, int64_t bytes);
/* Puts memory behind a part of a growing range that has none; whole pages. */
cudaError_t crk_range_map(crk_range *r, crk_device *d, int64_t offset, int64_t bytes);
/* Takes the memory behind one piece away; the card must be done with it. Returns the piece after
 * it. */
crk_piece *crk_range_unmap(crk_range *r, crk_piece *piece);
/* Gives up a range and all memory behind it. After a fault the driver may refuse: false, and what
 * is left can be given up again after the reset. */
bool crk_range_free(crk_range *r);

#endif
