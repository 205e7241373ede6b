/* What the files of core/ and the device backends share and nobody else sees.
 *
 * Invariants: a storage's refcount is changed only through cr__retain and cr__release (atomic:
 * media threads hold tensors too); public operations validate, allocate `out` by cr__out and then
 * call the table of the tensors' device, so a backend function may take its arguments as checked.
 */
#ifndef CR_INTERNAL_H
#define CR_INTERNAL_H

#include <stdbool.h>

#include "base/operations.h"

/* The kernels' files are C++ to the compiler, which has no _Atomic; they never touch such a field.
 */
#ifdef __cplusplus
#define CR_ATOMIC(type) type
extern "C" {
#else
#define CR_ATOMIC(type) _Atomic(type)
#endif

#define CR_EXPORT __attribute__((visibility("default")))
#define CR_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* ---- errors: sets the thread's message and returns `code`, so that callers can
 *      `return cr__fail(CR_EINVAL, "matmul: ...")`. ---- */
int cr__fail(int code, const char *format, ...) CR_PRINTF(2, 3);
/* The code that went with the thread's message, for functions that can only return NULL. */
int cr__last_code(void);
/* Same with ": strerror(errno)" appended. */
int cr__fail_errno(int code, const char *format, ...) CR_PRINTF(2, 3);
/* Counts an allocation that failed inside FFmpeg (core/allocations.c); how many there were. */
void cr__allocation_failed(void);
int64_t cr__allocations_failed(void);
/* "[2 3 4]" of a tensor, in one of a few thread-local buffers: valid for the next 8 calls. */
const char *cr__shape(const cr_tensor *t);
/* That a number in an index names no place of a dimension (from 0) of `shape`. */
int cr__no_row(const char *name, const char *shape, int32_t dim, int32_t size, int64_t number);

#define CR_TRY(call)                                                                               \
  do {                                                                                             \
    int cr__rc = (call);                                                                           \
    if (cr__rc < 0) return cr__rc;                                                                 \
  } while (0)

/* ---- storage ---- */
struct cr_storage {
  CR_ATOMIC(int32_t) refs;
  int32_t device;
  void *data;                   /* on the device; NULL when a reset of the device took it away */
  int64_t bytes;                /* usable */
  int64_t allocated;            /* of the block, 0 for memory that is not ours */
  void (*release)(void *owner); /* for memory that is not ours (mapped files); may be NULL */
  void *owner;
  int32_t stream;    /* of a card: which touched it last */
  uint64_t recorded; /* of a card: number of the recording it was made in, 0: none */
};
/* A new storage of at least `bytes`; NULL (message set) if there is no memory. 64-byte aligned on a
 * CPU, 256-byte on a card. */
cr_storage *cr__storage_new(int64_t bytes, int32_t device);
/* Over foreign memory; release(owner) runs when the last reference goes, on failure at once. */
cr_storage *cr__storage_wrap(void *data, int64_t bytes, void (*release)(void *), void *owner);
/* What memory taken now is for: cr_memory_set_tag's name, "" if none. */
const char *cr__memory_tag(void);
/* Says by how much the memory live on cards may grow before cr_memory_pressure() asks Lua to
 * collect. */
void cr__memory_step(int64_t bytes);
void cr__retain(cr_storage *s);
void cr__release(cr_storage *s);

/* ---- tensors ---- */
/* Fills `out` as a view; retains the storage. */
void cr__tensor_set(cr_tensor *out, cr_storage *s, int32_t dtype, int32_t rank,
                    const int32_t *shape, const int64_t *stride, int64_t offset);
/* Views that share t's storage without retaining it: `size` of dimension `dim` from `first` on; and
 * what x covers in t, of its rank and larger, from `before` on. */
cr_tensor cr__part(const cr_tensor *t, int32_t dim, int32_t first, int32_t size);
cr_tensor cr__inside(const cr_tensor *t, const cr_tensor *x, const int32_t *before);
/* Makes sure `out` is a tensor of this shape, dtype and device: allocates if it is empty, checks it
 * otherwise. `name` is the operation for messages. */
int cr__out(const char *name, cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
            int32_t device);
/* Fails unless t is alive (and, with floats, of a float dtype). */
int cr__alive(const char *name, const cr_tensor *t);
/* The same at the beginning of an operation, which an interrupt keeps from beginning. */
int cr__begin(const char *name, const cr_tensor *t);
int cr__float(const char *name, const cr_tensor *t);
static inline bool cr__is_float(int32_t dtype) { return dtype <= CR_F64; }
/* Element 0 of a CPU tensor. */
static inline void *cr__ptr(const cr_tensor *t) {
#define CR__SIZE(DTYPE, NAME, SIZE) SIZE,
  static const int8_t size[CR_DTYPES] = {CR_DTYPE_TABLE(CR__SIZE)};
#undef CR__SIZE
  return (char *)t->storage->data + t->offset * size[t->dtype];
}
/* x if it is a contiguous tensor of `dtype` already, else a converted copy in *temp (which must be
 * empty and is the caller's to cr_free); NULL on failure. */
const cr_tensor *cr__dense(const cr_tensor *x, int32_t dtype, cr_tensor *temp);
/* 1 if an interruption is pending (message set): every operation asks on entry. */
int cr__check_interrupt(const char *name);

/* ---- half-precision conversion, n elements, unaligned is fine ---- */
void cr__to_f32(float *out, const void *x, int32_t dtype, int64_t n);   /* f16, bf16, f32 */
void cr__from_f32(void *out, const float *x, int32_t dtype, int64_t n); /* round to nearest even */
float cr__half_to_float(uint16_t h);
uint16_t cr__float_to_half(float f);

/* How many of n more threads could be started now: for who starts them by libraries that end the
 * process where they cannot. */
int32_t cr__threads_startable(int32_t n);

/* memcpy by all threads. */
void cr__copy_bytes(void *out, const void *x, int64_t bytes);

/* ---- jobs: runs work(arg) on libuv's pool, then appends a completion with its return value and
 *      the worker's cr_last_error(). Returns the job number. Any thread may call cr__job_finish
 *      for a job made with cr__job_new (a thread of one's own). ---- */
int64_t cr__job_run(int (*work)(void *arg), void *arg);
int64_t cr__job_new(void);
void cr__job_finish(int64_t job, int32_t status, const char *message);
/* Makes a loop that sleeps take another turn. Any thread, async-signal-safe. */
void cr__loop_wake(void);
/* What the watchdog writes to stderr before it ends the process; a constant string, NULL: nothing.
 */
void cr__interrupt_farewell(const char *line);
/* Deletes the files of cr_cleanup_add now. */
void cr__cleanup_files(void);

#ifdef __cplusplus
}
#endif

#endif
