/* Cards: starting them, their properties, faults and resets.
 *
 * Invariants: a card is started once (until a reset after a fault); `fault` is set once, and makes
 * every call fail until cr_device_reset. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "device/cuda.h"
#include "device/index_error.h"
#include "device/libraries.h"
#include "device/switches.h"

static crk_device cards[CRK_MAX_CARDS];
static crk_forget *forget_memory;
int32_t crk_stream;

static bool ruins_context(cudaError_t e) {
  switch (e) {
  case cudaErrorIllegalAddress:
  case cudaErrorIllegalInstruction:
  case cudaErrorMisalignedAddress:
  case cudaErrorInvalidAddressSpace:
  case cudaErrorInvalidPc:
  case cudaErrorLaunchFailure:
  case cudaErrorLaunchTimeout:
  case cudaErrorAssert:
  case cudaErrorHardwareStackError:
  case cudaErrorECCUncorrectable:
  case cudaErrorDeviceUninitialized:
  case cudaErrorContextIsDestroyed:
    return true;
  default:
    return false;
  }
}

int crk_check(const char *name, crk_device *d, cudaError_t error) {
  if (error == cudaSuccess) return CR_OK;
  cudaGetLastError(); /* clears it, so that the next call does not report it again */
  if (!ruins_context(error)) {
    if (d && d->capturing && !d->uncapturable[0])
      snprintf(d->uncapturable, sizeof d->uncapturable, "%s: %s", name, cudaGetErrorString(error));
    return cr__fail(error == cudaErrorMemoryAllocation ? CR_ENOMEM : CR_EDEVICE, "%s: %s", name,
                    cudaGetErrorString(error));
  }
  if (d && !d->fault[0]) {
    char before[300] = "";
    size_t used = 0;
    for (unsigned i = 0; i < CRK_RECENT && used < sizeof before; i++) {
      const char *r = d->recent[(d->recent_next + i) % CRK_RECENT];
      if (r)
        used += (size_t)snprintf(before + used, sizeof before - used, "%s%s", used ? ", " : "", r);
    }
    snprintf(d->fault, sizeof d->fault,
             "the card failed: %s; noticed in %s%s%s (the last operations were: %s); "
             "cr.cuda.reset() restarts the card",
             cudaGetErrorString(error), name,
             d->blocking ? "" : ", caused by it or an earlier operation",
             d->blocking ? "" : "; CR_CUDA_BLOCKING=1 tells which", before);
  }
  return cr__fail(CR_EDEVICE, "%s: %s", name, d ? d->fault : cudaGetErrorString(error));
}

/* The runtime's last error belongs to the thread. The error of a failed card must not be taken for
 * that of another card, so the other one is queried itself. */
static bool another_failed(const crk_device *d) {
  for (int i = 0; i < CRK_MAX_CARDS; i++)
    if (&cards[i] != d && cards[i].fault[0]) return true;
  return false;
}

int crk_launched(const char *name, crk_device *d) {
  d->recent[d->recent_next++ % CRK_RECENT] = name;
  cudaError_t e = cudaGetLastError();
  if (ruins_context(e) && !d->capturing && another_failed(d)) {
    e = cudaStreamQuery(d->stream);
    if (e == cudaErrorNotReady) e = cudaSuccess;
  }
  bool waits = d->blocking && !d->capturing;
  if (e == cudaSuccess && waits) e = cudaStreamSynchronize(d->stream);
  int rc = crk_check(name, d, e);
  return rc >= 0 && waits ? crk_index_error_take(d) : rc;
}

int crk_may_wait(const char *name, crk_device *d) {
  if (!d->capturing) return CR_OK;
  if (!d->uncapturable[0])
    snprintf(d->uncapturable, sizeof d->uncapturable, "%s has to wait for the card", name);
  return cr__fail(CR_EUNSUPPORTED, "%s: it has to wait for the card, so it cannot be recorded",
                  name);
}

