/* A card's memory: a caching, stream-ordered allocator.
 *
 * The work of a stream runs in order, so a freed block may be given to the same stream again at
 * once: the work that reads it was queued before the work that will write it. Each stream has a
 * pool of its own for that (memory/pool.h). A block that another stream used last waits until that
 * stream is done. Recordings have pools of their own.
 *
 * Memory is returned to the driver on request (trim), when the card has no more, and before more
 * would be taken from the driver than ever before while many bytes are idle. In that last case
 * memory behind free blocks is unmapped and mapped again where it is needed.
 *
 * Invariant: everything changes under `lock`. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "memory/pool.h"
#include "memory/transfer.h"

#define LARGE_ALIGN                                                                                \
  ((int64_t)16 << 10) /* of large blocks: a request that is a few per cent larger still fits */
#define IDLE_FLOOR ((int64_t)32 << 20) /* so many bytes may always be idle */
#define COLLECT_FLOOR                                                                              \
  ((int64_t)256 << 20) /* growth of live bytes that triggers a garbage collection */
#define COLLECT_CEILING ((int64_t)2048 << 20) /* the most that it may be */

typedef crk_block block;
typedef crk_pool_range range;
typedef crk_pool pool;
typedef crk_pools card;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static card cards[CRK_MAX_CARDS];

/* ---- the table ---- */

/* Sets how far live bytes may grow before Lua is asked to collect garbage. */
static void set_step(const card *c) {
  int64_t step = (c->limit && c->limit < c->total ? c->limit : c->total) / 16;
  if (step > COLLECT_CEILING) step = COLLECT_CEILING;
  if (step < COLLECT_FLOOR && !c->limit) step = COLLECT_FLOOR;
  cr__memory_step(step);
}

static int prepare(crk_device *d, card *c) {
  if (c->total) return CR_OK;
  size_t idle = 0, total = 0;
  CRK_TRY("memory", d, cudaMemGetInfo(&idle, &total));
  for (int i = 0; i < CRK_STREAMS; i++)
    CRK_TRY("memory", d, cudaEventCreateWithFlags(&c->passed[i], cudaEventDisableTiming));
  for (int i = 0; i < CRK_POOLS * CRK_KINDS; i++)
    c->pools[i / CRK_KINDS][i % CRK_KINDS].which = i / CRK_KINDS;
  c->total = (int64_t)total;
  set_step(c);
  for (range *r = c->lost, *next; r; r = next) {
    next = r->next;
    crk_range_free(&r->at);
    free(r);
  }
  c->lost = NULL;
  return CR_OK;
}

/* Bytes that may be idle while the mapped memory exceeds its former maximum. Trimming waits for the
 * card, so where it happens again and again this grows, up to a quarter. */
static int64_t idle_allowed(const card *c) {
  int64_t bytes = IDLE_FLOOR * (1 + c->trims / 8);
  int64_t most = c->count.high / 4 > IDLE_FLOOR ? c->count.high / 4 : IDLE_FLOOR;
  return bytes < most ? bytes : most;
}

/* Finds or makes a free block of at least `bytes`, in no bin. */
static cudaError_t fit_or_grow(crk_device *d, card *c, pool *p, int64_t bytes, block **out) {
  *out = crk_pool_best_fit(p, bytes);
  if (!*out) return crk_pool_grow(d, c, p, bytes, out);
  crk_pool_bin_remove(*out);
  return cudaSuccess;
}

static cudaError_t take(crk_device *d, card *c, int64_t bytes, block **out) {
  int kind = bytes < CRK_SMALL_BYTES ? CRK_SMALL : CRK_LARGE;
  int64_t rounded =
      crk_round_up(bytes > 0 ? bytes : 1, kind == CRK_SMALL ? CRK_SMALL_ALIGN : LARGE_ALIGN);
  pool *p = &c->pools[(d->graph_memory ? CRK_RECORDED : 0) + crk_stream][kind];
  if (c->asked || c->waiting[0]) crk_pools_poll_waiting(d, c);
  if (c->mapped + rounded > c->most_mapped && c->idle > idle_allowed(c) &&
      !crk_pool_best_fit(p, rounded) && crk_pools_trim(d, c, rounded) > 0)
    c->trims++;
  block *b = NULL;
  cudaError_t e = fit_or_grow(d, c, p, rounded, &b);
  if (e == cudaErrorMemoryAllocation) {
    crk_pools_trim(d, c, INT64_MAX);
    e = fit_or_grow(d, c, p, rounded, &b);
  }
  if (e != cudaSuccess) return e;
  if (b->bytes > rounded) {
    block *rest = crk_block_split(b, rounded);
    if (rest) crk_pool_bin_add(rest);
  }
  crk_block_idle(c, b, -b->bytes);
  if (c->mapped > c->most_mapped) c->most_mapped = c->mapped;
  *out = b;
  return cudaSuccess;
}

