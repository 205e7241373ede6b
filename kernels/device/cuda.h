/* What the files of kernels/ share: a card's state, checks of CUDA's calls, numbers of all dtypes.
 *
 * A family is a folder: its kernels, then the launchers (crk_NAME), then crk_fill_FAMILY, which
 * enters them into the table of core/base/backend.h (kernels/table.cu). What a table entry may rely
 * on stands there.
 *
 * Invariants: work is queued on the stream in use (crk_device.stream). A storage belongs to the
 * stream that touched it last; crk_ptr makes another stream wait for that one before it touches it,
 * so streams need no further care. A launcher never waits unless its comment says so, since it may
 * run under capture; scratch memory comes from cr__storage_new and may be released as soon as the
 * work that uses it is queued (the allocator hands memory out in stream order); nothing is kept
 * between calls that belongs to one generation of a card and outlives a reset of it. */
#ifndef CRK_CUDA_H
#define CRK_CUDA_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cudnn.h>

#include "base/activation.h"
#include "base/backend.h"

enum { CRK_MAX_CARDS = 16, CRK_STREAMS = 2, CRK_RECENT = 6 };

/* What operations take along in the pass that makes their result, each an option of its own: the
 * bits of crk_device.fusion. */
enum {
  CRK_FUSE_LINEAR = 1, /* bias, activation, residual: this bit and the two above it */
  CRK_FUSE_CONV = 8,   /* the same */
  CRK_FUSE_NORM_BIAS = 64,
  CRK_FUSE_NORM_SILU = 128,
  CRK_FUSE_NORM_AFTER = 256,
  CRK_FUSE_LINEAR_GEGLU = 512,
  CRK_FUSE_ALL = 1023
};

typedef struct crk_device {
  int32_t device; /* CR_CUDA + the card's number */
  int card;
  bool started;
  cudaStream_t stream;               /* the one in use: streams[crk_stream] */
  cudaStream_t streams[CRK_STREAMS]; /* [0]: networks; [1]: what runs beside them, served first */
  cudaEvent_t order[CRK_STREAMS];    /* for waits of one stream for another */
  cublasLtHandle_t lt;               /* made on first use: crk_lt() */
  cudnnHandle_t cudnn; /* made on first use: crk_cudnn(), which binds it to `stream` */
  cudaStream_t cudnn_stream;
  int major, minor; /* compute capability */
  int multiprocessors;
  int shared_memory; /* most that a block may have, bytes */
  char name[256];
  uint64_t context;       /* counts starts: plans and descriptors belong to one */
  uint64_t generation;    /* counts resets and starts: memory and recordings belong to one */
  bool capturing;         /* between graph_begin and graph_end */
  char uncapturable[300]; /* why the recording is spoilt; "" if it is not */
  char fault[600];        /* why every call fails until a reset; "" if none does */
  /* The names of the last operations that were queued, for a fault that is only noticed later. */
  const char *recent[CRK_RECENT];
  unsigned recent_next;
  bool graph_memory; /* memory comes from the pools that recordings share */
  int32_t graphs;    /* recordings that live: while there is one, those pools are kept */
  int64_t tf32, search, blocking, fusion; /* cr_device_option; fusion: bits, CRK_FUSE_* */
  int64_t fp8_fast;                       /* the same */
} crk_device;

/* The card's state, started on first use and made current for the calling thread; NULL, with
 * "NAME: why" set, if it cannot be used. */
crk_device *crk_device_get(const char *name, int32_t device);
/* Turns a CUDA error into CR_EDEVICE (CR_ENOMEM for memory) with "NAME: why" set; an error that
 * ruins the context is remembered, and every call fails from then on. Success is CR_OK. */
int crk_check(const char *name, crk_device *d, cudaError_t error);
/* The same for what was just launched: ends a launcher. */
int crk_launched(const char *name, crk_device *d);
/* Fails if work is being recorded: for operations that have to wait. Spoils the recording. */
int crk_may_wait(const char *name, crk_device *d);
/* Library handles; NULL with a message set if the library fails. */
cublasLtHandle_t crk_lt(const char *name, crk_device *d);
cudnnHandle_t crk_cudnn(const char *name, crk_device *d);

#define CRK_TRY(name, d, call)                                                                     \
  do {                                                                                             \
    int crk_rc = crk_check((name), (d), (call));                                                   \
    if (crk_rc < 0) return crk_rc;                                                                 \
  } while (0)

