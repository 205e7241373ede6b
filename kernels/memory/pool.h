/* Pools of a card's memory: ranges cut into blocks, of which the free ones stand in bins by size.
 *
 * A pool is a set of ranges (memory/range.h) cut into blocks; the best fitting free block is split,
 * freed neighbours merge. Small and large blocks have ranges of their own, so that a bias does not
 * stand between two activations for good.
 *
 * Invariants: everything changes under the allocator's lock; the blocks of a range cover it in the
 * order of addresses; a free block has memory behind all of it and stands in a bin, and no two free
 * blocks are neighbours; a hole has none; a live block's storage points back at it (owner). */
#ifndef CRK_MEMORY_POOL_H
#define CRK_MEMORY_POOL_H

#include "memory/count.h"
#include "memory/range.h"

#define CRK_SMALL_BYTES ((int64_t)1 << 20) /* below: small blocks */
#define CRK_SMALL_ALIGN ((int64_t)256)     /* of small blocks, and the unit of the bins */

/* Pools by stream: of networks as they run, then (from CRK_RECORDED on) of recordings. */
enum { CRK_RECORDED = CRK_STREAMS, CRK_POOLS = 2 * CRK_STREAMS };
enum { CRK_SMALL, CRK_LARGE, CRK_KINDS }; /* of blocks */
enum { CRK_BINS = 160 };

typedef enum { CRK_HOLE, CRK_FREE, CRK_LIVE, CRK_WAITING } crk_block_state;

typedef struct crk_block {
  struct crk_block *before, *after; /* neighbours in the range */
  struct crk_block *prev, *next;    /* in the bin, or among the live or waiting ones */
  struct crk_pool_range *range;
  int64_t offset, bytes;
  crk_block_state state;
  int tag;
  cr_storage *storage; /* of a live one */
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
  /* Freed, but another stream may be at work: new ones, and those of `asked`. */
  crk_block *waiting[2];
  cudaEvent_t passed[CRK_STREAMS];
  bool asked; /* `passed` is on its way through the streams */
  crk_count count;
  int64_t mapped;      /* memory taken from the driver */
  int64_t most_mapped; /* ever */
  int64_t idle;        /* of that, in free and waiting blocks of pools that recordings do not use */
  int64_t total;       /* of the card */
  int64_t limit;       /* 0: none */
  int32_t trims;       /* how often, to bound what lies idle */
  crk_pool_range *lost; /* of before a reset, which the driver did not take back */
} crk_pools;

static inline int64_t crk_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void crk_block_list_add(crk_block **list, crk_block *b);
void crk_block_list_remove(crk_block **list, crk_block *b);
/* Counts bytes of a block that came to lie idle, or (negative) do so no longer. */
void crk_block_idle(crk_pools *c, const crk_block *b, int64_t bytes);

/* The smallest free block of at least `bytes`, of equal ones the one with the lowest address; NULL
 * if there is none. It stays in its bin. */
crk_block *crk_pool_best_fit(crk_pool *p, int64_t bytes);
void crk_pool_bin_add(crk_block *b);
void crk_pool_bin_remove(crk_block *b);
/* Cuts a block (in no list) after `bytes`; the rest, in the same state and in no list, or NULL. */
crk_block *crk_block_split(crk_block *b, int64_t bytes);
/* Joins a block in no list with neighbours of the same state; free ones leave their bins. */
crk_block *crk_block_merge(crk_block *b);

/* A free block of at least `bytes`, in no bin, from new memory. */
cudaError_t crk_pool_grow(crk_device *d, crk_pools *c, crk_pool *p, int64_t bytes, crk_block **out);
/* Frees the waiting blocks whose streams are done, and asks the streams about the rest. */
void crk_pools_poll_waiting(crk_device *d, crk_pools *c);
/* Gives back at least `most` bytes, if so many lie idle; returns how many. Waits for the card, so
 * not while it records. */
int64_t crk_pools_trim(crk_device *d, crk_pools *c, int64_t most);

#endif
