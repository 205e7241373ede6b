/* Copies of bytes between the host and a card through pinned staging memory, so that the
 * processor's copying and the card's overlap.
 *
 * The staging memory of a card's stream is a ring buffer of SLOTS pinned slots. An upload appends
 * to the current slot. When a slot is full, its event is recorded and the next slot is used; that
 * waits only if the card is SLOTS - 1 behind.
 *
 * Invariants: the host writes to a slot only after the event of its last use has passed; one thread
 * calls these functions. */
#include <string.h>

#include "device/index_error.h"
#include "memory/transfer.h"

#define SLOT_BYTES ((int64_t)8 << 20)
enum { SLOTS = 4, ALIGN = 256 };

typedef struct staging {
  char *memory; /* SLOTS * SLOT_BYTES, pinned; NULL until the first use */
  cudaEvent_t passed[SLOTS];
  int slot;
  int64_t used; /* used bytes of the current slot */
} staging;

static staging stagings[CRK_MAX_CARDS][CRK_STREAMS];

static int prepare(const char *name, crk_device *d, staging *s) {
  if (s->memory) return CR_OK;
  for (int i = 0; i < SLOTS; i++)
    if (!s->passed[i])
      CRK_TRY(name, d, cudaEventCreateWithFlags(&s->passed[i], cudaEventDisableTiming));
  void *memory = NULL;
  CRK_TRY(name, d, cudaHostAlloc(&memory, SLOTS * SLOT_BYTES, cudaHostAllocDefault));
  s->memory = (char *)memory;
  return CR_OK;
}

/* Records the event of the current slot, which is full, and waits for the next slot. */
static int next_slot(const char *name, crk_device *d, staging *s) {
  CRK_TRY(name, d, cudaEventRecord(s->passed[s->slot], d->stream));
  s->slot = (s->slot + 1) % SLOTS;
  s->used = 0;
  CRK_TRY(name, d, cudaEventSynchronize(s->passed[s->slot]));
  return CR_OK;
}

/* A recording keeps the arguments of its kernels, so a small upload's bytes are passed as an
 * argument. */
enum { CONSTANT_BYTES = 3072, RECORDED_BYTES = 48 * 1024 };
typedef struct constant {
  uint8_t bytes[CONSTANT_BYTES];
} constant;

__global__ void constant_kernel(uint8_t *out, const __grid_constant__ constant in, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in.bytes[i];
}

static int record_constants(const char *name, crk_device *d, void *out, const void *in,
                            int64_t bytes) {
  constant c;
  for (int64_t at = 0; at < bytes; at += CONSTANT_BYTES) {
    int n = bytes - at < CONSTANT_BYTES ? (int)(bytes - at) : CONSTANT_BYTES;
    memcpy(c.bytes, (const char *)in + at, (size_t)n);
    constant_kernel<<<1, 256, 0, d->stream>>>((uint8_t *)out + at, c, n);
  }
  return crk_launched(name, d);
}

int crk_upload(const char *name, crk_device *d, void *device_dst, const void *host_src,
               int64_t bytes) {
  if (bytes <= 0) return CR_OK;
  if (d->capturing && bytes <= RECORDED_BYTES)
    return record_constants(name, d, device_dst, host_src, bytes);
  CR_TRY(crk_may_wait(name, d));
  staging *s = &stagings[d->card][crk_stream];
  CR_TRY(prepare(name, d, s));
  for (int64_t at = 0; at < bytes;) {
    int64_t n = SLOT_BYTES - s->used;
    if (n > bytes - at) n = bytes - at;
    char *stage = s->memory + s->slot * SLOT_BYTES + s->used;
    cr__copy_bytes(stage, (const char *)host_src + at, n);
    CRK_TRY(name, d,
            cudaMemcpyAsync((char *)device_dst + at, stage, (size_t)n, cudaMemcpyHostToDevice,
                            d->stream));
    at += n;
    s->used += (n + ALIGN - 1) / ALIGN * ALIGN;
    if (s->used >= SLOT_BYTES) CR_TRY(next_slot(name, d, s));
  }
  return CR_OK;
}

int crk_download(const char *name, crk_device *d, void *host_dst, const void *device_src,
                 int64_t bytes) {
  CR_TRY(crk_may_wait(name, d));
  if (bytes <= 0) return CR_OK;
  staging *s = &stagings[d->card][crk_stream];
  CR_TRY(prepare(name, d, s));
  if (s->used) CR_TRY(next_slot(name, d, s));
  /* The card fills the slots in turn, SLOTS - 1 ahead of the copies out of them. */
  int64_t pieces = crk_ceil_div(bytes, SLOT_BYTES);
  for (int64_t i = 0; i < pieces + SLOTS - 1; i++) {
    int64_t out = i - (SLOTS - 1);
    if (out >= 0) {
      int slot = (int)((s->slot + out) % SLOTS);
      int64_t at = out * SLOT_BYTES, n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
      CRK_TRY(name, d, cudaEventSynchronize(s->passed[slot]));
      cr__copy_bytes((char *)host_dst + at, s->memory + slot * SLOT_BYTES, n);
    }
    if (i < pieces) {
      int slot = (int)((s->slot + i) % SLOTS);
      int64_t at = i * SLOT_BYTES, n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
      CRK_TRY(name, d, cudaEventSynchronize(s->passed[slot]));
      CRK_TRY(name, d,
              cudaMemcpyAsync(s->memory + slot * SLOT_BYTES, (const char *)device_src + at,
                              (size_t)n, cudaMemcpyDeviceToHost, d->stream));
      CRK_TRY(name, d, cudaEventRecord(s->passed[slot], d->stream));
    }
  }
  return crk_index_error_take(d);
}

void crk_transfer_lost(crk_device *d) {
  memset(stagings[d->card], 0, sizeof stagings[d->card]); /* the reset frees all of it */
}
