/* Pools of a card's memory: ranges are split into blocks, and free blocks are in bins by size.
 *
 * A pool is a set of ranges (memory/range.h) that are split into blocks. The best fitting free
 * block is split, and freed neighbours merge. Small and large blocks have ranges of their own, so
 * that a bias does not separate two activations for good.
 *
 * Invariants: everything changes under the allocator's lock. The blocks of a range cover it in the
 * order of addresses. A free block has memory behind all of it and is in a bin, and no two free
 * blocks are neighbours; a hole has no memory. A live block's storage points back at it (owner). */
#ifndef CRK_MEMORY_POOL_H
#define CRK_MEMORY_POOL_H

#include "memory/count.h"
#include "memory/range.h"

#define CRK_SMALL_BYTES ((int64_t)1 << 20) /* blocks below this size are small */
#define CRK_SMALL_ALIGN ((int64_t)256)     /* of small blocks, and the unit of the bins */

/* Pools by stream: first those of networks as they run, then (from CRK_RECORDED on) those of
 * recordings. */
enum { CRK_RECORDED = CRK_STREAMS, CRK_POOLS = 2 * CRK_STREAMS };
enum { CRK_SMALL, CRK_LARGE, CRK_KINDS }; /* of blocks */
enum { CRK_BINS = 160 };

typedef enum { CRK_HOLE, CRK_FREE, CRK_LIVE, CRK_WAITING } crk_block_state;

typedef struct crk_block {
  struct crk_block *before, *after; /* neighbours in the range */
  struct crk_block *prev, *next;    /* in a bin, or in the list of live or of waiting blocks */
  struct crk_pool_range *range;
  int64_t offset, bytes;
  crk_block_state state;
  int tag;
  cr_storage *storage; /* of a live block */
} crk_block;

typedef struct crk_pool_range {
  crk_range at;
  struct crk_pool_range *next;
  struct crk_pool *pool;
  crk_block *first;
} crk_pool_range;

typedef struct crk_pool {
  int which;
  crk_pool_range *ranges;
  crk_block *bins[CRK_BINS];
} crk_pool;

typedef struct crk_pools {
  crk_pool pools[CRK_POOLS][CRK_KINDS];
  crk_block *live;
  /* Freed blocks that another stream may still use: new ones, and those that the query under way
   * covers. */
  crk_block *waiting[2];
  cudaEvent_t passed[CRK_STREAMS];
  bool asked; /* a query is under way: `passed` has been recorded in the streams */
  crk_count count;
  int64_t mapped;      /* memory taken from the driver */
  int64_t most_mapped; /* the most ever mapped */
  int64_t idle;        /* of that, in free and waiting blocks of pools that recordings do not use */
  int64_t total;       /* of the card */
  int64_t limit;       /* 0: none */
  int32_t trims;       /* how often memory was trimmed, which raises the idle allowance */
  crk_pool_range *lost; /* ranges from before a reset that the driver did not take back */
} crk_pools;

static inline int64_t crk_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void crk_block_list_add(crk_block **list, crk_block *b);
void crk_block_list_remove(crk_block **list, crk_block *b);
/* Counts a block's bytes as idle, or (negative) as no longer idle. */
void crk_block_idle(crk_pools *c, const crk_block *b, int64_t bytes);

/* The smallest free block of at least `bytes`; of equal ones that with the lowest address. NULL if
 * there is none. It stays in its bin. */
crk_block *crk_pool_best_fit(crk_pool *p, int64_t bytes);
void crk_pool_bin_add(crk_block *b);
void crk_pool_bin_remove(crk_block *b);
/* Splits a block (in no list) after `bytes`. Returns the rest, in the same state and in no list;
 * NULL if there is no memory. */
crk_block *crk_block_split(crk_block *b, int64_t bytes);
/* Merges a block (in no list) with neighbours of the same state; free neighbours leave their bins.
 * Returns the merged block. */
crk_block *crk_block_merge(crk_block *b);

/* Makes a free block of at least `bytes`, in no bin, from new memory. */
cudaError_t crk_pool_grow(crk_device *d, crk_pools *c, crk_pool *p, int64_t bytes, crk_block **out);
/* Frees the waiting blocks whose streams are done, and queries the streams for the rest. */
void crk_pools_poll_waiting(crk_device *d, crk_pools *c);
/* Returns at least `most` idle bytes to the driver, or as many as there are; the result is how
 * many. It waits for the card, so it does nothing while the card records. */
int64_t crk_pools_trim(crk_device *d, crk_pools *c, int64_t most);

#endif
