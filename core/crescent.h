/* Crescent: the one public header of the runtime, and its manual.
 *
 * It compiles as C, C++ and CUDA, and LuaJIT's ffi.cdef reads this very file, so every signature
 * exists once. That is why it holds no macros, inline functions or function pointers, and why
 * constants are enums. The reader in Lua only leaves out the lines that begin with '#' and the C++
 * guard.
 *
 * These conventions hold for every function unless its comment says otherwise:
 * - A function returns a value >= 0, or a negative CR_E* code and one sentence in cr_last_error()
 *   of the calling thread. No function exits, prints or longjmps.
 * - `out` is a cr_tensor that the caller owns. If out->storage is NULL, the function allocates a
 *   new tensor in it. Otherwise `out` must already have the result's shape, dtype and device (any
 *   strides) and is overwritten. `out` must not overlap an input unless the comment allows it.
 * - A function reads the cr_tensor structs of its inputs during the call only. C keeps a reference
 *   to the storage, never to the struct.
 * - Dimensions count from 0 here (from 1 in Lua). Letters: N batch, C channels, F frames, H height,
 *   W width, B batch of videos or sequences, T tokens, D features, h heads, d head size. The layout
 *   is channels-last: images [N H W C], video [B F H W C], tokens [B T D].
 * - Indices that are elements of a tensor (results of ARGMAX, cr_sort and cr_nonzero, the index of
 *   cr_gather) count from 1, as in Lua; negative ones count from -1 backwards.
 * - Optional arguments may be NULL where the comment says so.
 * - Tensor functions are called from one thread, the one that runs Lua. A function that other
 *   threads may call says "Any thread". */
#ifndef CRESCENT_H
#define CRESCENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---------------------------------------------------------------------------------- */

enum {
  CR_OK = 0,
  CR_EINVAL = -1,       /* an argument is wrong: a shape, a dtype, an option */
  CR_ENOMEM = -2,       /* memory is exhausted */
  CR_EIO = -3,          /* a system call failed; the message has the system's reason */
  CR_EFORMAT = -4,      /* a file is damaged or not what it claims to be */
  CR_EUNSUPPORTED = -5, /* the request is valid, but not implemented here */
  CR_EDEVICE = -6,      /* the device failed, or does not exist */
  CR_EINTERRUPT = -7,   /* cr_interrupt() was called, or Ctrl-C was pressed */
  CR_ECLOSED = -8       /* the object is closed or freed */
};

/* Returns the sentence for the calling thread's last failed call, or "" if there was none. It names
 * the operation and the shapes: "matmul: inner sizes differ: [2 3] x [2 3]". The pointer is valid
 * until the thread's next failing call. */
const char *cr_last_error(void);

/* Makes n bytes that came from a file fit for one line of a message: control characters are
 * escaped, and a text longer than a line is truncated. The pointer is valid until this thread has
 * called the function eight more times. */
const char *cr_printable(const char *bytes, size_t n);

/* Returns the version as MAJOR.MINOR.PATCH. */
const char *cr_version(void);

/* ---- interruption ---------------------------------------------------------------------------- */

/* Makes every operation that starts from now on return CR_EINTERRUPT, until cr_interrupt_clear() is
 * called. Async-signal-safe. Any thread. */
void cr_interrupt(void);
/* Returns 1 if cr_interrupt() was called since the last clear, else 0. Any thread. */
int cr_interrupted(void);
void cr_interrupt_clear(void);

/* Installs handlers that call cr_interrupt() on SIGINT and SIGTERM. If cr_interrupt_clear() is not
 * called within `grace_ms` milliseconds after the signal, a watchdog deletes the files named by
 * cr_cleanup_add() and ends the process with status 128 + signal, so a long operation cannot delay
 * Ctrl-C. grace_ms 0 disables the watchdog. */
int cr_interrupt_install(int32_t grace_ms);

/* Registers and unregisters a half-written output file, which is deleted if the process is killed
 * by an interruption. Any thread. */
int cr_cleanup_add(const char *path);
int cr_cleanup_remove(const char *path);

/* ---- files ----------------------------------------------------------------------------------- */

/* Writes a file completely or not at all: to a temporary dot file beside it, which is synced, then
 * renamed. An existing file keeps its mode, and symbolic links are followed. Bytes for something
 * that is not a regular file (a device, a pipe, /dev/stdout) are copied to it at the end. Temporary
 * files of dead processes in the folder are deleted. All other writers of this header work the same
 * way. Any thread. */
int cr_file_write(const char *path, const void *data, int64_t bytes);
/* Returns 1 if both names lead to the same regular file (by device and inode), else 0. Any
 * thread. */
int cr_file_same(const char *a, const char *b);

/* ---- threads --------------------------------------------------------------------------------- */

/* The number of threads that CPU operations use: CR_THREADS from the environment if set, else the
 * number of processors that this process may run on. n <= 0 restores that default. Both functions
 * return the number in force. */
int32_t cr_threads(void);
int32_t cr_set_threads(int32_t n);

/* ---- tensors --------------------------------------------------------------------------------- */

enum { CR_MAX_RANK = 8 };

/* Element types. Every operation accepts f32. f16 and bf16 are storage types: their arithmetic is
 * done in f32. An operation accepts f64 and integers only if its comment says so. */
enum {
  CR_F32 = 0,
  CR_F16 = 1,
  CR_BF16 = 2,
  CR_F64 = 3,
  CR_U8 = 4,
  CR_I8 = 5,
  CR_I16 = 6,
  CR_I32 = 7,
  CR_I64 = 8,
  CR_BOOL = 9,
  CR_DTYPES = 10
};

/* A device is CR_CPU, or CR_CUDA plus the GPU's index. */
enum { CR_CPU = 0, CR_CUDA = 1 };

/* Reference-counted memory. The struct is opaque. */
typedef struct cr_storage cr_storage;

/* A view of a storage. Neighbours along dimension k are stride[k] elements apart; stride 0 repeats
 * one element, and no view has negative strides. The first element lies `offset` elements into the
 * storage. An empty struct (freed, or never filled) has storage NULL. A tensor of rank 0 is a
 * scalar. */
typedef struct cr_tensor {
  cr_storage *storage;
  int32_t dtype;
  int32_t device;
  int32_t rank;
  int32_t shape[8];
  int64_t stride[8];
  int64_t offset;
} cr_tensor;

/* The bytes of one element of `dtype`; its name ("f32"); the dtype with a name, or CR_EINVAL. */
int32_t cr_dtype_size(int32_t dtype);
const char *cr_dtype_name(int32_t dtype);
int32_t cr_dtype_parse(const char *name);

/* Allocates a contiguous tensor with undefined contents. Sizes of 0 are allowed. */
int cr_empty(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device);

/* Makes a contiguous CPU tensor over memory that the caller owns: `data` must live until the last
 * view of it is freed. */
int cr_from_memory(cr_tensor *out, void *data, int32_t rank, const int32_t *shape, int32_t dtype);

/* Releases this tensor's reference to its storage and clears the struct. A second call does
 * nothing. */
void cr_free(cr_tensor *t);

/* out = another reference to x's storage, with the same view. `out` must be empty. */
int cr_share(cr_tensor *out, const cr_tensor *x);

/* cr_numel returns the number of elements, or -1 for a freed tensor. cr_is_contiguous returns 1 if
 * the elements lie in row-major order without gaps, else 0. */
int64_t cr_numel(const cr_tensor *t);
int cr_is_contiguous(const cr_tensor *t);

/* Returns the address of the first element of a CPU tensor, NULL for other devices. */
void *cr_data(const cr_tensor *t);

/* Views. `out` must be empty; it shares x's storage.
 * - view: another shape with the same number of elements; one size may be -1, which is inferred. It
 *   fails if the strides do not allow it: use cr_copy first.
 * - permute: dimension k of out is dimension dims[k] of x.
 * - slice: the indices first, first + step, ... < last of one dimension; step >= 1.
 * - select: one index of one dimension, which is removed.
 * - expand: repeats dimensions of size 1 up to `shape` and adds new dimensions in front; -1 keeps a
 *   size. */
int cr_view(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape);
int cr_permute(cr_tensor *out, const cr_tensor *x, const int32_t *dims);
int cr_slice(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t first, int32_t last,
             int32_t step);