static int new_locked(crk_device *d, card *c, cr_storage *s, int64_t bytes) {
  CR_TRY(prepare(d, c));
  if (c->limit && c->count.all.live_bytes + bytes > c->limit)
    return crk_count_exhausted(&c->count, d, bytes, c->limit);
  block *b = NULL;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaError_t e = take(d, c, bytes, &b);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (e == cudaErrorMemoryAllocation) return crk_count_exhausted(&c->count, d, bytes, c->limit);
  CRK_TRY("memory", d, e);
  b->state = CRK_LIVE;
  b->storage = s;
  b->tag = crk_count_tag(&c->count);
  crk_block_list_add(&c->live, b);
  crk_count_add(&c->count, b->tag, s->bytes, 1);
  cr_memory *all = &c->count.all;
  if (c->mapped > all->peak_reserved_bytes) all->peak_reserved_bytes = c->mapped;
  s->data = b->range->at.base + b->offset;
  s->allocated = b->bytes;
  s->owner = b;
  s->stream = crk_stream;
  s->recorded = crk_recording;
  return CR_OK;
}

static int memory_new(cr_storage *s, int64_t bytes) {
  crk_device *d = crk_device_get("memory", s->device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  int rc = new_locked(d, &cards[d->card], s, bytes);
  pthread_mutex_unlock(&lock);
  return rc;
}

static void memory_free(cr_storage *s) {
  pthread_mutex_lock(&lock);
  block *b = (block *)s->owner;
  if (b) { /* otherwise a reset has already freed it */
    card *c = &cards[s->device - CR_CUDA];
    crk_count_add(&c->count, b->tag, -s->bytes, -1);
    crk_block_list_remove(&c->live, b);
    b->storage = NULL;
    crk_block_idle(c, b, b->bytes);
    if (s->stream == b->range->pool->which % CRK_STREAMS) {
      b->state = CRK_FREE;
      crk_pool_bin_add(crk_block_merge(b));
    } else {
      b->state = CRK_WAITING;
      crk_block_list_add(&c->waiting[0], b);
    }
  }
  pthread_mutex_unlock(&lock);
}

/* Calls f(d, card) with the lock held and returns its result; fails if there is no such device. */
template <typename F> static int of_card(int32_t device, F f) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  int rc = f(d, &cards[d->card]);
  pthread_mutex_unlock(&lock);
  return rc;
}

static int memory_get(int32_t device, cr_memory *out) {
  return of_card(device, [&](crk_device *, card *c) {
    *out = c->count.all;
    out->cached_bytes = c->mapped - c->count.all.live_bytes;
    return (int)CR_OK;
  });
}

static int memory_reset_peak(int32_t device) {
  return of_card(device, [](crk_device *, card *c) {
    crk_count_reset_peak(&c->count);
    c->count.all.peak_reserved_bytes = c->mapped;
    return (int)CR_OK;
  });
}

static int memory_trim(int32_t device) {
  return of_card(device, [](crk_device *d, card *c) {
    crk_pools_trim(d, c, INT64_MAX);
    return crk_check("memory", d, cudaGetLastError());
  });
}

static int memory_limit(int32_t device, int64_t bytes) {
  return of_card(device, [&](crk_device *d, card *c) {
    int rc = prepare(d, c);
    if (rc != CR_OK) return rc;
    c->limit = bytes;
    set_step(c);
    if (bytes && c->mapped > bytes) crk_pools_trim(d, c, c->mapped - bytes);
    return rc;
  });
}

static int32_t memory_tags(int32_t device, cr_memory_tag *out, int32_t n) {
  return of_card(device, [&](crk_device *, card *c) {
    cr_memory_tag tags[CRK_TAGS];
    int total = crk_count_tags(&c->count, tags);
    for (int i = 0; i < total && i < n; i++) out[i] = tags[i];
    return total;
  });
}

/* ---- a reset ---- */

static void memory_lost(crk_device *d, bool fault) {
  if (fault) crk_transfer_lost(d);
  pthread_mutex_lock(&lock);
  card *c = &cards[d->card];
  for (block *b = c->live; b; b = b->next) {
    b->storage->data = NULL;
    b->storage->owner = NULL;
  }
  range *lost = c->lost;
  for (int i = 0; i < CRK_POOLS * CRK_KINDS; i++) {
    for (range *r = c->pools[i / CRK_KINDS][i % CRK_KINDS].ranges, *next; r; r = next) {
      next = r->next;
      for (block *b = r->first, *after; b; b = after) {
        after = b->after;
        free(b);
      }
      if (crk_range_free(&r->at)) {
        free(r);
        continue;
      }
      r->next = lost;
      lost = r;
    }
  }
  int64_t limit = c->limit;
  memset(c, 0, sizeof *c);
  c->limit = limit;
  c->lost = lost;
  pthread_mutex_unlock(&lock);
}

void crk_fill_memory(cr__backend *b) {
  b->memory_new = memory_new, b->memory_free = memory_free;
  b->memory_get = memory_get, b->memory_reset_peak = memory_reset_peak;
  b->memory_trim = memory_trim, b->memory_limit = memory_limit;
  b->memory_tags = memory_tags;
  crk_at_reset(memory_lost);
}
