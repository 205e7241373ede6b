/* Reference-counted memory. The CPU's has a cache of freed blocks; a GPU's is allocated by its
 * backend.
 *
 * A network allocates and frees the same few sizes again and again, and returning each large block
 * to the system would cost a page fault per 4 KiB at every operation. Freed blocks are therefore
 * kept in lists by size class, at most CACHE_LIMIT bytes in all. Small blocks use malloc.
 *
 * Invariants: counters and lists change only under `lock`. live_bytes counts what tensors
 * requested, including wrapped foreign memory. A block in a list has no owner. */
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/backend.h"

#define SMALL_BYTES ((int64_t)64 * 1024)   /* smaller blocks use malloc */
#define CACHE_LIMIT ((int64_t)256 << 20)   /* most bytes that are kept */
#define PRESSURE_FLOOR ((int64_t)64 << 20) /* least growth that triggers a garbage collection */

/* The last class has 2^62 bytes, which no storage reaches (count_elements in tensor.c). */
enum { CLASSES = 4 * 46 + 1, CLASS_SHIFT = 16 };

typedef struct block {
  struct block *next;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *cache[CLASSES];
static cr_memory cpu;
static int64_t collected_bytes; /* live bytes when Lua last collected garbage */
/* The same for all GPUs together. */
static int64_t cards_live, cards_collected, cards_step = INT64_MAX;

/* There are four size classes per power of two, so at most a quarter of a block is wasted. Returns
 * the class and, in *rounded, its size. */
static int class_of(int64_t bytes, int64_t *rounded) {
  int64_t base = (int64_t)1 << CLASS_SHIFT;
  int class = 0;
  while (base * 2 <= bytes) {
    base *= 2;
    class += 4;
  }
  int64_t quarter = base / 4;
  int64_t steps = (bytes - base + quarter - 1) / quarter;
  if (steps < 0) steps = 0;
  *rounded = base + steps * quarter;
  return class + (int)steps; /* 4 steps are the next power's first class */
}

static void *block_new(int64_t bytes, int64_t *allocated) {
  if (bytes < SMALL_BYTES) {
    *allocated = bytes ? bytes : 1;
    size_t rounded = ((size_t)*allocated + 63) / 64 * 64;
    return aligned_alloc(64, rounded);
  }
  int class = class_of(bytes, allocated);
  pthread_mutex_lock(&lock);
  block *b = cache[class];
  if (b) {
    cache[class] = b->next;
    cpu.cached_bytes -= *allocated;
  }
  pthread_mutex_unlock(&lock);
  if (b) return b;
  void *memory =
      mmap(NULL, (size_t)*allocated, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  /* Transparent huge pages avoid most page faults of the first use. */
  if (*allocated >= (4 << 20)) madvise(memory, (size_t)*allocated, MADV_HUGEPAGE);
  return memory;
}

static void block_free(void *memory, int64_t allocated) {
  if (allocated < SMALL_BYTES) {
    free(memory);
    return;
  }
  int64_t rounded;
  int class = class_of(allocated, &rounded);
  pthread_mutex_lock(&lock);
  bool keep = cpu.cached_bytes + allocated <= CACHE_LIMIT;
  if (keep) {
    block *b = memory;
    b->next = cache[class];
    cache[class] = b;
    cpu.cached_bytes += allocated;
  }
  pthread_mutex_unlock(&lock);
  if (!keep) munmap(memory, (size_t)allocated);
}

static void count(int64_t bytes, int storages) {
  pthread_mutex_lock(&lock);
  cpu.live_bytes += bytes;
  cpu.live_count += storages;
  if (cpu.live_bytes > cpu.peak_bytes) cpu.peak_bytes = cpu.live_bytes;
  if (cpu.live_bytes + cpu.cached_bytes > cpu.peak_reserved_bytes)
    cpu.peak_reserved_bytes = cpu.live_bytes + cpu.cached_bytes;
  if (cpu.live_bytes < collected_bytes) collected_bytes = cpu.live_bytes;
  pthread_mutex_unlock(&lock);
}

static void count_card(int64_t bytes) {
  pthread_mutex_lock(&lock);
  cards_live += bytes;
  if (cards_live < cards_collected) cards_collected = cards_live;
  pthread_mutex_unlock(&lock);
}

CR_EXPORT void cr__memory_step(int64_t bytes) { cards_step = bytes; }

static cr_storage *card_storage(int64_t bytes, int32_t device) {
  const cr__backend *b = cr__backend_for("empty", device);
  cr_storage *s = b ? calloc(1, sizeof *s) : NULL;
  if (!s) return NULL;
  s->refs = 1;
  s->device = device;
  s->bytes = bytes;
  if (b->memory_new(s, bytes) < 0) {
    free(s);
    return NULL;
  }
  count_card(bytes);
  return s;
}

CR_EXPORT cr_storage *cr__storage_new(int64_t bytes, int32_t device) {
  if (device != CR_CPU) return card_storage(bytes, device);
  cr_storage *s = calloc(1, sizeof *s);
  if (s) s->data = block_new(bytes, &s->allocated);
  if (s && !s->data) { /* the cache may hold the missing memory */
    cr_memory_trim(CR_CPU);
    s->data = block_new(bytes, &s->allocated);
  }
  if (!s || !s->data) {
    free(s);
    cr__fail(CR_ENOMEM, "out of memory: %.1f MiB asked for, %.1f MiB held by tensors",
             (double)bytes / 1048576.0, (double)cpu.live_bytes / 1048576.0);
    return NULL;
  }
  s->refs = 1;
  s->bytes = bytes;
  count(bytes, 1);
  return s;
}

CR_EXPORT cr_storage *cr__storage_wrap(void *data, int64_t bytes, void (*release)(void *),
                                       void *owner) {
  cr_storage *s = calloc(1, sizeof *s);
  if (!s) {
    if (release) release(owner);
    cr__fail(CR_ENOMEM, "out of memory");
    return NULL;
  }
  s->refs = 1;
  s->data = data;
  s->bytes = bytes;
  s->release = release;
  s->owner = owner;
  count(bytes, 1);
  return s;
}

CR_EXPORT void cr__retain(cr_storage *s) { s->refs++; }

CR_EXPORT void cr__release(cr_storage *s) {
  if (--s->refs > 0) return;
  if (s->device != CR_CPU) {
    const cr__backend *b = cr__backend_for("free", s->device);
    if (b) b->memory_free(s);
    count_card(-s->bytes);
    free(s);
    return;
  }
  count(-s->bytes, -1);
  if (s->allocated) block_free(s->data, s->allocated);
  if (s->release) s->release(s->owner);
  free(s);
}

/* ---- public functions for memory ---- */

CR_EXPORT int cr_memory_get(int32_t device, cr_memory *out) {
  memset(out, 0, sizeof *out);
  if (device != CR_CPU) return CR_BACKEND("memory", device, memory_get, device, out);
  pthread_mutex_lock(&lock);
  *out = cpu;
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

CR_EXPORT int cr_memory_reset_peak(int32_t device) {
  if (device != CR_CPU) return CR_BACKEND("memory", device, memory_reset_peak, device);
  pthread_mutex_lock(&lock);
  cpu.peak_bytes = cpu.live_bytes;
  cpu.peak_reserved_bytes = cpu.live_bytes + cpu.cached_bytes;
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

CR_EXPORT int cr_memory_trim(int32_t device) {
  if (device != CR_CPU) return CR_BACKEND("memory", device, memory_trim, device);
  pthread_mutex_lock(&lock);
  for (int class = 0; class < CLASSES; class ++) {
    int64_t bytes = (((int64_t)1 << CLASS_SHIFT) << class / 4) / 4 * (4 + class % 4);
    while (cache[class]) {
      block *b = cache[class];
      cache[class] = b->next;
      munmap(b, (size_t)bytes);
    }
  }
  cpu.cached_bytes = 0;
  pthread_mutex_unlock(&lock);
  malloc_trim(0);
  return CR_OK;
}

static _Thread_local const char *tag = "";

CR_EXPORT void cr_memory_set_tag(const char *name) { tag = name ? name : ""; }

CR_EXPORT const char *cr__memory_tag(void) { return tag; }

CR_EXPORT int32_t cr_memory_tags(int32_t device, cr_memory_tag *out, int32_t n) {
  if (device == CR_CPU) return 0;
  return CR_BACKEND("memory", device, memory_tags, device, out, n);
}

CR_EXPORT int cr_memory_limit(int32_t device, int64_t bytes) {
  if (bytes < 0)
    return cr__fail(CR_EINVAL, "memory: the limit must be at least 0 bytes, not %lld",
                    (long long)bytes);
  if (device == CR_CPU)
    return cr__fail(CR_EUNSUPPORTED, "memory: the CPU's memory cannot be limited");
  return CR_BACKEND("memory", device, memory_limit, device, bytes);
}

CR_EXPORT int cr_memory_pressure(void) {
  pthread_mutex_lock(&lock);
  int64_t grown = cpu.live_bytes - collected_bytes;
  bool pressed = cards_live - cards_collected > cards_step ||
                 (grown > PRESSURE_FLOOR && grown > collected_bytes / 4);
  pthread_mutex_unlock(&lock);
  return pressed;
}

CR_EXPORT void cr_memory_collected(void) {
  pthread_mutex_lock(&lock);
  collected_bytes = cpu.live_bytes;
  cards_collected = cards_live;
  pthread_mutex_unlock(&lock);
}