int cr_select(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t index);
int cr_expand(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape);

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct cr_memory {
  int64_t live_bytes;          /* held by tensors */
  int64_t cached_bytes;        /* freed, and kept for reuse */
  int64_t peak_bytes;          /* the maximum of live_bytes since cr_memory_reset_peak() */
  int64_t live_count;          /* number of live storages */
  int64_t peak_reserved_bytes; /* the maximum of live_bytes + cached_bytes */
} cr_memory;

/* Reports the memory of `device`. A mapped weights file counts only the bytes of the tensors made
 * from it, since the operating system may drop and reread its pages. */
int cr_memory_get(int32_t device, cr_memory *out);
int cr_memory_reset_peak(int32_t device);
/* Returns cached memory to the operating system. */
int cr_memory_trim(int32_t device);
/* Sets the tag under which reports count the memory that is allocated from now on ("unet weights");
 * NULL or "" sets none. The string must stay valid forever. Memory keeps its tag until it is
 * freed. */
void cr_memory_set_tag(const char *name);
typedef struct cr_memory_tag {
  const char *name; /* "": untagged */
  int64_t live_bytes, peak_bytes;
} cr_memory_tag;
/* Lists a GPU's memory by tag: up to n tags, those with the most live bytes first. Returns the
 * number of tags. The CPU counts no tags. */
int32_t cr_memory_tags(int32_t device, cr_memory_tag *out, int32_t n);
/* Limits a GPU's tensors to `bytes` (0: no limit), to see how a smaller GPU would behave. Memory
 * that is allocated already stays. */
int cr_memory_limit(int32_t device, int64_t bytes);
/* cr_memory_pressure returns 1 if live bytes have grown so much since the last collection that Lua
 * should collect garbage. cr_memory_collected notes that it did. */
int cr_memory_pressure(void);
void cr_memory_collected(void);

/* ---- devices --------------------------------------------------------------------------------- */

/* Operations on a GPU are queued, in order, on the current stream. A function of this header
 * returns when its work is queued, not when it is done. Only copies to a CPU tensor wait. */
typedef struct cr_device_info {
  char name[256];       /* "NVIDIA H200" */
  int32_t major, minor; /* compute capability */
  int32_t multiprocessors;
  int64_t memory_total, memory_free; /* bytes of the whole GPU */
  int32_t driver, runtime;           /* CUDA versions: 13000 is 13.0 */
  int64_t cublas, cudnn;             /* versions as these libraries number them */
} cr_device_info;

/* Returns the number of usable GPUs: 0 if there is none, CR_EDEVICE with the reason if
 * crescent_cuda.so, a library or the driver is missing. */
int32_t cr_device_count(void);
int cr_device_info_get(int32_t device, cr_device_info *out);

/* Reads a GPU's option into *value, or sets it to *value if `set` is not 0. An unknown name is
 * CR_EINVAL.
 * - "tf32": 0 computes float32 GEMMs and convolutions in full precision, 1 in TF32 (10-bit
 *   mantissa).
 * - "search": 1 times the algorithms of GEMMs and convolutions once per shape and remembers the
 *   fastest; 0 takes the library's first proposal.
 * - "blocking": 1 waits after every operation, so that a fault is reported by the operation that
 *   caused it.
 * - "prepare": 1 starts to initialize cuBLAS and cuDNN on a thread of its own. Setting 0 waits for
 *   that thread, and so does reading, which gives 1 once they are ready.
 * - "fp8_fast": 0 accumulates the partial sums of cr_quant_linear's rows in f32; 1 leaves the whole
 *   accumulation to the tensor cores, which is faster and less precise.
 *
 * The other options fuse a step into the kernel that computes an operation's result. 1 fuses it, 0
 * runs it as a kernel of its own.
 * - "linear_bias", "linear_activation", "linear_residual": the steps of cr_linear, in this order.
 *   Disabling a step also unfuses all later ones. ReLU is the only activation that can be fused.
 * - "linear_geglu": GEGLU in cr_linear_geglu
 * - "conv_bias", "conv_activation", "conv_residual": the same steps of cr_conv2d. A 1x1 convolution
 *   without strides obeys the options of cr_linear.
 * - "norm_bias", "norm_silu": bias_before and SiLU in cr_group_norm
 * - "norm_after": `after` in cr_layer_norm
 * - "fusion": reads 1 if all fusions are enabled; setting it sets all of them. */
int cr_device_option(int32_t device, const char *name, int64_t *value, int32_t set);
/* Waits until all queued work is done. Returns CR_EDEVICE if some of it failed. */
int cr_device_synchronize(int32_t device);
/* Starts a job that ends when all work that is queued now on the current stream is done, so that a
 * script can wait without blocking the loop. Its status is the time of that moment: microseconds of
 * the monotonic clock, modulo 2^31. */
int64_t cr_device_record(int32_t device);
/* Selects the current stream of every GPU: 0 for networks, 1 for short work beside them, which has
 * a higher priority. A negative number changes nothing. Returns the current stream. If an operation
 * uses a tensor that another stream used last, its stream waits for that one on the GPU. */
int32_t cr_device_stream(int32_t stream);
/* Frees all memory of the GPU. Tensors and graphs on it are lost: using one is an error that says
 * so. After a fault every call on the GPU fails until this function has reset it. It returns
 * CR_EDEVICE if the driver needs a new process after such a fault. */
int cr_device_reset(int32_t device);

/* CUDA graphs. Between begin and end, operations on the GPU are captured instead of run. A launch
 * replays them on the same addresses, so it reads what the tensors that existed before the capture
 * hold at the time of the launch. Graphs share one memory pool for temporaries: of the tensors made
 * during a capture, only those that are alive at its end keep their contents until the next launch.
 * An operation that cannot be captured (a copy to the CPU, waiting) fails with CR_EUNSUPPORTED and
 * invalidates the capture; end it with cr_graph_abandon. */
typedef struct cr_graph cr_graph;
int cr_graph_begin(int32_t device);
int cr_graph_end(int32_t device, cr_graph **out);
int cr_graph_abandon(int32_t device);
/* While `on` is 1, tensors come from the memory pool of the graphs, though nothing is captured. A
 * warm-up run of what will be captured thus does not take its memory twice. */
int cr_graph_rehearse(int32_t device, int32_t on);
int cr_graph_launch(cr_graph *g);
/* Returns the number of kernels, copies and fills in a graph. */
int64_t cr_graph_size(const cr_graph *g);
void cr_graph_free(cr_graph *g);

/* ---- code made at run time ------------------------------------------------------------------- */

/* A __global__ function of a loaded cubin or PTX module. It becomes invalid when the GPU is
 * reset. */
typedef struct cr_code cr_code;
/* An argument of a launch: the address of a tensor's first element, or the bytes at `value`, as
 * many as the parameter's type has. */
typedef struct cr_argument {
  const cr_tensor *tensor; /* or NULL: use value */
  const void *value;
} cr_argument;
int cr_code_load(cr_code **out, int32_t device, const void *image, const char *function);
/* Queues a launch of grid[0] x grid[1] x grid[2] blocks of block[0] x block[1] x block[2] threads,
 * with `shared` bytes of dynamic shared memory and n arguments. */
int cr_code_launch(cr_code *c, const int32_t *grid, const int32_t *block, int32_t shared, int32_t n,
                   const cr_argument *arguments);
/* Frees a function once; NULL is allowed. */
void cr_code_free(cr_code *c);
/* Loads one of CUDA's shared libraries by its file name, with global symbols, from the place where
 * Crescent finds cuBLAS and cuDNN. CR_EDEVICE if it is missing. */
int cr_cuda_library(const char *name);

/* ---- elementwise operations ------------------------------------------------------------------ */

/* out = x converted to out's dtype, between any dtypes, strides and devices. An empty `out` becomes
 * contiguous with x's dtype. A float becomes an integer by truncation towards zero, with
 * saturation; nan becomes 0. */
int cr_copy(cr_tensor *out, const cr_tensor *x);

/* out = x converted to `dtype` as in cr_copy, contiguous. */
int cr_cast(cr_tensor *out, const cr_tensor *x, int32_t dtype);

/* Sets all elements of t to `value` in place. Any dtype and strides. */
int cr_fill(cr_tensor *t, double value);

/* out = start + i * step for i = 0 ... n - 1, shape [n], any dtype but bool. Computed in f64. */
int cr_arange(cr_tensor *out, int32_t n, double start, double step, int32_t dtype, int32_t device);

