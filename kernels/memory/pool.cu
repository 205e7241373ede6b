/* Free blocks, and memory from the driver and back to it (pool.h).
 *
 * Recordings draw from pools of their own, one for each stream, and share them: they run one after
 * the other, so one may use the memory of another's temporaries. While a recording lives, memory
 * that it may write to is not returned to the driver. */
#include <stdlib.h>

#include "memory/pool.h"

#define SEGMENT_BYTES ((int64_t)20 << 20) /* the least, where ranges cannot grow */

typedef crk_block block;
typedef crk_pool_range range;
typedef crk_pool pool;
typedef crk_pools card;

/* ---- free blocks ---- */

/* Four bins for each power of two. */
static int bin_of(int64_t bytes) {
  int64_t units = bytes / CRK_SMALL_ALIGN;
  int log = 63 - __builtin_clzll((unsigned long long)units);
  int quarter = log >= 2 ? (int)(units >> (log - 2)) & 3 : (int)(units << (2 - log)) & 3;
  int bin = log * 4 + quarter;
  return bin < CRK_BINS ? bin : CRK_BINS - 1;
}

void crk_block_list_add(block **list, block *b) {
  b->prev = NULL;
  b->next = *list;
  if (*list) (*list)->prev = b;
  *list = b;
}

void crk_block_list_remove(block **list, block *b) {
  if (b->prev)
    b->prev->next = b->next;
  else
    *list = b->next;
  if (b->next) b->next->prev = b->prev;
}

void crk_block_idle(card *c, const block *b, int64_t bytes) {
  if (b->range->pool->which < CRK_RECORDED) c->idle += bytes;
}

void crk_pool_bin_add(block *b) { crk_block_list_add(&b->range->pool->bins[bin_of(b->bytes)], b); }
void crk_pool_bin_remove(block *b) {
  crk_block_list_remove(&b->range->pool->bins[bin_of(b->bytes)], b);
}

block *crk_pool_best_fit(pool *p, int64_t bytes) {
  for (int bin = bin_of(bytes); bin < CRK_BINS; bin++) {
    block *best = NULL;
    for (block *b = p->bins[bin]; b; b = b->next) {
      if (b->bytes < bytes) continue;
      if (!best || b->bytes < best->bytes ||
          (b->bytes == best->bytes &&
           b->range->at.base + b->offset < best->range->at.base + best->offset))
        best = b;
    }
    if (best) return best;
  }
  return NULL;
}

block *crk_block_split(block *b, int64_t bytes) {
  block *rest = (block *)calloc(1, sizeof *rest);
  if (!rest) return NULL;
  rest->range = b->range;
  rest->offset = b->offset + bytes;
  rest->bytes = b->bytes - bytes;
  rest->state = b->state;
  rest->before = b;
  rest->after = b->after;
  if (b->after) b->after->before = rest;
  b->after = rest;
  b->bytes = bytes;
  return rest;
}

/* Merges the next block (in no list) into this one. */
static void join(block *b) {
  block *gone = b->after;
  b->bytes += gone->bytes;
  b->after = gone->after;
  if (b->after) b->after->before = b;
  free(gone);
}

block *crk_block_merge(block *b) {
  if (b->after && b->after->state == b->state) {
    if (b->state == CRK_FREE) crk_pool_bin_remove(b->after);
    join(b);
  }
  if (b->before && b->before->state == b->state) {
    b = b->before;
    if (b->state == CRK_FREE) crk_pool_bin_remove(b);
    join(b);
  }
  return b;
}

/* ---- memory from the driver and back ---- */

static range *range_new(pool *p, crk_range at, crk_block_state s) {
  range *r = (range *)calloc(1, sizeof *r);
  block *b = (block *)calloc(1, sizeof *b);
  if (!r || !b) {
    free(r);
    free(b);
    crk_range_free(&at);
    return NULL;
  }
  r->at = at;
  r->pool = p;
  r->first = b;
  r->next = p->ranges;
  p->ranges = r;
  b->range = r;
  b->bytes = at.bytes;
  b->state = s;
  return r;
}

static int64_t room(const card *c) {
  int64_t most = c->limit ? c->limit : c->total;
  /* Live bytes are checked exactly elsewhere; here partly used pages are allowed. */
  return most + CRK_POOLS * CRK_KINDS * CRK_PAGE_BYTES - c->mapped;
}

/* Maps memory into the hole that needs the least, given the free block in front of it. */
static cudaError_t grow_range(crk_device *d, card *c, range *r, int64_t bytes, block **out) {
  block *hole = NULL;
  int64_t missing = 0;
  for (block *b = r->first; b; b = b->after) {
    if (b->state != CRK_HOLE) continue;
    int64_t have = b->before && b->before->state == CRK_FREE ? b->before->bytes : 0;
    int64_t need = crk_round_up(bytes - have, CRK_PAGE_BYTES);
    if (need > b->bytes || (hole && need >= missing)) continue;
    hole = b;
    missing = need;
  }
  if (!hole || missing > room(c)) return cudaErrorMemoryAllocation;
  if (hole->bytes > missing && !crk_block_split(hole, missing)) return cudaErrorMemoryAllocation;
  cudaError_t e = crk_range_map(&r->at, d, hole->offset, missing);
  if (e != cudaSuccess) {
    crk_block_merge(hole);
    return e;
  }
  c->mapped += missing;
  crk_block_idle(c, hole, missing);
  hole->state = CRK_FREE;
  *out = crk_block_merge(hole);
  return cudaSuccess;
}

