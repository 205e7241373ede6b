/* What the files of kernels/ share: a card's state, checks of CUDA's calls, and conversions of all
 * dtypes.
 *
 * A family is a folder: its kernels, then the launchers (crk_NAME), then crk_fill_FAMILY, which
 * enters them into the table of core/base/backend.h (kernels/table.cu). That header says what a
 * table entry may rely on.
 *
 * Invariants: work is queued on the stream in use (crk_device.stream). A storage belongs to the
 * stream that used it last; crk_ptr makes another stream wait for that one before it uses the
 * storage, so streams need no further care. A launcher never waits for the card unless its comment
 * says so, since it may run under capture. Scratch memory comes from cr__storage_new and may be
 * released as soon as the work that uses it is queued, because the allocator hands memory out in
 * stream order. Nothing that belongs to one generation of a card is kept between calls beyond a
 * reset of that card. */
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

/* The steps that may be fused into the kernel that computes a result, each an option of its own:
 * the bits of crk_device.fusion. */
enum {
  CRK_FUSE_LINEAR = 1, /* bias; activation and residual are the next two bits */
  CRK_FUSE_CONV = 8,   /* the same three of a convolution */
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
  cudaStream_t stream; /* the one in use: streams[crk_stream] */
  cudaStream_t
      streams[CRK_STREAMS];       /* [0]: networks; [1]: work beside them, with higher priority */
  cudaEvent_t order[CRK_STREAMS]; /* events with which one stream waits for another */
  cublasLtHandle_t lt;            /* created on first use by crk_lt() */
  cudnnHandle_t cudnn; /* created on first use by crk_cudnn(), which binds it to `stream` */
  cudaStream_t cudnn_stream;
  int major, minor; /* compute capability */
  int multiprocessors;
  int shared_memory; /* the most that a block may have, in bytes */
  char name[256];
  uint64_t context;       /* counts starts of the card; plans and descriptors belong to one */
  uint64_t generation;    /* counts resets and starts; memory and recordings belong to one */
  bool capturing;         /* between graph_begin and graph_end */
  char uncapturable[300]; /* why the recording has failed; "" if it has not */
  char fault[600];        /* why every call fails until a reset; "" if the card works */
  /* The names of the last operations that were queued; they are reported with a fault that is only
   * noticed later. */
  const char *recent[CRK_RECENT];
  unsigned recent_next;
  bool graph_memory; /* memory comes from the pools that all recordings share */
  int32_t graphs;    /* live recordings; while there is one, those pools are kept */
  int64_t tf32, search, blocking,
      fusion;       /* options of cr_device_option; fusion has bits, CRK_FUSE_* */
  int64_t fp8_fast; /* an option, too */
} crk_device;

/* The card's state. The card is started on first use and made current for the calling thread. NULL,
 * with "NAME: why" set, if it cannot be used. */
crk_device *crk_device_get(const char *name, int32_t device);
/* Turns a CUDA error into CR_EDEVICE (CR_ENOMEM for memory) with "NAME: why" set. An error that
 * destroys the context is remembered, and every call fails from then on. Success is CR_OK. */
int crk_check(const char *name, crk_device *d, cudaError_t error);
/* The same for the kernels that were just launched. Every launcher ends with it. */
int crk_launched(const char *name, crk_device *d);
/* Fails if a recording is under way: for operations that have to wait for the card. The recording
 * then fails, too. */
int crk_may_wait(const char *name, crk_device *d);
/* The libraries' handles; NULL with a message set if the library fails. */
cublasLtHandle_t crk_lt(const char *name, crk_device *d);
cudnnHandle_t crk_cudnn(const char *name, crk_device *d);

#define CRK_TRY(name, d, call)                                                                     \
  do {                                                                                             \
    int crk_rc = crk_check((name), (d), (call));                                                   \
    if (crk_rc < 0) return crk_rc;                                                                 \
  } while (0)