/* Lua's help shows the comment beside an operation. */
enum {
  CR_NEG,        /* -x */
  CR_ABS,        /* |x| */
  CR_SIGN,       /* -1, 0 or 1 */
  CR_EXP,        /* e^x */
  CR_LOG,        /* the natural logarithm */
  CR_LOG10,      /* the logarithm to base 10 */
  CR_LOG2,       /* the logarithm to base 2 */
  CR_LOG1P,      /* log(1 + x), exact for small x */
  CR_EXPM1,      /* e^x - 1, exact for small x */
  CR_SQRT,       /* the square root */
  CR_RSQRT,      /* 1 / sqrt(x) */
  CR_SIN,        /* the sine of radians */
  CR_COS,        /* the cosine of radians */
  CR_TANH,       /* the hyperbolic tangent */
  CR_ERF,        /* the error function */
  CR_SIGMOID,    /* 1 / (1 + e^-x) */
  CR_SILU,       /* x * sigmoid(x) */
  CR_GELU,       /* x * (1 + erf(x / sqrt 2)) / 2 */
  CR_RELU,       /* max(x, 0) */
  CR_FLOOR,      /* the greatest whole number not above x */
  CR_CEIL,       /* the least whole number not below x */
  CR_TRUNC,      /* rounds towards zero */
  CR_ROUND,      /* rounds to the nearest whole number, half to even */
  CR_SQUARE,     /* x * x */
  CR_RECIPROCAL, /* 1 / x */
  CR_NOT,        /* true where x is false */
  CR_UNARY_OPS
};
/* Returns the operation's name, which is also the name of the method in Lua ("exp"); NULL if there
 * is no such operation. */
const char *cr_unary_name(int32_t op);
/* out = op(x). Floats keep their dtype; f64 is computed in f64. ABS, NEG, SIGN, SQUARE, RELU and
 * the rounding operations keep the dtype of integers and bool; the other operations convert these
 * to f32. NOT takes bool. GELU is the exact form, x * (1 + erf(x / sqrt 2)) / 2. out may be x. */
int cr_unary(cr_tensor *out, int32_t op, const cr_tensor *x);

enum {
  CR_ADD,       /* a + b, broadcast; b may be a number */
  CR_SUB,       /* a - b */
  CR_MUL,       /* a * b */
  CR_DIV,       /* a / b */
  CR_POW,       /* a ^ b */
  CR_MAX,       /* the greater of both */
  CR_MIN,       /* the smaller of both */
  CR_REMAINDER, /* a % b: remainder of the floored division, with the sign of b; 0 for an integer by
                   0 */
  CR_FMOD,      /* remainder of the truncated division, with the sign of a; 0 for an integer by 0 */
  CR_ATAN2,     /* the angle of the point (b, a) in radians, -pi to pi */
  CR_EQ,        /* bool: equal */
  CR_NE,        /* bool: different */
  CR_LT,        /* bool: less */
  CR_LE,        /* bool: less or equal */
  CR_GT,        /* bool: greater */
  CR_GE,        /* bool: greater or equal */
  CR_BINARY_OPS
};
const char *cr_binary_name(int32_t op); /* as cr_unary_name */
/* out = a op b with NumPy's broadcasting. The operands have one dtype, or both become the wider
 * float (f64 > f32 > bf16, f16; bf16 with f16 gives f32); a float takes precedence over an integer,
 * and the wider integer over the narrower. DIV of integers gives f32; comparisons give bool. out
 * may be a or b if it has the result's shape and dtype. */
int cr_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b);
/* The same with a number for b, or for a if `reversed` is not 0. The dtype is the tensor's. It is
 * f32 for an integer tensor if the number is not whole or the operation is DIV or POW. */
int cr_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed);

/* out = min(max(x, low), high), with x's dtype. out may be x. */
int cr_clamp(cr_tensor *out, const cr_tensor *x, double low, double high);

/* out = sum of coefficients[i] * xs[i] for i < n, n <= 16. Equal shapes, floats; computed in f32,
 * in f64 if any input is f64. Every sampling step is one such sum. out may be one of xs. */
int cr_lincomb(cr_tensor *out, int32_t n, const cr_tensor *const *xs, const double *coefficients);

/* out = condition ? a : b with NumPy's broadcasting; condition is bool or u8. */
int cr_where(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a, const cr_tensor *b);

/* ---- reductions ------------------------------------------------------------------------------ */

enum {
  CR_SUM,    /* the sum: x:sum(), x:sum(2), x:sum({ 1, 2 }, true) */
  CR_MEAN,   /* the mean */
  CR_AMAX,   /* the maximum; nan if any element is */
  CR_AMIN,   /* the minimum; nan if any element is */
  CR_ARGMAX, /* the index of the maximum, from 1 on: along one dimension, or of all elements */
  CR_ARGMIN, /* the index of the minimum, from 1 on: along one dimension, or of all elements */
  CR_VAR,    /* the population variance */
  CR_REDUCE_OPS
};
const char *cr_reduce_name(int32_t op); /* as cr_unary_name; CR_AMAX is "max" */
/* Reduces the dimensions whose bit is set in dim_mask (bit k: dimension k; 0: all). If `keep` is
 * not 0, they stay with size 1. A CPU accumulates in f64. ARGMAX and ARGMIN take one dimension or
 * all, and give i64. Floats keep their dtype; of integers, SUM gives i64 and MEAN and VAR give f32.
 * The SUM of no elements is 0; the other reductions of none are an error. */
int cr_reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask, int32_t keep);

/* out[i] = the sum (or the product, if `product` is not 0) of x[0] ... x[i] along x's last
 * dimension. Floats keep their dtype and accumulate in f64 on a CPU, in f32 on a GPU; other dtypes
 * give i64. */
int cr_scan(cr_tensor *out, const cr_tensor *x, int32_t product);

/* out = x sorted along its last dimension, ascending, or descending if `descending` is not 0; index
 * = the index that each element had, i64. The sort is stable; a nan is greater than every
 * number. */
int cr_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending);

/* The k smallest elements along the last dimension in ascending order, or the k largest in
 * descending order if `largest` is not 0, with their indices as in cr_sort. */
int cr_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest);

/* ---- moving data ----------------------------------------------------------------------------- */

/* Concatenates n tensors along dim. They have one dtype, and the same sizes in all other
 * dimensions. */
int cr_cat(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim);

/* Takes elements along x's dimension dim by an index, i32 or i64. An index of shape [T] takes whole
 * slices: slice i of out is slice index[i] of x. An index of x's rank, in no other dimension larger
 * than x, takes single elements: for dim 0, out[i][j] = x[index[i][j]][j]. The index is on x's
 * device or on the CPU. An index out of range is an error; if the index is on a GPU, the next call
 * that waits for the GPU reports it. */
int cr_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index);

/* The inverse of cr_gather: writes x, which has the shape that cr_gather would give and t's dtype,
 * to those elements of t, in place. If `add` is not 0, x is added to them. If several elements of x
 * go to one place, the last one stays; on a GPU, without `add`, any one of them. */
int cr_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x, int32_t add);

/* out = the indices of x's elements (bool or u8) that are not 0, in row-major order, i64: [n D],
 * one number for each of x's D dimensions, or, if `flat` is not 0, [n], indices into the flattened
 * x. `out` must be empty. Waits for a GPU. */
int cr_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat);

/* Adds before[k] and after[k] elements of `value` to dimension k. */
int cr_pad(cr_tensor *out, const cr_tensor *x, const int32_t *before, const int32_t *after,
           double value);

/* ---- matrices -------------------------------------------------------------------------------- */

enum { CR_ACT_NONE, CR_ACT_SILU, CR_ACT_GELU, CR_ACT_RELU, CR_ACT_PRELU, CR_ACT_RELU6, CR_ACTS };
/* Returns the name ("silu"); NULL if there is no such activation. */
const char *cr_act_name(int32_t act);

/* out = a b: [... M K] x [... K N] -> [... M N] with broadcast leading dimensions. a and b have one
 * float dtype and any strides; out has that dtype. f64 is computed in f64, others in f32. */
int cr_matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b);

/* out = act(x weight^T + bias) + residual: x [... K], weight [N K], bias [N] or NULL, residual [...
 * N] or NULL. Floats; the weight may have another float dtype than x. The activation is applied
 * before the residual is added. out may be residual. */
int cr_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
              const cr_tensor *residual, int32_t act);

