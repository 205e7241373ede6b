/* A card's memory. First version: blocks of cudaMalloc, kept by size when freed. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "transfer.h"

typedef struct block {
  struct block *next;
  void *data;
  int64_t bytes;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *cache[CRK_MAX_CARDS];
static cr_memory memory[CRK_MAX_CARDS];

static int memory_trim(int32_t device) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  pthread_mutex_lock(&lock);
  while (cache[d->card]) {
    block *b = cache[d->card];
    cache[d->card] = b->next;
    cudaFree(b->data);
    memory[d->card].cached_bytes -= b->bytes;
    free(b);
  }
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

static int memory_new(cr_storage *s, int64_t bytes) {
  crk_device *d = crk_device_get("memory", s->device);
  if (!d) return CR_EDEVICE;
  int64_t rounded = bytes < 512 ? 512 : (bytes + 511) / 512 * 512;
  pthread_mutex_lock(&lock);
  cr_memory *m = &memory[d->card];
  block **at = &cache[d->card];
  while (*at && (*at)->bytes != rounded) at = &(*at)->next;
  if (*at) {
    block *b = *at;
    *at = b->next;
    s->data = b->data;
    m->cached_bytes -= rounded;
    free(b);
  }
  pthread_mutex_unlock(&lock);
  if (!s->data) {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t e = cudaMalloc(&s->data, (size_t)rounded);
    if (e == cudaErrorMemoryAllocation && !d->capturing) {
      cudaGetLastError();
      memory_trim(s->device);
      e = cudaMalloc(&s->data, (size_t)rounded);
    }
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (e != cudaSuccess) s->data = NULL;
    CRK_TRY("memory", d, e);
  }
  s->allocated = rounded;
  s->recorded = crk_recording;
  pthread_mutex_lock(&lock);
  m->live_bytes += s->bytes;
  m->live_count++;
  if (m->live_bytes > m->peak_bytes) m->peak_bytes = m->live_bytes;
  pthread_mutex_unlock(&lock);
  return CR_OK;
}

static void memory_free(cr_storage *s) {
  int card = s->device - CR_CUDA;
  block *b = (block *)malloc(sizeof *b);
  pthread_mutex_lock(&lock);
  memory[card].live_bytes -= s->bytes;
  memory[card].live_count--;
  if (b) {
    b->data = s->data;
    b->bytes = s->allocated;
    b->next = cache[card];
    cache[card] = b;
    memory[card].cached_bytes += b->bytes;
  }
  pthread_mutex_unlock(&lock);
}

static int memory_get(int32_t device, cr_memory *out) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  *out = memory[d->card];
  return CR_OK;
}

static int memory_reset_peak(int32_t device) {
  crk_device *d = crk_device_get("memory", device);
  if (!d) return CR_EDEVICE;
  memory[d->card].peak_bytes = memory[d->card].live_bytes;
  return CR_OK;
}

void crk_fill_memory(cr__backend *b) {
  b->memory_new = memory_new;
  b->memory_free = memory_free;
  b->memory_get = memory_get;
  b->memory_reset_peak = memory_reset_peak;
  b->memory_trim = memory_trim;
}
void crk_memory_recording(crk_device *d, bool on) {
  (void)d;
  (void)on;
}
void crk_memory_lost(crk_device *d) { crk_transfer_lost(d); }
void crk_memory_graphs(crk_device *d, int32_t change) {
  (void)d;
  (void)change;
}