/* The card of a tensor, or return CR_EDEVICE. */
#define CRK_DEVICE(d, name, t)                                                                     \
  crk_device *d = crk_device_get((name), (t)->device);                                             \
  if (!d) return CR_EDEVICE

/* The number of the recording under way, 0 if there is none; memory_new writes it into each
 * storage. crk_graph_note notes that the recording uses a storage (graph.cu). */
extern uint64_t crk_recording;
void crk_graph_note(cr_storage *s);

/* The number of the stream in use, on every card. crk_touch makes it wait for all that the
 * storage's stream has to do so far, and hands it the storage. */
extern int32_t crk_stream;
void crk_touch(cr_storage *s);

/* Element 0 of a tensor on a card. The only way to it: a recording holds what it is asked for. */
static inline void *crk_ptr(const cr_tensor *t) {
  if (crk_recording)
    crk_graph_note(t->storage);
  else if (t->storage->stream != crk_stream)
    crk_touch(t->storage);
  return (char *)t->storage->data + t->offset * cr_dtype_size(t->dtype);
}

/* How many of the steps bias, activation and residual, in this order, may be part of a product:
 * those before the first that is wanted and switched off. `family`: the bit of the bias. */
static inline int crk_fused_steps(const crk_device *d, int family, bool bias, bool act,
                                  bool residual) {
  const bool wanted[3] = {bias, act, residual};
  for (int i = 0; i < 3; i++)
    if (wanted[i] && !(d->fusion & family << i)) return i;
  return 3;
}

/* Whether p, and all places that lie n steps (of elements of `size` bytes) from it, are at
 * multiples of `bytes`. */
static inline bool crk_aligned(const void *p, int n, const int64_t *steps, int64_t size,
                               int64_t bytes) {
  bool yes = (int64_t)(uintptr_t)p % bytes == 0;
  for (int i = 0; i < n; i++) yes = yes && steps[i] * size % bytes == 0;
  return yes;
}

static inline int64_t crk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* What the floor above does when a card is about to be reset: its memory is lost, and after a fault
 * (`fault`) the context with all that belongs to it. */
typedef void crk_forget(crk_device *d, bool fault);
void crk_at_reset(crk_forget *forget);

/* ---- numbers: every dtype as float and back, as the CPU's operations convert ---- */
#ifdef __CUDACC__
template <typename T> __device__ __forceinline__ float crk_float(T x) { return (float)x; }
template <> __device__ __forceinline__ float crk_float(__half x) { return __half2float(x); }
template <> __device__ __forceinline__ float crk_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <typename T> __device__ __forceinline__ T crk_from(float x) { return (T)x; }
template <> __device__ __forceinline__ __half crk_from(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 crk_from(float x) {
  return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float crk_silu(float x) { return x / (1.0f + __expf(-x)); }
/* Exact GELU. */
__device__ __forceinline__ float crk_gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

/* CR_ACT_* of one number: the float forms that activation.h leaves to us, and all. */
__device__ __forceinline__ float cr__act_silu_f32(float x, float) { return crk_silu(x); }
__device__ __forceinline__ float cr__act_gelu_f32(float x, float) { return crk_gelu(x); }
__device__ __forceinline__ float crk_act(float x, int act, float slope){
    CR__ACT_SWITCH(f32)} __device__ __forceinline__
    double crk_act(double x, int act, double slope) {
  return cr__act_f64(x, act, slope);
}

/* N elements of T moved at once, at most 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N) crk_pack { T v[N]; };

template <typename F> __device__ __forceinline__ float crk_warp_reduce(float x, F op) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x = op(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
#endif

/* A case of a switch over dtypes: statements with T as the C++ type. */
#define CRK_CASE(dtype, type, ...)                                                                 \
  case dtype: {                                                                                    \
    typedef type T;                                                                                \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }

/* Runs statements with T as the C++ type of a float dtype that the kernels take (f32, f16, bf16);
 * other dtypes fail with CR_EUNSUPPORTED. */
#define CRK_FLOAT_TYPES(name, dtype, ...)                                                          \
  switch (dtype) {                                                                                 \
    CRK_CASE(CR_F32, float, __VA_ARGS__)                                                           \
    CRK_CASE(CR_F16, __half, __VA_ARGS__)                                                          \
    CRK_CASE(CR_BF16, __nv_bfloat16, __VA_ARGS__)                                                  \
  default:                                                                                         \
    return cr__fail(CR_EUNSUPPORTED, "%s: %s is not handled on a card", (name),                    \
                    cr_dtype_name(dtype));                                                         \
  }

#endif