/* out = softmax(scale q k^T + mask) v for `heads` heads: q [... T h*d], k [... S h*d], v [... S
 * h*dv] -> [... T h*dv]. Leading dimensions are equal, or 1 in k, v and mask. The last dimension
 * must be dense; the others may have any strides, so views of a packed qkv, or [B F H W C] seen as
 * [B H W F C], need no copy. mask: f32, broadcast to [... T S] and added to the scores, or NULL.
 * scale <= 0 stands for 1 / sqrt(d). Accumulation is in f32, and the scores are never stored (Dao
 * et al. 2022, FlashAttention). */
int cr_attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                 int32_t heads, double scale, const cr_tensor *mask);

/* out = a * gelu(g) with x [... 2D] = (a, g) -> [... D]. Shazeer 2020. */
int cr_geglu(cr_tensor *out, const cr_tensor *x);

/* out = cr_geglu(cr_linear(x, weight, bias)): x [... K], weight [2D K] (the rows of a, then those
 * of g), bias [2D] or NULL -> [... D]. For f16 and bf16 on Hopper, one fused kernel may compute it
 * (the option "linear_geglu"), which keeps the intermediate [... 2D] in f32 and never stores it. */
int cr_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *bias);

/* out = softmax of x along its last dimension. */
int cr_softmax(cr_tensor *out, const cr_tensor *x);

/* ---- quantized tensors ---------------------------------------------------------------------- */

/* A quantized tensor consists of codes of 8 or 4 bits and f32 scales: element = value of its code *
 * scale. The codes' dtype and the shapes tell the format:
 * - int8: i8 codes, -127 to 127, whose value is the code itself
 * - E4M3: u8 codes (Micikevicius et al. 2022, "FP8 formats for deep learning"): a sign, 4 bits of
 *   exponent with bias 7, 3 of mantissa. Exponent 0 holds the subnormals, multiples of 2^-9. The
 *   largest value is 448; there are no infinities, and nan is 0x7f and 0xff.
 * - int4, for weights only: u8 codes, two in a byte, the one of even index in the low four bits, -8
 *   to 7 in two's complement. A group of 64 neighbours of the last dimension shares a scale.
 *
 * Activations have codes [... K] and a scale [...], one for each row (vector of the last
 * dimension). Statically quantized activations have no scale: an element is value * divisor[k], and
 * the `divisor` [K] belongs to the layer that reads them. 8-bit weights have codes [N K] or [O kh
 * kw C] and a scale [N] or [O]. int4 weights have codes [N K/2] or [O kh kw C/2] and a scale [N
 * ceil(K/64)] or [O kh kw ceil(C/64)]. Inputs of codes, scales and divisors are contiguous. A
 * function that makes codes takes their `dtype`: CR_I8 or CR_U8 (E4M3). */

/* Quantizes x [... K] (f32, f16 or bf16, any strides) to codes [... K] of `dtype` and scale [...],
 * one for each row. scale NULL quantizes statically, which needs a divisor.
 * - x is first multiplied by 1 / divisor[k] (f32 [K], or NULL for 1). A row's scale is max(max |x|,
 *   1e-30) / 127 for int8, / 448 for E4M3, and x is multiplied by 1 / scale.
 * - Divisions and products round to f32. The code is the nearest one, ties to even; a value beyond
 *   the largest code saturates.
 * - In E4M3 a nan stays nan, and an infinity makes all of its row nan if there is a scale. In int8
 *   a nan becomes 0, and the scale of a row that holds a nan or an infinity is nan. */
int cr_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor,
                int32_t dtype);
/* out (f32, f16 or bf16) = the values of codes, activations or weights of any format. scale: its
 * dimensions are the leading ones of codes (for int4: see above); NULL stands for 1. divisor: f32,
 * a factor for each index of the last dimension, or NULL. */
int cr_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                  const cr_tensor *divisor, int32_t dtype);
/* cr_quantize of the result of cr_geglu, cr_layer_norm, cr_group_norm and cr_attention. Where one
 * fused kernel computes both, the intermediate result is not rounded to x's dtype. */
int cr_quant_geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor,
                   int32_t dtype);
int cr_quant_layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                        const cr_tensor *weight, const cr_tensor *bias, double eps,
                        const cr_tensor *after, const cr_tensor *divisor, int32_t dtype);
int cr_quant_group_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t groups,
                        const cr_tensor *weight, const cr_tensor *bias, double eps, int32_t silu,
                        const cr_tensor *bias_before, const cr_tensor *divisor, int32_t dtype);
int cr_quant_attention(cr_tensor *codes, cr_tensor *scale, const cr_tensor *q, const cr_tensor *k,
                       const cr_tensor *v, int32_t heads, double attention_scale,
                       const cr_tensor *mask, const cr_tensor *divisor, int32_t dtype);

/* out [... N] = act(x weight^T + bias) + residual with a quantized weight [N K] of any format. x
 * [... K]: codes of the weight's 8-bit format with x_scale [...], or NULL if they are static, when
 * weight_scale includes that factor; for int4 weights x holds floats. out is `dtype`: f32, f16 or
 * bf16. bias, residual and act are as in cr_linear.
 * - int8 products are summed exactly (K is at most 131072), then multiplied by x_scale *
 *   weight_scale in f32.
 * - E4M3 products are summed in f32, but Hopper's tensor cores accumulate pieces of a row with
 *   about 14 bits, and whole rows with the option "fp8_fast".
 * - int4 values are multiplied with x in x's dtype.
 * A GPU may lack a format (CR_EUNSUPPORTED): E4M3 needs compute capability 8.9 or later. */
int cr_quant_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                    const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                    const cr_tensor *residual, int32_t act, int32_t dtype);

/* out [... D] = cr_geglu(cr_quant_linear(x, weight [2D K], bias)). Where one fused kernel computes
 * both, the intermediate result is not rounded to `dtype` (f32, f16, bf16). codes 0: out is
 * `dtype`, and divisor NULL. codes CR_I8 or CR_U8: out holds static codes of the result / divisor,
 * f32 [D]. */
int cr_quant_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                          const cr_tensor *weight, const cr_tensor *weight_scale,
                          const cr_tensor *bias, const cr_tensor *divisor, int32_t dtype,
                          int32_t codes);

/* ---- convolutions ---------------------------------------------------------------------------- */

/* pad: zeros at the top, bottom, left, right. The other fields are per axis. */
typedef struct cr_conv {
  int32_t stride_h, stride_w;
  int32_t dilation_h, dilation_w;
  int32_t pad[4];
  int32_t groups;
  int32_t act; /* CR_ACT_*, applied after the bias and before the residual */
} cr_conv;

/* out [N H' W' O] = act(conv(x, weight) + bias) + residual: x [N H W C], weight [O kh kw C/groups],
 * bias [O] or NULL, residual [N H' W' O] or NULL. slope [O] is given for CR_ACT_PRELU only, else
 * NULL. Floats. A 1-D convolution has H = kh = 1. */
int cr_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
              const cr_tensor *residual, const cr_tensor *slope, const cr_conv *options);

/* The same with a quantized weight [O kh kw C/groups]. x [N H W C] holds static codes of the
 * weight's 8-bit format; for int4 weights it holds floats. out is `dtype`; sums and scales are as
 * in cr_quant_linear (kh kw C/groups is at most 131072). PReLU is not supported. */
int cr_quant_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *weight_scale, const cr_tensor *bias, const cr_tensor *residual,
                    const cr_conv *options, int32_t dtype);

/* out [N 2H 2W O], `dtype` = the 3x3 convolution with padding 1 of x [N H W C] after
 * nearest-neighbour upsampling by 2. It takes the folded 8-bit weight [4O 2 2 C] that
 * lua/cr/nn/upsample.lua describes, and bias [4O] or NULL. x holds static codes. */
int cr_quant_upsample_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                             const cr_tensor *weight_scale, const cr_tensor *bias, int32_t dtype);

/* out [N H' W' C] = maximum over windows of x [N H W C]. pad: top, bottom, left, right; padding
 * does not take part in the maximum. */
int cr_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                  int32_t stride_h, int32_t stride_w, const int32_t *pad);

/* ---- normalization --------------------------------------------------------------------------- */

/* out = (x - mean) / sqrt(var + eps) * weight + bias, then SiLU if `silu` is not 0. x [N ... C],
 * weight and bias [C] or NULL. Each of `groups` groups of channels has its own statistics for each
 * n, over all other dimensions. So the view decides what they cover: [B*F H W C] normalizes each
 * frame, [B F H W C] all frames of the window together. bias_before [N C], or NULL, is added to x
 * first (a ResNet block's time embedding). Wu & He 2018. */