static int start(const char *name, crk_device *d, int card) {
  cudaDeviceProp p;
  CRK_TRY(name, NULL, cudaSetDevice(card));
  CRK_TRY(name, NULL, cudaGetDeviceProperties(&p, card));
  if (p.major < 8)
    return cr__fail(CR_EUNSUPPORTED,
                    "%s: %s has compute capability %d.%d; 8.0 (Ampere) or newer is needed", name,
                    p.name, p.major, p.minor);
  int least = 0, greatest = 0;
  CRK_TRY(name, NULL, cudaDeviceGetStreamPriorityRange(&least, &greatest));
  for (int i = 0; i < CRK_STREAMS; i++) {
    CRK_TRY(name, NULL,
            cudaStreamCreateWithPriority(&d->streams[i], cudaStreamNonBlocking,
                                         i == 0 ? least : greatest));
    CRK_TRY(name, NULL, cudaEventCreateWithFlags(&d->order[i], cudaEventDisableTiming));
  }
  d->stream = d->streams[crk_stream];
  d->device = CR_CUDA + card;
  d->card = card;
  d->major = p.major;
  d->minor = p.minor;
  d->multiprocessors = p.multiProcessorCount;
  d->shared_memory = (int)p.sharedMemPerBlockOptin;
  snprintf(d->name, sizeof d->name, "%s", p.name);
  d->fault[0] = 0;
  if (!d->generation) {
    d->search = 1;
    d->fusion = CRK_FUSE_ALL;
    d->blocking = crk_switch_value(CRK_SWITCH_CUDA_BLOCKING) == 1;
  }
  d->context++;
  d->generation++;
  d->started = true;
  return CR_OK;
}

/* A card of this machine, which need not be started; NULL if there is none of this number. */
static crk_device *card_of(const char *name, int32_t device) {
  int card = device - CR_CUDA, n = 0;
  if (card < 0 || card >= CRK_MAX_CARDS) {
    cr__fail(CR_EDEVICE, "%s: there is no card %d", name, card);
    return NULL;
  }
  crk_device *d = &cards[card];
  if (d->started) return d;
  if (crk_switches_check(name) < 0) return NULL;
  cudaError_t e = cudaGetDeviceCount(&n);
  if (e != cudaSuccess) {
    cudaGetLastError();
    cr__fail(CR_EDEVICE, "%s: no card can be used: %s", name, cudaGetErrorString(e));
    return NULL;
  }
  if (card >= n) {
    cr__fail(CR_EDEVICE, "%s: there is no card cuda:%d; this machine has %d", name, card, n);
    return NULL;
  }
  d->card = card;
  return d;
}

crk_device *crk_device_get(const char *name, int32_t device) {
  crk_device *d = card_of(name, device);
  if (!d) return NULL;
  if (!d->started) return start(name, d, d->card) < 0 ? NULL : d;
  if (d->fault[0]) {
    cr__fail(CR_EDEVICE, "%s: %s", name, d->fault);
    return NULL;
  }
  cudaSetDevice(d->card); /* for the calling thread; costs nothing if it is current already */
  return d;
}

/* ---- the table's entries for the device itself ---- */

static int32_t device_count(void) {
  int n = 0;
  cudaError_t e = cudaGetDeviceCount(&n);
  if (e == cudaErrorNoDevice) {
    cudaGetLastError();
    return 0;
  }
  CRK_TRY("device_count", NULL, e);
  return n < CRK_MAX_CARDS ? n : CRK_MAX_CARDS;
}

static int device_info(int32_t device, cr_device_info *out) {
  crk_device *d = crk_device_get("device_info", device);
  if (!d) return CR_EDEVICE;
  memset(out, 0, sizeof *out);
  snprintf(out->name, sizeof out->name, "%s", d->name);
  out->major = d->major;
  out->minor = d->minor;
  out->multiprocessors = d->multiprocessors;
  size_t free_bytes = 0, total = 0;
  CRK_TRY("device_info", d, cudaMemGetInfo(&free_bytes, &total));
  out->memory_free = (int64_t)free_bytes;
  out->memory_total = (int64_t)total;
  cudaDriverGetVersion(&out->driver);
  cudaRuntimeGetVersion(&out->runtime);
  out->cublas = (int64_t)cublasLtGetVersion();
  out->cudnn = (int64_t)cudnnGetVersion();
  return CR_OK;
}

