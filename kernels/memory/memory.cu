/* A card's memory: a caching, stream-ordered allocator.
 *
 * The work of a stream is done in order, so a block that was freed may be given out again at once
 * to the same stream: what reads it was queued before what will write it. Each stream has a pool of
 * its own for that; a block that another stream touched last waits until that stream is done.
 *
 * A pool is a set of ranges (memory_range.h) cut into blocks; the best fitting free block is split,
 * freed neighbours merge. Small and large blocks have ranges of their own, so that a bias does not
 * stand between two activations for good.
 *
 * Recordings draw from pools of their own, one for each stream, and share them: they run one after
 * the other, so one may use the memory of another's temporaries. While a recording lives, memory
 * that it may write to is not given back to the driver.
 *
 * Memory is given back when asked (trim), when the card has no more, and before the most that was
 * ever taken would be passed while much lies idle: pieces of free blocks then move, by address, to
 * where they are missing.
 *
 * Invariants: everything changes under `lock`; the blocks of a range cover it in the order of
 * addresses; a free block has memory behind all of it and stands in a bin, and no two free blocks
 * are neighbours; a hole has none; a live block's storage points back at it (owner). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "memory/count.h"
#include "memory/range.h"

#define SMALL_BYTES ((int64_t)1 << 20)        /* below: small blocks */
#define SMALL_ALIGN ((int64_t)256)            /* of small blocks */
#define LARGE_ALIGN ((int64_t)16 << 10)       /* of large ones: a few per cent off still fits */
#define SEGMENT_BYTES ((int64_t)20 << 20)     /* at least, where ranges do not grow */
#define IDLE_FLOOR ((int64_t)32 << 20)        /* that may always lie idle */
#define COLLECT_FLOOR ((int64_t)256 << 20)    /* growth of live bytes that asks for a collection */
#define COLLECT_CEILING ((int64_t)2048 << 20) /* at most */

enum { RECORDED = CRK_STREAMS, POOLS = 2 * CRK_STREAMS }; /* pools by stream, twice */
enum { SMALL, LARGE, KINDS };
enum { BINS = 160 };

typedef enum { HOLE, FREE, LIVE, WAITING } block_state;

typedef struct block {
  struct block *before, *after; /* neighbours in the range */
  struct block *prev, *next;    /* in the bin, or among the live or waiting ones */
  struct range *range;
  int64_t offset, bytes;
  block_state state;
  int tag;
  cr_storage *storage; /* of a live one */
} block;

typedef struct range {
  crk_range at;
  struct range *next;
  struct pool *pool;
  block *first;
} range;

typedef struct pool {
  int which;
  range *ranges;
  block *bins[BINS];
} pool;

typedef struct card {
  pool pools[POOLS][KINDS];
  block *live;
  block *waiting[2]; /* freed, but another stream may be at work: new ones, and those of `asked` */
  cudaEvent_t passed[CRK_STREAMS];
  bool asked; /* `passed` is on its way through the streams */
  crk_count count;
  int64_t mapped;      /* memory taken from the driver */
  int64_t most_mapped; /* ever */
  int64_t idle;        /* of that, in free and waiting blocks of pools that recordings do not use */
  int64_t total;       /* of the card */
  int64_t limit;       /* 0: none */
  int32_t given_back;  /* how often, to bound what lies idle */
  int32_t recordings;
  bool recording;
  range *lost; /* of before a reset, which the driver did not take back */
} card;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static card cards[CRK_MAX_CARDS];

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- free blocks ---- */

/* Four bins to a doubling. */
static int bin_of(int64_t bytes) {
  int64_t units = bytes / SMALL_ALIGN;
  int log = 63 - __builtin_clzll((unsigned long long)units);
  int quarter = log >= 2 ? (int)(units >> (log - 2)) & 3 : (int)(units << (2 - log)) & 3;
  int bin = log * 4 + quarter;
  return bin < BINS ? bin : BINS - 1;
}

static void list_add(block **list, block *b) {
  b->prev = NULL;
  b->next = *list;
  if (*list) (*list)->prev = b;
  *list = b;
}

static void list_remove(block **list, block *b) {
  if (b->prev)
    b->prev->next = b->next;
  else
    *list = b->next;
  if (b->next) b->next->prev = b->prev;
}