int cr_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                  const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before);

/* out = layer norm of x over its last dimension, weight and bias [C] or NULL, plus `after`, a
 * tensor that broadcasts to x's shape (a position encoding), or NULL. Ba et al. 2016. */
int cr_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *bias, double eps, const cr_tensor *after);

/* ---- diffusion ------------------------------------------------------------------------------- */

/* out [T dim] = sinusoidal embedding of the timesteps t [T] (any dtype but bool): cos(t f_k) for k
 * < h = floor(dim / 2), then sin(t f_k), then one 0 if dim is odd, with f_k = 10000^(-k / h). This
 * is diffusers' Timesteps with flip_sin_to_cos and a frequency shift of 0. Computed in f64, rounded
 * once to `dtype`, a float dtype. Vaswani et al. 2017; Ho et al. 2020. */
int cr_timestep_embedding(cr_tensor *out, const cr_tensor *t, int32_t dim, int32_t dtype);

/* out = (mean + exp(clamp(logvar, -30, 20) / 2) * noise) * scale: a sample of the diagonal normal
 * posterior with this mean and log variance. noise holds standard normal samples; NULL gives the
 * scaled mean. Equal shapes, floats, any strides; dtypes and arithmetic are as in cr_lincomb. out
 * may be mean, logvar or noise. Kingma & Welling 2014; Rombach et al. 2022 (the scale). */
int cr_posterior_sample(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                        const cr_tensor *noise, double scale);

/* ---- images --------------------------------------------------------------------------------- */

enum {
  CR_NEAREST,       /* as torch: source index = floor(i * in / out) */
  CR_BILINEAR,      /* pixel centres at half integers: OpenCV, torch with align_corners = False */
  CR_LINEAR,        /* as CR_BILINEAR; u8 in OpenCV's fixed-point arithmetic of INTER_LINEAR */
  CR_BILINEAR_EDGE, /* as TFLite without half_pixel_centers and align_corners: x = i * in / out */
  CR_BICUBIC_AA,    /* torch's antialiased bicubic, a = -0.5; f32 is not clamped */
  CR_LANCZOS4,      /* OpenCV's INTER_LANCZOS4: 8 taps, no antialiasing; u8 in fixed point */
  CR_RESIZE_METHODS
};
/* Returns the name ("bilinear"); NULL if there is no such method. */
const char *cr_resize_method_name(int32_t method);
/* out = x [N H W C] or [H W C] resized to height x width. u8 and floats keep their dtype. */
int cr_resize(cr_tensor *out, const cr_tensor *x, int32_t height, int32_t width, int32_t method);

/* out [N s*H s*W C] = pixel shuffle of x [N H W s*s*C] (f32, f16 or bf16): the channels of a pixel,
 * in the order row, column, channel, become s x s pixels. base [N H W C], or NULL, is added after
 * nearest-neighbour upsampling by s. s <= 16, C <= 16. Sums are computed in f32. `dtype` of out:
 * x's dtype or f32; u8, which clamps to 0..1, multiplies by 255 and rounds half to even (nan gives
 * 0); or i16, the same with 65535, as the bits of an unsigned 16-bit number. flaw, i32 [1] or NULL,
 * is set to 1 if a sum is not finite, and is not written otherwise. Shi et al. 2016. */
int cr_pixel_shuffle(cr_tensor *out, const cr_tensor *x, int32_t s, const cr_tensor *base,
                     int32_t dtype, cr_tensor *flaw);

/* out [height width C] = x [H W C] (u8 or f32) warped by the 2x3 matrix m (row major, maps a source
 * pixel (x, y) to a result pixel), sampled bilinearly. Only the rectangle [left, left + width) x
 * [top, top + height) of the warped image is computed. Pixels outside x have the value `fill` and
 * take part in the interpolation at the border. out has `dtype`; u8 truncates. */
int cr_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                   int32_t height, int32_t width, double fill, int32_t dtype);

/* The same with a bicubic kernel (a = -0.5), widened along each axis of x along which the map
 * shrinks it, against aliasing. Near x's border the weights of the pixels inside are renormalized;
 * beyond it the nearest pixels are repeated. x [H W C] f32 -> f32 [height width C]. */
int cr_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                    int32_t height, int32_t width);

/* out [height width C] = x [H W C] (u8 or f32, same dtype; u8 truncates) sampled bilinearly where
 * theta (2x3, row major) maps the result's pixels. In both images coordinates run from -1 at the
 * centre of the first pixel to 1 at the centre of the last one. Pixels outside x have the value
 * `fill`. The arithmetic is that of torch's affine_grid and grid_sample with align_corners (single
 * precision, on processors with FMA), bit for bit. */
int cr_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, int32_t height,
                   int32_t width, double fill);

/* out u8 [height width C] = x u8 [H W C] warped by m as in cr_warp_affine with fill 0, in the
 * fixed-point arithmetic of OpenCV 4's warpAffine with INTER_LINEAR (positions in 1/32 of a pixel,
 * 15-bit weights), byte for byte. */
int cr_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m, int32_t height,
                  int32_t width);

/* out = minimum over a window from -before to +after along both axes of x [H W C] f32. Pixels
 * outside x do not take part. */
int cr_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after);

/* out = x [H W C] f32 blurred by a Gaussian of `size` taps (odd) and deviation sigma; the border is
 * reflected without repeating its pixel. */
int cr_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma);

/* out u8 [H W C] = weight * face + (1 - weight) * frame, truncated: frame u8 [H W C], face f32 [H W
 * C] in 0..255, weight f32 [H W 1]. out may be frame. */
int cr_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
             const cr_tensor *weight);

/* The layout of a decoded frame: the plane Y [height width], then U and V, each [height /
 * 2^shift_y, width / 2^shift_x] rounded up. The planes are dense, one after another. */
typedef struct cr_yuv {
  int32_t width, height;    /* 8 or more */
  int32_t shift_x, shift_y; /* 0 or 1 */
  int32_t full_range;       /* 0: Y is 16..235, U and V are 16..240; 1: all are 0..255 */
  int32_t matrix[4]; /* for the limited range, 65536 times the coefficients of V in red, U in blue,
                        minus those of U and V in green: libswscale's sws_getCoefficients. All 0:
                        the planes are G, B and R. */
  int32_t bits; /* 0: 8-bit values, one byte each; 9..16: values of so many bits in 16 bits each,
                   which only readers and writers of video accept */
} cr_yuv;
/* out u8 [height width 3] = RGB of the planes x, u8 [bytes]. Chroma is upsampled by libswscale's
 * bicubic filter; from 16 x 16 pixels on, the result equals libswscale's byte for byte. */
int cr_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
/* The inverse: out u8 [bytes] = the planes, laid out as `format` says, of x u8 [H W 3]. If format's
 * height or width is one more than x's, x's last row or column is repeated. Both are multiples of
 * 2^shift, and at least 12. The result equals libswscale's byte for byte. */
int cr_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);

/* out f32 [size size C] = scale * mean + shift of a rotated square of x u8 [H W C], C <= 4,
 * resampled for a network. square: its centre x, y and its side in pixels of x, then its angle in
 * radians, clockwise as seen; pixel centres lie at half integers. Sampling is bilinear. Where the
 * square is larger than the result, the mean of up to 4 x 4 samples per pixel is taken (of up to 5
 * x 5 pixels for an upright square). Pixels outside x are 0. */
int cr_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, int32_t size,
                  double scale, double shift);

/* ---- random numbers -------------------------------------------------------------------------- */

enum {
  CR_RNG_TORCH_CPU,  /* torch.randn on a CPU: mt19937 with torch's scalar and its vectorized
                        Box-Muller form */
  CR_RNG_TORCH_CUDA, /* torch.randn on a GPU with 132 multiprocessors: Philox 4x32-10 */
  CR_RNG_PHILOX, /* Philox with the element's index as counter: the same numbers on every device */
  CR_RNG_KINDS
};
/* Returns the name ("torch-cpu"); NULL if there is no such kind. */
const char *cr_generator_kind_name(int32_t kind);
typedef struct cr_generator cr_generator;