static int device_option(int32_t device, const char *name, int64_t *value, int32_t set) {
  bool prepare = strcmp(name, "prepare") == 0; /* starts the card on the other thread */
  crk_device *d = (prepare ? card_of : crk_device_get)("device_option", device);
  if (!d) return CR_EDEVICE;
  if (prepare) {
    if (set && *value)
      crk_libraries_prepare(d);
    else
      crk_libraries_prepared(d);
    *value = d->lt && d->cudnn;
    return CR_OK;
  }
  struct {
    const char *name;
    int64_t *at, bits;
  } options[] = {{"tf32", &d->tf32, 1},
                 {"search", &d->search, 1},
                 {"blocking", &d->blocking, 1},
                 {"fp8_fast", &d->fp8_fast, 1},
                 {"fusion", &d->fusion, CRK_FUSE_ALL},
                 {"linear_bias", &d->fusion, CRK_FUSE_LINEAR},
                 {"linear_activation", &d->fusion, CRK_FUSE_LINEAR << 1},
                 {"linear_residual", &d->fusion, CRK_FUSE_LINEAR << 2},
                 {"linear_geglu", &d->fusion, CRK_FUSE_LINEAR_GEGLU},
                 {"conv_bias", &d->fusion, CRK_FUSE_CONV},
                 {"conv_activation", &d->fusion, CRK_FUSE_CONV << 1},
                 {"conv_residual", &d->fusion, CRK_FUSE_CONV << 2},
                 {"norm_bias", &d->fusion, CRK_FUSE_NORM_BIAS},
                 {"norm_silu", &d->fusion, CRK_FUSE_NORM_SILU},
                 {"norm_after", &d->fusion, CRK_FUSE_NORM_AFTER}};
  char names[300] = "";
  size_t used = 0;
  for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
    used +=
        (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", options[i].name);
    if (strcmp(options[i].name, name) != 0) continue;
    int64_t bits = options[i].bits, now = *options[i].at;
    if (set)
      *options[i].at = *value ? now | bits : now & ~bits;
    else
      *value = (now & bits) == bits;
    return CR_OK;
  }
  return cr__fail(CR_EINVAL, "device option: there is no '%s': %s", name, names);
}

static int device_synchronize(int32_t device) {
  crk_device *d = crk_device_get("synchronize", device);
  if (!d) return CR_EDEVICE;
  CR_TRY(crk_may_wait("synchronize", d));
  for (int i = 0; i < CRK_STREAMS; i++)
    CRK_TRY("synchronize", d, cudaStreamSynchronize(d->streams[i]));
  return crk_index_error_take(d);
}

static int32_t device_stream(int32_t stream) {
  if (stream < 0) return crk_stream;
  if (stream >= CRK_STREAMS)
    return cr__fail(CR_EINVAL, "stream: there is no stream %d, only 0 to %d", stream,
                    CRK_STREAMS - 1);
  if (crk_recording)
    return cr__fail(CR_EUNSUPPORTED, "stream: it cannot change during a recording");
  crk_stream = stream;
  for (int i = 0; i < CRK_MAX_CARDS; i++) cards[i].stream = cards[i].streams[stream];
  return stream;
}

/* Errors show at the next check: a wait that could not be queued is an error of the context. */
void crk_touch(cr_storage *s) {
  crk_device *d = &cards[s->device - CR_CUDA];
  if (!d->started || d->fault[0] || s->stream < 0 || s->stream >= CRK_STREAMS) return;
  cudaEventRecord(d->order[s->stream], d->streams[s->stream]);
  cudaStreamWaitEvent(d->stream, d->order[s->stream], 0);
  s->stream = crk_stream;
}

/* The time in microseconds of the monotonic clock, modulo 2^31. */
static int clock_reading(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int)(((int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000) & INT32_MAX);
}

