/* What the files of core/ and the device backends share, and nobody else includes.
 *
 * Invariants: only cr__retain and cr__release change a storage's reference count (it is atomic,
 * since media threads hold tensors too). Public operations validate, make `out` by cr__out and then
 * call the table of the tensors' device, so a backend's function may take its arguments as
 * checked. */
#ifndef CR_INTERNAL_H
#define CR_INTERNAL_H

#include <stdbool.h>

#include "base/operations.h"

/* CUDA files are compiled as C++, which has no _Atomic. They never access such a field. */
#ifdef __cplusplus
#define CR_ATOMIC(type) type
extern "C" {
#else
#define CR_ATOMIC(type) _Atomic(type)
#endif

#define CR_EXPORT __attribute__((visibility("default")))
#define CR_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* ---- errors ----
 * cr__fail sets the thread's message and returns `code`: return cr__fail(CR_EINVAL, "matmul:
 * ..."). */
int cr__fail(int code, const char *format, ...) CR_PRINTF(2, 3);
/* Returns the code that belongs to the thread's message, for callers of functions that can only
 * return NULL. */
int cr__last_code(void);
/* The same with ": " and strerror(errno) appended. */
int cr__fail_errno(int code, const char *format, ...) CR_PRINTF(2, 3);
/* The first counts an allocation that failed inside FFmpeg (core/allocations.c), the second returns
 * their number. */
void cr__allocation_failed(void);
int64_t cr__allocations_failed(void);
/* Returns a tensor's shape as "[2 3 4]" in one of the thread's buffers, which is valid for the next
 * 8 calls. */
const char *cr__shape(const cr_tensor *t);
/* Fails because `number`, an element of an index, is out of range for a dimension (from 0) of
 * `shape`. */
int cr__index_out_of_range(const char *name, const char *shape, int32_t dim, int32_t size,
                           int64_t number);

#define CR_TRY(call)                                                                               \
  do {                                                                                             \
    int cr__rc = (call);                                                                           \
    if (cr__rc < 0) return cr__rc;                                                                 \
  } while (0)

/* ---- storage ---- */
struct cr_storage {
  CR_ATOMIC(int32_t) refs;
  int32_t device;
  void *data;                   /* on the device; NULL after a reset of the device */
  int64_t bytes;                /* requested by the tensor */
  int64_t allocated;            /* size of the block; 0 for foreign memory */
  void (*release)(void *owner); /* for foreign memory (mapped files); may be NULL */
  void *owner;
  int32_t stream;    /* of a GPU: the one that used it last */
  uint64_t recorded; /* of a GPU: the number of the graph capture that made it; 0: none */
};
/* Allocates a storage of at least `bytes`, aligned to 64 bytes on a CPU and 256 on a GPU. NULL with
 * the message set if there is no memory. */
cr_storage *cr__storage_new(int64_t bytes, int32_t device);
/* Makes a storage over foreign memory. release(owner) is called when the last reference is dropped,
 * or at once on failure. */
cr_storage *cr__storage_wrap(void *data, int64_t bytes, void (*release)(void *), void *owner);
/* Returns the tag of cr_memory_set_tag under which allocations are counted now; "" if there is
 * none. */
const char *cr__memory_tag(void);
/* Sets by how much the live memory of GPUs may grow before cr_memory_pressure() asks Lua to collect
 * garbage. */
void cr__memory_step(int64_t bytes);
void cr__retain(cr_storage *s);
void cr__release(cr_storage *s);

/* ---- tensors ---- */
/* Fills `out` as a view of the storage, and retains it. */
void cr__tensor_set(cr_tensor *out, cr_storage *s, int32_t dtype, int32_t rank,
                    const int32_t *shape, const int64_t *stride, int64_t offset);
/* Views that share t's storage without retaining it. cr__part: the indices `first` ... `first +
 * size - 1` of dimension `dim`. cr__inside: the part of t that has x's shape and begins at the
 * indices `before` (t has x's rank, and is not smaller). */
cr_tensor cr__part(const cr_tensor *t, int32_t dim, int32_t first, int32_t size);
cr_tensor cr__inside(const cr_tensor *t, const cr_tensor *x, const int32_t *before);
/* Makes sure that `out` has this shape, dtype and device: allocates it if it is empty, checks it
 * otherwise. `name` is the operation, for messages. */
int cr__out(const char *name, cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
            int32_t device);
/* Fail unless t is alive; cr__float also checks that its dtype is a float. */
int cr__alive(const char *name, const cr_tensor *t);
/* cr__alive at the start of an operation, with a check for interruption before it. */
int cr__begin(const char *name, const cr_tensor *t);
int cr__float(const char *name, const cr_tensor *t);
static inline bool cr__is_float(int32_t dtype) { return dtype <= CR_F64; }
/* Returns the address of element 0 of a CPU tensor. */
static inline void *cr__ptr(const cr_tensor *t) {
#define CR__SIZE(DTYPE, NAME, SIZE) SIZE,
  static const int8_t size[CR_DTYPES] = {CR_DTYPE_TABLE(CR__SIZE)};
#undef CR__SIZE
  return (char *)t->storage->data + t->offset * size[t->dtype];
}
/* Returns x if it is contiguous and has `dtype` already, else a converted copy in *temp, which must
 * be empty and which the caller frees with cr_free. NULL on failure. */
const cr_tensor *cr__dense(const cr_tensor *x, int32_t dtype, cr_tensor *temp);
/* Returns 1, with the message set, if an interruption is pending. Every operation calls it on
 * entry. */
int cr__check_interrupt(const char *name);

/* ---- conversion of 16-bit floats: n elements, at any alignment ---- */
void cr__to_f32(float *out, const void *x, int32_t dtype, int64_t n);   /* from f16, bf16, f32 */
void cr__from_f32(void *out, const float *x, int32_t dtype, int64_t n); /* rounds to nearest even */
float cr__half_to_float(uint16_t h);
uint16_t cr__float_to_half(float f);

/* Returns how many of n more threads could be started now. It is called before a library that ends
 * the process if it cannot start its threads. */
int32_t cr__threads_startable(int32_t n);

/* memcpy on all threads. */
void cr__copy_bytes(void *out, const void *x, int64_t bytes);

/* ---- jobs ----
 * cr__job_run runs work(arg) on libuv's thread pool, then appends a completion with its return
 * value and the worker's cr_last_error(). It returns the job's number. A thread of the caller's own
 * uses cr__job_new and cr__job_finish instead; any thread may call the latter. */
int64_t cr__job_run(int (*work)(void *arg), void *arg);
int64_t cr__job_new(void);
void cr__job_finish(int64_t job, int32_t status, const char *message);
/* Wakes up a loop that waits for events. Any thread, async-signal-safe. */
void cr__loop_wake(void);
/* Sets the line that the watchdog writes to stderr before it ends the process: a constant string,
 * or NULL for none. */
void cr__interrupt_message(const char *line);
/* Deletes the files of cr_cleanup_add now. */
void cr__cleanup_files(void);

#ifdef __cplusplus
}
#endif

#endif