/* Bytes of a block came to lie idle. */
static void add_idle(card *c, const block *b, int64_t bytes) {
  if (b->range->pool->which < RECORDED) c->idle += bytes;
}

static void bin_add(block *b) { list_add(&b->range->pool->bins[bin_of(b->bytes)], b); }
static void bin_remove(block *b) { list_remove(&b->range->pool->bins[bin_of(b->bytes)], b); }

/* The smallest free block that will do, of equal ones the one with the lowest address. */
static block *best_fit(pool *p, int64_t bytes) {
  for (int bin = bin_of(bytes); bin < BINS; bin++) {
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

/* Cuts a block (in no list) after `bytes`; the rest, in the same state and in no list, or NULL. */
static block *cut(block *b, int64_t bytes) {
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

/* Takes the next block (in no list) into this one. */
static void join(block *b) {
  block *gone = b->after;
  b->bytes += gone->bytes;
  b->after = gone->after;
  if (b->after) b->after->before = b;
  free(gone);
}

/* Joins a block in no list with neighbours of the same state; free ones leave their bins. */
static block *joined(block *b) {
  if (b->after && b->after->state == b->state) {
    if (b->state == FREE) bin_remove(b->after);
    join(b);
  }
  if (b->before && b->before->state == b->state) {
    b = b->before;
    if (b->state == FREE) bin_remove(b);
    join(b);
  }
  return b;
}

/* ---- memory from the driver and back ---- */

static range *range_new(pool *p, crk_range at, block_state s) {
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
  /* What is asked for is checked exactly; here, pages that are partly used are let pass. */
  return most + POOLS * KINDS * CRK_PAGE_BYTES - c->mapped;
}

/* Puts memory behind the hole where the least is missing, given the free block in front of it. */
static cudaError_t grow_range(crk_device *d, card *c, range *r, int64_t bytes, block **out) {
  block *hole = NULL;
  int64_t missing = 0;
  for (block *b = r->first; b; b = b->after) {
    if (b->state != HOLE) continue;
    int64_t have = b->before && b->before->state == FREE ? b->before->bytes : 0;
    int64_t need = round_up(bytes - have, CRK_PAGE_BYTES);
    if (need > b->bytes || (hole && need >= missing)) continue;
    hole = b;
    missing = need;
  }
  if (!hole || missing > room(c)) return cudaErrorMemoryAllocation;
  if (hole->bytes > missing && !cut(hole, missing)) return cudaErrorMemoryAllocation;
  cudaError_t e = crk_range_map(&r->at, d, hole->offset, missing);
  if (e != cudaSuccess) {
    joined(hole);
    return e;
  }
  c->mapped += missing;
  add_idle(c, hole, missing);
  hole->state = FREE;
  *out = joined(hole);
  return cudaSuccess;
}

/* A free block of at least `bytes`, in no bin, from new memory. */
static cudaError_t grow(crk_device *d, card *c, pool *p, int64_t bytes, block **out) {
  if (!p->ranges || p->ranges->at.growing) {
    crk_range at;
    if (!p->ranges && crk_range_reserve(&at, d, round_up(c->total * 2, CRK_PAGE_BYTES)) == CR_OK &&
        !range_new(p, at, HOLE))
      return cudaErrorMemoryAllocation;
    if (p->ranges) return grow_range(d, c, p->ranges, bytes, out);
  }
  int64_t size = round_up(bytes, CRK_PAGE_BYTES);
  if (bytes >= SMALL_BYTES && bytes < SEGMENT_BYTES / 2) size = SEGMENT_BYTES;
  if (size > room(c)) return cudaErrorMemoryAllocation;
  crk_range at;
  cudaError_t e = crk_range_malloc(&at, size);
  if (e != cudaSuccess) return e;
  range *r = range_new(p, at, FREE);
  if (!r) return cudaErrorMemoryAllocation;
  c->mapped += size;
  add_idle(c, r->first, size);
  *out = r->first;
  return cudaSuccess;
}

/* The memory of a free block becomes a hole, as far as pieces lie in it wholly. */
static int64_t give_back_pieces(card *c, range *r, int64_t most) {
  int64_t given = 0;
  block *b = r->first;
  for (crk_piece *p = r->at.pieces; p && given < most;) {
    int64_t first = p->offset, end = p->offset + p->bytes;
    while (b->offset + b->bytes <= first) b = b->after;
    if (b->state != FREE || b->offset + b->bytes < end) {
      p = p->next;
      continue;
    }
    bin_remove(b);
    if (b->offset + b->bytes > end) {
      block *rest = cut(b, end - b->offset);
      if (rest) bin_add(rest);
    }
    block *hole = b;
    if (b->offset < first && (hole = cut(b, first - b->offset)) != NULL) bin_add(b);
    if (!hole || hole->bytes != p->bytes) { /* no memory for the bookkeeping */
      bin_add(joined(hole ? hole : b));
      break;
    }
    hole->state = HOLE;
    add_idle(c, hole, first - end);
    given += end - first;
    c->mapped -= end - first;
    p = crk_range_unmap(&r->at, p);
    b = joined(hole);
  }
  return given;
}

static int64_t give_back_range(card *c, range **at) {
  range *r = *at;
  if (r->first->state != FREE || r->first->after) return 0;
  int64_t bytes = r->at.bytes;
  add_idle(c, r->first, -bytes);
  bin_remove(r->first);
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
    list_remove(list, b);
    b->state = FREE;
    bin_add(joined(b));
  }
}

/* Frees the waiting blocks whose streams are done, and asks the streams about the rest. */
static void look_at_waiting(crk_device *d, card *c) {
  if (d->capturing) return;
  if (c->asked) {
    for (int i = 0; i < CRK_STREAMS; i++)
      if (cudaEventQuery(c->passed[i]) == cudaErrorNotReady) {
        cudaGetLastError(); /* it counts as one */
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

/* Gives back at least `most` bytes, if so many lie idle. Waits for the card, so not while it
 * records. */
static int64_t give_back(crk_device *d, card *c, int64_t most) {
  if (d->capturing || cudaDeviceSynchronize() != cudaSuccess) return 0;
  free_waiting(&c->waiting[0]);
  free_waiting(&c->waiting[1]);
  c->asked = false;
  int64_t given = 0;
  for (int which = 0; which < POOLS; which++) {
    if (which >= RECORDED && c->recordings > 0) continue;
    for (int kind = KINDS - 1; kind >= 0; kind--) {
      range **r = &c->pools[which][kind].ranges;
      while (*r && given < most) {
        bool growing = (*r)->at.growing;
        int64_t bytes = growing ? give_back_pieces(c, *r, most - given) : give_back_range(c, r);
        if (growing || !bytes) r = &(*r)->next;
        given += bytes;
      }
    }
  }
  return given;
}

/* ---- the table ---- */

/* How far live bytes may grow before Lua is asked to collect garbage. */
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
  for (int i = 0; i < POOLS * KINDS; i++) c->pools[i / KINDS][i % KINDS].which = i / KINDS;
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

/* Bytes that may lie idle while the most ever taken is passed. Giving back waits for the card, so
 * that where it happens again and again the allowance grows, up to a quarter. */
static int64_t idle_allowed(const card *c) {
  int64_t bytes = IDLE_FLOOR * (1 + c->given_back / 8);
  int64_t most = c->count.high / 4 > IDLE_FLOOR ? c->count.high / 4 : IDLE_FLOOR;
  return bytes < most ? bytes : most;
}

/* A block of at least `bytes`, in no bin. */
static cudaError_t fit_or_grow(crk_device *d, card *c, pool *p, int64_t bytes, block **out) {
  *out = best_fit(p, bytes);
  if (!*out) return grow(d, c, p, bytes, out);
  bin_remove(*out);
  return cudaSuccess;
}

static cudaError_t take(crk_device *d, card *c, int64_t bytes, block **out) {
  int kind = bytes < SMALL_BYTES ? SMALL : LARGE;
  int64_t rounded = round_up(bytes > 0 ? bytes : 1, kind == SMALL ? SMALL_ALIGN : LARGE_ALIGN);
  pool *p = &c->pools[(c->recording ? RECORDED : 0) + crk_stream][kind];
  if (c->asked || c->waiting[0]) look_at_waiting(d, c);
  if (c->mapped + rounded > c->most_mapped && c->idle > idle_allowed(c) && !best_fit(p, rounded) &&
      give_back(d, c, rounded) > 0)
    c->given_back++;
  block *b;
  cudaError_t e = fit_or_grow(d, c, p, rounded, &b);
  if (e == cudaErrorMemoryAllocation) {
    give_back(d, c, INT64_MAX);
    e = fit_or_grow(d, c, p, rounded, &b);
  }
  if (e != cudaSuccess) return e;
  if (b->bytes > rounded) {
    block *rest = cut(b, rounded);
    if (rest) bin_add(rest);
  }
  add_idle(c, b, -b->bytes);
  if (c->mapped > c->most_mapped) c->most_mapped = c->mapped;
  *out = b;
  return cudaSuccess;
}

static int new_locked(crk_device *d, card *c, cr_storage *s, int64_t bytes) {
  CR_TRY(prepare(d, c));
  if (c->limit && c->count.all.live_bytes + bytes > c->limit)
    return crk_count_exhausted(&c->count, d, bytes, c->limit);
  block *b;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaError_t e = take(d, c, bytes, &b);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (e == cudaErrorMemoryAllocation) return crk_count_exhausted(&c->count, d, bytes, c->limit);
  CRK_TRY("memory", d, e);
  b->state = LIVE;
  b->storage = s;
  b->tag = crk_count_tag(&c->count);
  list_add(&c->live, b);
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
  if (b) { /* else it was lost in a reset */
    card *c = &cards[s->device - CR_CUDA];
    crk_count_add(&c->count, b->tag, -s->bytes, -1);
    list_remove(&c->live, b);
    b->storage = NULL;
    add_idle(c, b, b->bytes);
    if (s->stream == b->range->pool->which % CRK_STREAMS) {
      b->state = FREE;
      bin_add(joined(b));
    } else {
      b->state = WAITING;
      list_add(&c->waiting[0], b);
    }
  }
  pthread_mutex_unlock(&lock);
}

static int memory_get(int32_t device, cr_memory *out) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  card *c = &cards[d->card];
  *out = c->count.all;
  out->cached_bytes = c->mapped - c->count.all.live_bytes;
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

static int memory_reset_peak(int32_t device) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  card *c = &cards[d->card];
  crk_count_reset_peak(&c->count);
  c->count.all.peak_reserved_bytes = c->mapped;
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

static int memory_trim(int32_t device) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  give_back(d, &cards[d->card], INT64_MAX);
  pthread_mutex_unlock(&lock);
  return crk_check("memory", d, cudaGetLastError());
}

static int memory_limit(int32_t device, int64_t bytes) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  card *c = &cards[d->card];
  int rc = prepare(d, c);
  if (rc == CR_OK) {
    c->limit = bytes;
    set_step(c);
    if (bytes && c->mapped > bytes) give_back(d, c, c->mapped - bytes);
  }
  pthread_mutex_unlock(&lock);
  return rc;
}

static int32_t memory_tags(int32_t device, cr_memory_tag *out, int32_t n) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  cr_memory_tag tags[CRK_TAGS];
  pthread_mutex_lock(&lock);
  int32_t total = crk_count_tags(&cards[d->card].count, tags);
  pthread_mutex_unlock(&lock);
  for (int32_t i = 0; i < total && i < n; i++) out[i] = tags[i];
  return total;
}

/* ---- what the recorder and a reset need ---- */

void crk_memory_recording(crk_device *d, bool on) {
  pthread_mutex_lock(&lock);
  cards[d->card].recording = on;
  pthread_mutex_unlock(&lock);
}

void crk_memory_graphs(crk_device *d, int32_t change) {
  pthread_mutex_lock(&lock);
  cards[d->card].recordings += change;
  pthread_mutex_unlock(&lock);
}

void crk_memory_lost(crk_device *d) {
  pthread_mutex_lock(&lock);
  card *c = &cards[d->card];
  for (block *b = c->live; b; b = b->next) {
    b->storage->data = NULL;
    b->storage->owner = NULL;
  }
  range *lost = c->lost;
  for (int i = 0; i < POOLS * KINDS; i++) {
    for (range *r = c->pools[i / KINDS][i % KINDS].ranges, *next; r; r = next) {
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
  b->memory_new = memory_new;
  b->memory_free = memory_free;
  b->memory_get = memory_get;
  b->memory_reset_peak = memory_reset_peak;
  b->memory_trim = memory_trim;
  b->memory_limit = memory_limit;
  b->memory_tags = memory_tags;
}