static void CUDART_CB finish_job(cudaStream_t stream, cudaError_t status, void *arg) {
  char message[200] = "";
  int rc = CR_OK;
  if (status != cudaSuccess) {
    snprintf(message, sizeof message, "record: %s", cudaGetErrorString(status));
    rc = CR_EDEVICE;
  }
  for (int i = 0; i < CRK_MAX_CARDS * CRK_STREAMS && rc >= 0; i++) {
    const crk_device *d = &cards[i / CRK_STREAMS];
    if (!d->started || d->streams[i % CRK_STREAMS] != stream) continue;
    rc = crk_index_error_take(d);
    if (rc < 0) snprintf(message, sizeof message, "%s", cr_last_error());
  }
  cr__job_finish((int64_t)(intptr_t)arg, rc < 0 ? rc : clock_reading(), message);
}

/* The job's status is the time at which the stream reached it; its loop may learn of it much later.
 * A stream callback, not a host function: only the former also runs after a fault, and a job that
 * never ends would hang whoever awaits it. */
static int64_t device_record(int32_t device) {
  crk_device *d = crk_device_get("record", device);
  if (!d) return CR_EDEVICE;
  CR_TRY(crk_may_wait("record", d));
  int64_t job = cr__job_new();
  if (job < 0) return job;
  cudaError_t e = cudaStreamAddCallback(d->stream, finish_job, (void *)(intptr_t)job, 0);
  if (e != cudaSuccess) {
    int rc = crk_check("record", d, e);
    cr__job_finish(job, rc, cr_last_error());
  }
  return job;
}

void crk_at_reset(crk_forget *forget) { forget_memory = forget; }

/* Before a reset: forgets the data of a card that are kept outside its crk_device. */
static void forget(crk_device *d, bool fault) {
  if (forget_memory) forget_memory(d, fault);
  d->graphs = 0;
  d->graph_memory = false;
}

static int device_reset(int32_t device) {
  int card = device - CR_CUDA;
  if (card < 0 || card >= CRK_MAX_CARDS || !cards[card].started)
    return cr__fail(CR_EINVAL, "reset: card %d has not been used", card);
  crk_device *d = &cards[card];
  if (d->capturing) return cr__fail(CR_EINVAL, "reset: a recording is under way");
  crk_libraries_prepared(d);
  cudaSetDevice(card);
  /* A working card keeps its context, since a driver may be slow to give a process another one. The
   * libraries' plans stay; every tensor and recording is lost, as after a fault. */
  device_synchronize(device); /* drops index errors that were not reported */
  if (!d->fault[0] && device_synchronize(device) == CR_OK) {
    forget(d, false);
    d->generation++;
    return CR_OK;
  }
  forget(d, true);
  cudaDeviceReset(); /* it returns the old fault */
  cudaGetLastError();
  d->stream = NULL;
  memset(d->streams, 0, sizeof d->streams);
  memset(d->order, 0, sizeof d->order);
  d->lt = NULL;
  d->cudnn = NULL;
  d->capturing = false;
  d->started = false;
  memset(d->recent, 0, sizeof d->recent);
  char cause[sizeof d->fault];
  snprintf(cause, sizeof cause, "%s", d->fault);
  int rc = start("reset", d, card);
  /* The driver may still be cleaning up. */
  for (int i = 0; i < 20 && rc == CR_EDEVICE; i++) {
    usleep(50000);
    cudaDeviceReset();
    rc = start("reset", d, card);
  }
  if (rc == CR_OK || !cause[0]) return rc;
  /* Some drivers release a failed card only when the process ends. Everything else continues. */
  d->started = true;
  snprintf(d->fault, sizeof d->fault,
           "the driver returns the failed card only to a new process: start the program again "
           "(:restart at the prompt), or continue on the CPU");
  return cr__fail(CR_EDEVICE, "reset: %s", d->fault);
}

void crk_fill_device(cr__backend *b) {
  b->device_count = device_count, b->device_info = device_info;
  b->device_option = device_option, b->device_synchronize = device_synchronize;
  b->device_record = device_record, b->device_stream = device_stream;
  b->device_reset = device_reset;
}