/* Makes a generator with the seed of torch.manual_seed. Free it with cr_generator_free. */
int cr_generator_new(cr_generator **out, int32_t kind, uint64_t seed);
/* Makes a generator in the same state as g. */
int cr_generator_copy(cr_generator **out, const cr_generator *g);
/* Advances g as a cr_randn of n numbers of a float dtype would. A counter-based kind draws nothing
 * for that. */
int cr_generator_skip(cr_generator *g, int64_t n, int32_t dtype);
void cr_generator_free(cr_generator *g);

/* out = standard normal samples, any float dtype, contiguous: the values of torch.randn(shape) in
 * row-major order of `out`. For channels-last data, draw in torch's layout and permute. Salmon et
 * al. 2011 (Philox), Matsumoto & Nishimura 1998 (mt19937). */
int cr_randn(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device,
             cr_generator *g);
/* The same with samples uniform on [0, 1), as torch.rand. */
int cr_rand(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device,
            cr_generator *g);

/* ---- weights files --------------------------------------------------------------------------- */

/* A file of named tensors: safetensors, PyTorch .pt/.pth/.bin (zip archive or the legacy stream),
 * NumPy .npy and .npz, CTranslate2 model.bin, ONNX (its graph is the metadata).
 * - The contents tell the format, not the name.
 * - Nothing in a file is executed. A pickle may only build dictionaries, lists, numbers, strings
 *   and tensors; any other global is refused by its name (CR_EFORMAT).
 * - A tensor that Crescent cannot hold (sparse, quantized, complex, of a subclass) is listed, and
 *   refused when it is taken.
 * - Memory use is bounded by a multiple of the file's size, whatever the file claims.
 * - A file must not change while tensors map it. If it was truncated, reading a lost page ends the
 *   process with a sentence, status 1 and the cleanup of cr_cleanup_add(). */
typedef struct cr_weights cr_weights;

typedef struct cr_weights_entry {
  const char
      *name;     /* the keys of nested dictionaries, joined by dots; lives as long as the handle */
  int32_t dtype; /* dtype of the tensor that cr_weights_tensor gives; < 0: see trouble */
  int32_t rank;
  int32_t shape[8];
  int64_t bytes;       /* size of the dense elements in the file */
  const char *trouble; /* why the tensor cannot be taken ("has dtype complex64, which is not
                          handled"), or NULL */
} cr_weights_entry;

/* Opens a file and checks its whole directory, but not the tensors' data. */
int cr_weights_open(cr_weights **out, const char *path);
void cr_weights_close(cr_weights *w); /* tensors taken from it stay valid */
int64_t cr_weights_count(const cr_weights *w);
/* Gives entry `index` (from 0), in the order of the file. */
int cr_weights_entry_at(const cr_weights *w, int64_t index, cr_weights_entry *out);
/* Returns the index of a name, or CR_EINVAL. */
int64_t cr_weights_find(const cr_weights *w, const char *name);
/* Gives a CPU tensor, in most formats a view of the mapped file (safetensors, stored zip members,
 * legacy .pt, .npy; strided views of one storage stay views). Deflated members are unpacked. 8-bit
 * floats become f16, u16 becomes i32, u32 and u64 become i64. The tensor must not be written to:
 * copy it first. */
int cr_weights_tensor(const cr_weights *w, int64_t index, cr_tensor *out);
/* Returns what was ignored when the file was opened ("12 bytes behind the archive"), or NULL. */
const char *cr_weights_warning(const cr_weights *w);
/* Returns, as JSON, the file's data that is not tensors: safetensors' __metadata__, the numbers and
 * strings of a pickle (Whisper's dims, for example). It lives as long as the handle. */
const char *cr_weights_metadata(const cr_weights *w);
/* Returns the path of a file whose size or modification time changed while it, or a tensor over it,
 * was in use; NULL if there is none. A closed file is reported once. Call it on the thread that
 * runs Lua, when the work that used the weights is done. The pointer is valid until the next
 * call. */
const char *cr_weights_changed(void);
/* Returns "safetensors", "torch-zip", "torch-legacy", "npy", "npz", "ctranslate2" or "onnx". */
const char *cr_weights_format(const cr_weights *w);

/* Writes tensors as safetensors (metadata_json: a JSON object of strings, or NULL), or one tensor
 * as .npy. The files are written as by cr_file_write. */
int cr_safetensors_save(const char *path, int32_t n, const char *const *names,
                        const cr_tensor *const *tensors, const char *metadata_json);
int cr_npy_save(const char *path, const cr_tensor *t);
/* The same for several dense CPU tensors as .npz, at most 4 GB. */
int cr_npz_save(const char *path, int32_t n, const char *const *names,
                const cr_tensor *const *tensors);

/* Writes a file's SHA-256 to hex: 64 digits and a NUL. Any thread. */
int cr_sha256_file(const char *path, char *hex);

/* An incremental digest; algorithm is "SHA256", "MD5" or "CRC32" (a checksum, zlib's). One thread
 * at a time. */
typedef struct cr_digest cr_digest;
int cr_digest_open(cr_digest **out, const char *algorithm);
int cr_digest_add(cr_digest *d, const void *bytes, int64_t n);
/* Adds n bytes of a file from `offset` on. Returns how many were added: fewer than n only at the
 * file's end. */
int64_t cr_digest_add_file(cr_digest *d, const char *path, int64_t offset, int64_t n);
/* The same as a job on a thread of the loop. Until it has ended, the digest may only be closed. */
int64_t cr_digest_start_file(cr_digest *d, const char *path, int64_t offset, int64_t n);
/* Writes the digest to hex: two digits for each of its bytes, at most 64, and a NUL. Nothing can be
 * added afterwards. */
int cr_digest_end(cr_digest *d, char *hex);
void cr_digest_close(cr_digest *d);

/* ---- event loop ------------------------------------------------------------------------------ */

/* A function that works on another thread (media, transfers) starts a job and returns its number >
 * 0. When the job ends, a completion is appended to a ring and the loop wakes up. Lua drains the
 * ring and resumes the coroutine that waits for the job. C never calls back into Lua. */
typedef struct cr_completion {
  int64_t job;
  int32_t status; /* >= 0 as the starting function's comment says, or CR_E* */
  char message[500];
} cr_completion;

/* Returns the core's libuv loop (a uv_loop_t *), created on first use; NULL if that fails. luv runs
 * its timers and sockets on the same loop. */
void *cr_loop(void);
/* Takes up to n completions. Returns how many. */
int cr_loop_drain(cr_completion *out, int32_t n);
/* Returns the number of jobs that were started and not drained yet. */
int64_t cr_loop_pending(void);

/* ---- transfers by HTTP (in crescent_remote.so) ----------------------------------------------- */

/* An HTTP request. Strings and `body` are copied; a NULL string stands for "". */
typedef struct cr_transfer_options {
  const char *method, *url;
  const char *const *headers; /* header_count lines "Name: value" */
  int32_t header_count;
  const char *sign;          /* AWS Signature 4: "aws:amz:REGION:SERVICE"; "" does not sign */
  const char *user, *secret; /* access key ID and secret access key for the signature */
  /* The body is `body`, body_bytes in memory, or body_bytes of the file body_path from body_offset
   * on; body_bytes < 0: there is none. */
  const void *body;
  const char *body_path;
  int64_t body_offset, body_bytes;
  /* The response's body goes to memory if out_path is "". Else out_path is an existing file: a body
   * with the status out_status is written to it from out_offset on, one with another 2xx status is
   * discarded, and any other body goes to memory. */
  const char *out_path;
  int64_t out_offset;
  int32_t out_status;
  int64_t limit; /* most bytes of a body in memory; a longer one is an error */
  double connect_seconds, idle_seconds; /* limits without a connection, without a byte; 0: none */
  int32_t direct;                       /* 1: ignore the environment's proxy settings */
} cr_transfer_options;

/* Starts a request as a job; all requests share one thread. The job's status is the response's
 * (200, 404), or 0 if no whole response came. The job fails if a file cannot be read or written, or
 * if the response exceeds `limit`. Redirections are not followed. */
typedef struct cr_transfer cr_transfer;
int64_t cr_transfer_start(cr_transfer **out, const cr_transfer_options *options);
/* Returns how many bytes of the response's body have been received so far. It may be called at any
 * time. */
int64_t cr_transfer_received(const cr_transfer *t);
/* To be called once the job has ended: why no response came (the text names no URL), the response's
 * header lines, and its body in memory. The pointers live as long as the transfer. */