cudaError_t crk_pool_grow(crk_device *d, card *c, pool *p, int64_t bytes, block **out) {
  if (!p->ranges || p->ranges->at.growing) {
    crk_range at;
    if (!p->ranges &&
        crk_range_reserve(&at, d, crk_round_up(c->total * 2, CRK_PAGE_BYTES)) == CR_OK &&
        !range_new(p, at, CRK_HOLE))
      return cudaErrorMemoryAllocation;
    if (p->ranges) return grow_range(d, c, p->ranges, bytes, out);
  }
  int64_t size = crk_round_up(bytes, CRK_PAGE_BYTES);
  if (bytes >= CRK_SMALL_BYTES && bytes < SEGMENT_BYTES / 2) size = SEGMENT_BYTES;
  if (size > room(c)) return cudaErrorMemoryAllocation;
  crk_range at;
  cudaError_t e = crk_range_malloc(&at, size);
  if (e != cudaSuccess) return e;
  range *r = range_new(p, at, CRK_FREE);
  if (!r) return cudaErrorMemoryAllocation;
  c->mapped += size;
  crk_block_idle(c, r->first, size);
  *out = r->first;
  return cudaSuccess;
}

/* Unmaps the pieces that lie in free blocks as a whole; there the block becomes a hole. */
static int64_t unmap_pieces(card *c, range *r, int64_t most) {
  int64_t given = 0;
  block *b = r->first;
  for (crk_piece *p = r->at.pieces; p && given < most;) {
    int64_t first = p->offset, end = p->offset + p->bytes;
    while (b->offset + b->bytes <= first) b = b->after;
    if (b->state != CRK_FREE || b->offset + b->bytes < end) {
      p = p->next;
      continue;
    }
    crk_pool_bin_remove(b);
    if (b->offset + b->bytes > end) {
      block *rest = crk_block_split(b, end - b->offset);
      if (rest) crk_pool_bin_add(rest);
    }
    block *hole = b;
    if (b->offset < first && (hole = crk_block_split(b, first - b->offset)) != NULL)
      crk_pool_bin_add(b);
    if (!hole || hole->bytes != p->bytes) { /* no host memory for the bookkeeping */
      crk_pool_bin_add(crk_block_merge(hole ? hole : b));
      break;
    }
    hole->state = CRK_HOLE;
    crk_block_idle(c, hole, first - end);
    given += end - first;
    c->mapped -= end - first;
    p = crk_range_unmap(&r->at, p);
    b = crk_block_merge(hole);
  }
  return given;
}

static int64_t free_range(card *c, range **at) {
  range *r = *at;
  if (r->first->state != CRK_FREE || r->first->after) return 0;
  int64_t bytes = r->at.bytes;
  crk_block_idle(c, r->first, -bytes);
  crk_pool_bin_remove(r->first);
  crk_range_free(&r->at);
  free(r->first);
  *at = r->next;
  free(r);
  c->mapped -= bytes;
  return bytes;
}

static void free_waiting(block **list) {
  while (*list) {
    block *b = *list;
    crk_block_list_remove(list, b);
    b->state = CRK_FREE;
    crk_pool_bin_add(crk_block_merge(b));
  }
}

void crk_pools_poll_waiting(crk_device *d, card *c) {
  if (d->capturing) return;
  if (c->asked) {
    for (int i = 0; i < CRK_STREAMS; i++)
      if (cudaEventQuery(c->passed[i]) == cudaErrorNotReady) {
        cudaGetLastError(); /* cudaErrorNotReady counts as an error */
        return;
      }
    free_waiting(&c->waiting[1]);
    c->asked = false;
  }
  if (!c->waiting[0]) return;
  for (int i = 0; i < CRK_STREAMS; i++)
    if (cudaEventRecord(c->passed[i], d->streams[i]) != cudaSuccess) return;
  c->waiting[1] = c->waiting[0];
  c->waiting[0] = NULL;
  c->asked = true;
}

int64_t crk_pools_trim(crk_device *d, card *c, int64_t most) {
  if (d->capturing || cudaDeviceSynchronize() != cudaSuccess) return 0;
  free_waiting(&c->waiting[0]);
  free_waiting(&c->waiting[1]);
  c->asked = false;
  int64_t given = 0;
  for (int which = 0; which < CRK_POOLS; which++) {
    if (which >= CRK_RECORDED && d->graphs > 0) continue;
    for (int kind = CRK_KINDS - 1; kind >= 0; kind--) {
      range **r = &c->pools[which][kind].ranges;
      while (*r && given < most) {
        bool growing = (*r)->at.growing;
        int64_t bytes = growing ? unmap_pieces(c, *r, most - given) : free_range(c, r);
        if (growing || !bytes) r = &(*r)->next;
        given += bytes;
      }
    }
  }
  return given;
}