/* Declares d, the card of a tensor; returns CR_EDEVICE from the function if it cannot be used. */
#define CRK_DEVICE(d, name, t)                                                                     \
  crk_device *d = crk_device_get((name), (t)->device);                                             \
  if (!d) return CR_EDEVICE

/* The number of the recording under way, 0 if there is none; memory_new writes it into each
 * storage. crk_graph_note records that the recording uses a storage (graph.cu). */
extern uint64_t crk_recording;
void crk_graph_note(cr_storage *s);

/* The number of the stream in use, on every card. crk_touch makes that stream wait for all work
 * that the storage's own stream has so far, and hands the storage over to it. */
extern int32_t crk_stream;
void crk_touch(cr_storage *s);

/* Element 0 of a tensor on a card. This is the only way to a tensor's data, so a recording retains
 * every storage that it uses. */
static inline void *crk_ptr(const cr_tensor *t) {
  if (crk_recording)
    crk_graph_note(t->storage);
  else if (t->storage->stream != crk_stream)
    crk_touch(t->storage);
  return (char *)t->storage->data + t->offset * cr_dtype_size(t->dtype);
}

/* How many of the steps bias, activation and residual, in this order, may be fused: those before
 * the first that is wanted and whose option is off. `family` is the bit of the bias. */
static inline int crk_fused_steps(const crk_device *d, int family, bool bias, bool act,
                                  bool residual) {
  const bool wanted[3] = {bias, act, residual};
  for (int i = 0; i < 3; i++)
    if (wanted[i] && !(d->fusion & family << i)) return i;
  return 3;
}

/* Whether p is a multiple of `bytes`, and stays one after any of the n strides `steps`, in elements
 * of `size` bytes. */
static inline bool crk_aligned(const void *p, int n, const int64_t *steps, int64_t size,
                               int64_t bytes) {
  bool yes = (int64_t)(uintptr_t)p % bytes == 0;
  for (int i = 0; i < n; i++) yes = yes && steps[i] * size % bytes == 0;
  return yes;
}

static inline int64_t crk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A function of the memory family that runs when a card is about to be reset: its memory is lost,
 * and after a fault (`fault`) so is the context with all that belongs to it. */
typedef void crk_forget(crk_device *d, bool fault);
void crk_at_reset(crk_forget *forget);

/* ---- numbers: every dtype to float and back, as the CPU's operations convert ---- */
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

/* CR_ACT_* of one number; activation.h leaves two float forms to each device. */
__device__ __forceinline__ float cr__act_silu_f32(float x, float) { return crk_silu(x); }
__device__ __forceinline__ float cr__act_gelu_f32(float x, float) { return crk_gelu(x); }
__device__ __forceinline__ float crk_act(float x, int act, float slope) { CR__ACT_SWITCH(f32); }
__device__ __forceinline__ double crk_act(double x, int act, double slope) {
  return cr__act_f64(x, act, slope);
}

/* N elements of T that are loaded and stored at once, at most 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N) crk_pack { T v[N]; };

template <typename F> __device__ __forceinline__ float crk_warp_reduce(float x, F op) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x = op(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
#endif

/* One case of a switch over dtypes: runs statements with T as the C++ type. */
#define CRK_CASE(dtype, type, ...)                                                                 \
  case dtype: {                                                                                    \
    typedef type T;                                                                                \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }

/* Runs statements with T as the C++ type of a float dtype that the kernels handle (f32, f16, bf16);
 * other dtypes fail with CR_EUNSUPPORTED. */
#define CRK_FLOAT_TYPES(name, dtype, ...)                                                          \
  switch (dtype) {                                                                                 \
    CRK_CASE(CR_F32, float, __VA_ARGS__)                                                           \
    CRK_CASE(CR_F16, __half, __VA_ARGS__)                                                          \
    CRK_CASE(CR_BF16, __nv_bfloat16, __VA_ARGS__)                                                  \
  default:                                                                                         \
    return cr__fail(CR_EUNSUPPORTED, "%s: %s is not supported on a card", (name),                  \
                    cr_dtype_name(dtype));                                                         \
  }

#endif