const char *cr_transfer_problem(const cr_transfer *t);
const char *cr_transfer_headers(const cr_transfer *t, int64_t *bytes);
const char *cr_transfer_body(const cr_transfer *t, int64_t *bytes);
/* Cancels a running request (its job then ends soon) and frees the transfer. */
void cr_transfer_close(cr_transfer *t);

/* ---- media (in crescent_media.so) ------------------------------------------------------------ */

/* The HDR metadata of a video. Each rational number is a pair of numerator and denominator. */
typedef struct cr_hdr {
  int32_t mastering;                    /* 1: the next three fields are known */
  int32_t primaries[12], white[4];      /* x and y of red, green and blue; of white */
  int32_t luminance[4];                 /* minimum and maximum of the mastering display in cd/m2 */
  int32_t max_light, max_average_light; /* MaxCLL and MaxFALL in cd/m2; 0 unknown */
  int32_t dynamic; /* 1: frames carry dynamic metadata (Dolby Vision, HDR10+) */
} cr_hdr;

typedef struct cr_media_info {
  int32_t has_video, has_audio;
  int32_t width, height; /* as displayed, after rotation */
  int32_t rotation;      /* degrees clockwise that decoding applies */
  double fps;            /* average; 0 unknown */
  double duration;       /* seconds; 0 unknown */
  int64_t frames;        /* at 25 fps, estimated from the duration; 0 unknown */
  int32_t color_space, color_range, color_primaries, color_transfer; /* libav's enums */
  int32_t sample_rate, channels;
  double audio_duration;
  char video_codec[32], audio_codec[32], format[64];
  /* Pixel aspect ratio (width : height) as displayed; 0/1 unknown. */
  int32_t aspect_num, aspect_den;
  int32_t bits; /* bits of a sample: 8, 10, ...; 0 unknown */
  cr_hdr hdr;
  char pix_fmt[32]; /* libav's name of the pixel format: yuv420p10le; "" unknown */
  int32_t alpha;    /* 1: the pixel format has an alpha channel (a palette's does not count) */
} cr_media_info;

/* Reads a file's headers, and decodes the first frame of a video, which may carry its orientation.
 * Any thread. */
int cr_media_probe(const char *path, cr_media_info *out);

/* Returns the versions of FFmpeg's libraries, for reports. Any thread. */
const char *cr_media_version(void);

/* Takes the next warning of a media function that succeeded (missing sound, lost bit depth).
 * Returns the number of warnings that were waiting, this one included; 0: none. Each is given once.
 * Any thread. */
int cr_media_warning(char *out, int32_t bytes);

/* Decodes the best video stream to u8 RGB [H W 3] with rotation applied, by the stream's own matrix
 * and range. Frames are picked at a constant `fps` (usually 25) as `ffmpeg -r` does; fps 0 gives
 * the stream's own frames. */
typedef struct cr_video cr_video;
int cr_video_open(cr_video **out, const char *path, double fps);
void cr_video_close(cr_video *v);
/* Starts a job that reads up to n (<= 256) frames from the current position. Its status is the
 * number of frames, less than n only at the end. */
int64_t cr_video_read_start(cr_video *v, int32_t n);
/* Takes frame i of the last finished read as a new tensor u8 [H W 3]; *pts_seconds (or NULL) is its
 * time in the source. Each frame can be taken once. */
int cr_video_take(cr_video *v, int32_t i, cr_tensor *out, double *pts_seconds);
/* If `on` is not 0, later reads keep frames as decoded planes where cr_yuv can describe them (8-bit
 * 4:2:0, 4:2:2 or 4:4:4, not rotated, of the first frame's size), to be converted elsewhere. */
int cr_video_planes(cr_video *v, int32_t on);
/* To be called before the first read: frames of a video with more than 8 bits per sample keep them,
 * as planes with rotation applied. Returns the bits of a sample; 8 means that nothing changes. */
int cr_video_deep(cr_video *v);
/* As cr_video_take. Returns 1 if out is planes laid out as *format says: u8 [bytes], or, where
 * format->bits is not 0, i16 [values] with the bits of unsigned numbers. Returns 0 if out is u8 [H
 * W 3]. */
int cr_video_take_planes(cr_video *v, int32_t i, cr_tensor *out, cr_yuv *format,
                         double *pts_seconds);
/* Starts a job that seeks, so that the next read begins with frame `index` (from 0, counted at the
 * constant rate). Seeking is exact: the same frames come as when reading from the start. The job's
 * status is 0, or CR_EINVAL past the end. */
int64_t cr_video_seek_start(cr_video *v, int64_t index);

/* Decodes the best audio stream, resampled to `rate` Hz (0: its own) and mixed to `channels` (0:
 * its own) as ffmpeg does. Samples are placed by their timestamps: a late start and gaps become
 * silence. If s16 is not 0, samples go through 16-bit integers (rounded, then / 32768), as in
 * LatentSync's own program. */
typedef struct cr_audio cr_audio;
int cr_audio_open(cr_audio **out, const char *path, int32_t rate, int32_t channels, int32_t s16);
/* The same for live input: a URL, a pipe, a device. `format` is libav's name of the input format
 * ("": FFmpeg detects it). */
int cr_audio_open_live(cr_audio **out, const char *url, const char *format, int32_t rate,
                       int32_t channels);
void cr_audio_close(cr_audio *a);
int32_t cr_audio_rate(const cr_audio *a);
int32_t cr_audio_channels(const cr_audio *a);
/* Starts a job that reads up to n (<= 2^24) samples of each channel. Its status is their number,
 * less than n only at the end. A file without any sample is an error. */
int64_t cr_audio_read_start(cr_audio *a, int64_t n);
/* Takes the last finished read once, as f32 [n channels]. */
int cr_audio_take(cr_audio *a, cr_tensor *out);

/* Resamples and mixes, as above, pieces of sound of any rate and number of channels that come one
 * after another. */
typedef struct cr_pcm cr_pcm;
int cr_pcm_open(cr_pcm **out, int32_t rate, int32_t channels);
void cr_pcm_close(cr_pcm *p);
/* Adds n samples of each channel, interleaved, i16 or f32 in [-1, 1]; nan counts as silence. n = 0
 * ends the sound, after which another one may begin. */
int cr_pcm_push(cr_pcm *p, const void *samples, int64_t n, int32_t dtype, int32_t rate,
                int32_t channels);
/* Takes all resampled samples that were not taken yet: f32 [n channels]; n may be 0. */
int cr_pcm_take(cr_pcm *p, cr_tensor *out);

typedef struct cr_writer_options {
  /* Of the frames that will come. Odd sizes are padded to even ones unless lossless. */
  int32_t width, height;
  double fps;
  /* "": libx264; if lossless: FFV1 in Matroska, as RGB, or if `deep` in the source's format. */
  char codec[32];
  int32_t crf; /* constant rate factor, 0..51; < 0: 18 */
  int32_t lossless;
  int32_t color_space, color_range, color_primaries, color_transfer; /* as in cr_media_info */
  /* audio_count sound files (0: no sound), which must exist until the writer is open. One is
   * encoded with its own rate and channels, several are summed. */
  const char *const *audio_paths;
  int32_t audio_count;
  double audio_gain;             /* factor of the sum of several files */
  double audio_start, audio_end; /* the seconds of the files to use; audio_end <= 0: to their end */
  char comment[500];             /* the metadata entry "comment"; "": none */
  int32_t aspect_num, aspect_den; /* as in cr_media_info */
  /* libav's name of the encoder's pixel format. "": yuv420p; but if `bits` > 8 and the encoder
   * supports it, a 10-bit format, or, if `deep`, source_pix_fmt. */
  char pix_fmt[32];
  int32_t bits; /* bits, hdr and source_pix_fmt are those of the source video */
  cr_hdr hdr;
  char source_pix_fmt[32];
  int32_t deep; /* 1: frames come with all of the source's bits; 0: with 8 bits */
  /* 1: frames may have times of their own; fps is then the duration of the last frame. */
  int32_t timed;
  /* 1: the path is a URL, a pipe or a file that grows while it is written, or "": memory
   * (cr_writer_take). Frames are encoded without lookahead and written at once. */
  int32_t live;
  /* libav's name of a live writer's container ("mp4", "hls"); "": by the path's extension. */
  char container[32];
  /* > 0: sound comes through cr_writer_sound_start, not from files. */
  int32_t sound_rate, sound_channels;
} cr_writer_options;

/* Encodes frames to a temporary dot file beside `path`, and renames it when the writer is
 * finished. */
typedef struct cr_writer cr_writer;
int cr_writer_open(cr_writer **out, const char *path, const cr_writer_options *options);
/* Returns 1 and the encoder's own layout in *format if the writer accepts planes of that layout,
 * made by cr_rgb_to_yuv or (for more than 8 bits) given by a reader; this saves a lossy conversion.
 * Returns 0 if it accepts RGB only. */
int cr_writer_planes(const cr_writer *w, cr_yuv *format);
/* Queues frames u8 [F H W 3] or [H W 3], or the planes of one frame, u8 [bytes] or i16 [values].
 * The job ends when they are encoded; its status is the number of frames written so far. `seconds`
 * is the time of the first one in a `timed` writer, and is moved behind all earlier frames if it is
 * not; < 0: when the previous frame ends. */
int64_t cr_writer_write_start(cr_writer *w, const cr_tensor *frames, double seconds);
/* Queues sound f32 [n channels] for a writer with a sound_rate. It must be queued before the frames
 * that it accompanies: sound that is missing when a frame is encoded is replaced by silence. The
 * job ends when the sound is taken. */
int64_t cr_writer_sound_start(cr_writer *w, const cr_tensor *sound);
/* Returns by how many seconds the written sound ends before the written frames: the delay of the
 * sound's encoder. No job may be running. */
double cr_writer_sound_lag(const cr_writer *w);
/* Takes what a live writer has written to memory since the last call, u8 [n]; n may be 0. */
int cr_writer_take(cr_writer *w, cr_tensor *out);
/* Starts a job that ends the file: cuts the sound or pads it with silence to the length of the
 * video, writes the trailer, and renames the file. */
int64_t cr_writer_finish_start(cr_writer *w);
/* Does the same synchronously, for a caller that cannot wait for a job: encodes what is queued,
 * ends the file and frees the writer, even if that fails. */
int cr_writer_end(cr_writer *w);
/* Frees the writer, and deletes its file if it is unfinished. */
void cr_writer_close(cr_writer *w);

/* Joins parts of a film (video from one encoder, at 25 fps, or, if `timed`, with times of its own
 * that continue from part to part) into one file without encoding them again, with the sound of the
 * file `sound` (NULL: none). Returns the number of frames, and in *last the time of the last one in
 * seconds. Any thread. */
int64_t cr_media_join(const char *path, int32_t count, const char *const *parts, const char *sound,
                      int32_t timed, double *last);

/* Reads an image file (PNG, JPEG, ...) as u8 [H W 3]. Any thread, as the next three. */
int cr_picture_read(cr_tensor *out, const char *path);
/* Reads an image with all of its channels and bits. Returns 0 for [H W C], where C is 1 grey, 2
 * grey and alpha, 3 RGB or 4 RGB and alpha (not premultiplied), u8, or i16 with the bits of numbers
 * 0..65535 if it has more than 8 bits. Returns 1 for i16 [values]: planes of luma and chroma as
 * *format says. */
int cr_picture_read_whole(cr_tensor *out, const char *path, cr_yuv *format);
/* Writes such an [H W C] image as PNG, as cr_file_write does. */
int cr_picture_write(const cr_tensor *x, const char *path);
/* Returns CR_EINVAL if the PNG encoder does not accept an image of this size. */
int cr_picture_check(const char *path, int64_t height, int64_t width);

/* ---- HTTP (in crescent_http.so) -------------------------------------------------------------- */

/* An incremental parser of HTTP/1.1 requests. It does no input or output: the owner of the socket
 * passes it the received bytes and gets one event from each call. One thread at a time uses a
 * handle. */
typedef struct cr_http cr_http;
/* head_bytes: the most bytes of a request's head, and of a chunk's header or the trailer. */
int cr_http_new(cr_http **out, int32_t head_bytes);
void cr_http_free(cr_http *h);

enum {
  CR_HTTP_MORE = 0, /* all bytes were read: more are needed */
  CR_HTTP_HEAD = 1,
  CR_HTTP_BODY = 2, /* a piece of the body */
  CR_HTTP_END = 3   /* end of the request; the next one follows */
};

typedef struct cr_http_event {
  int32_t kind;     /* CR_HTTP_MORE, ... */
  int32_t used;     /* bytes that were read; pass the rest again with the next call */
  int32_t first;    /* of a CR_HTTP_BODY piece: its offset in the passed bytes, */
  int32_t bytes;    /* and its length; of a head: the length of `head` */
  const char *head; /* method, target, then lower-case names and values in turn, each followed by a
                       NUL; valid until the next call */
  int64_t length;   /* of the body; -1: unknown, since it comes in chunks */
  int32_t minor;    /* the version is HTTP/1.minor, 0 or 1 */
  int32_t keep_alive; /* 1: the client wants to keep the connection */
  int32_t status;     /* of a failure: the status to respond with, 400 ... 505 */
} cr_http_event;

/* Parses up to the next event and returns its kind. After a failure the connection must be closed.
 * Requests that another parser could read differently (request smuggling) are refused: two lengths,
 * a length beside chunks, a bare CR or LF, folded lines. */
int cr_http_read(cr_http *h, const char *data, int32_t n, cr_http_event *out);

/* The server's side of a WebSocket (RFC 6455), in the same way: bytes in, messages out, and back.
 * It answers pings and the peer's close by itself: the answers are in the bytes that cr_ws_output
 * gives. */
typedef struct cr_ws cr_ws;
/* Writes the Sec-WebSocket-Accept for a Sec-WebSocket-Key: 28 characters and a NUL. */
int cr_ws_accept(const char *key, char *out);
/* A message of more than max_bytes closes the connection with status 1009. */
int cr_ws_new(cr_ws **out, int64_t max_bytes);
void cr_ws_free(cr_ws *w);

enum {
  CR_WS_MORE = 0,
  CR_WS_TEXT = 1, /* UTF-8 */
  CR_WS_BINARY = 2,
  CR_WS_CLOSE = 8, /* the last: the peer closed, or (status 0, no data) broke the protocol */
  CR_WS_PING = 9   /* can only be sent */
};

typedef struct cr_ws_message {
  int32_t kind;     /* CR_WS_MORE, ... */
  int32_t used;     /* bytes that were read; pass the rest again with the next call */
  int32_t status;   /* of a close: its code, 1000 ... 4999; 0: none was given */
  const char *data; /* of a close: its reason; valid until the next cr_ws_read */
  int64_t bytes;
} cr_ws_message;

/* Parses up to the next message and returns its kind. After a message call it again with the
 * remaining bytes, even if there are none, until it returns CR_WS_MORE. */
int cr_ws_read(cr_ws *w, const char *data, int32_t n, cr_ws_message *out);
/* Appends a message, or a close, to the output. After a close nothing can be sent (CR_ECLOSED). */
int cr_ws_send(cr_ws *w, int32_t kind, const char *data, int64_t n);
int cr_ws_close(cr_ws *w, int32_t status, const char *reason, int32_t n);
/* Takes the bytes that must be sent to the peer. Returns how many. They are valid until its next
 * call. */
int64_t cr_ws_output(cr_ws *w, const char **out);

/* The server's side of TLS (1.2 and later), in the same way. */
typedef struct cr_tls_keys cr_tls_keys;
/* Reads PEM files: the certificate with its chain, and its private key, which must have no
 * password. */
int cr_tls_keys_open(cr_tls_keys **out, const char *certificate, const char *key);
void cr_tls_keys_close(cr_tls_keys *keys); /* connections that use them continue */

typedef struct cr_tls cr_tls;
int cr_tls_new(cr_tls **out, cr_tls_keys *keys);
void cr_tls_free(cr_tls *t);
/* Passes n bytes that were received from the connection. */
int cr_tls_receive(cr_tls *t, const char *data, int32_t n);
/* Reads up to n decrypted bytes. Returns 0 if more input is needed, CR_ECLOSED if the peer has
 * ended the connection. */
int cr_tls_read(cr_tls *t, char *out, int32_t n);
int cr_tls_write(cr_tls *t, const char *data, int32_t n);
/* Tells the peer that nothing more will be written. */
int cr_tls_end(cr_tls *t);
/* As cr_ws_output. Call it after each of the other functions. */
int64_t cr_tls_output(cr_tls *t, const char **out);

#ifdef __cplusplus
}
#endif
#endif
