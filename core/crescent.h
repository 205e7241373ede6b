/* Crescent: the one public header of the runtime, and its manual.
 *
 * It compiles as C, C++ and CUDA, and LuaJIT's ffi.cdef reads this very file, so every signature
 * exists once. That is why it holds no macros, inline functions or function pointers, and why
 * constants are enums. Lines that begin with '#' (and the C++ guard) are all that a reader of the
 * file in Lua has to leave out.
 *
 * Conventions, true of every function unless its comment says otherwise:
 *   - It returns >= 0, or a negative CR_E* code and leaves one sentence in cr_last_error() of the
 *     calling thread. Nothing here exits, prints or longjmps.
 *   - `out` is a cr_tensor that the caller owns. If out->storage is NULL the function makes a new
 *     tensor in it; otherwise `out` must already have the right shape and dtype on the right device
 *     (any strides) and is overwritten, and must not overlap an input unless that is allowed.
 *   - A cr_tensor passed in is read during the call only; C keeps the storage, never the struct.
 *   - Dimensions count from 0 here (from 1 in Lua). Letters: N batch, C channels, F frames, H W,
 *     B T D tokens, h heads, d head size. Layout is channels-last: images [N H W C], video
 *     [B F H W C], tokens [B T D].
 *   - Numbers inside of tensors that name places, as ARGMAX, cr_sort and cr_nonzero give and
 * cr_gather takes them, are what people see: they count from 1, and from -1 backwards.
 *   - Tensor functions are called from one thread, the one that runs Lua; functions that may be
 *     called from others say so.
 */
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
  CR_EINVAL = -1,       /* an argument is wrong: shapes, dtypes, options */
  CR_ENOMEM = -2,       /* memory is exhausted */
  CR_EIO = -3,          /* the operating system refused: the message has its reason */
  CR_EFORMAT = -4,      /* a file is damaged or not what it claims to be */
  CR_EUNSUPPORTED = -5, /* well formed, but not handled here */
  CR_EDEVICE = -6,      /* the device failed, or is not there */
  CR_EINTERRUPT = -7,   /* cr_interrupt() was called, or Ctrl-C pressed */
  CR_ECLOSED = -8       /* the object is closed or freed */
};

/* The sentence that goes with the calling thread's last negative return; "" if there was none.
 * It names the operation and the shapes: "matmul: inner sizes differ: [2 3] x [2 3]". Valid until
 * the thread's next failing call. */
const char *cr_last_error(void);

/* n bytes that came from a file, made fit for one line of a message: what a terminal would obey is
 * escaped, and what is longer than a line is cut. Valid until the thread's eighth next call. */
const char *cr_printable(const char *bytes, size_t n);

/* The version, MAJOR.MINOR.PATCH. */
const char *cr_version(void);

/* ---- interruption ---------------------------------------------------------------------------- */

/* Makes every operation that starts from now on return CR_EINTERRUPT, until cr_interrupt_clear().
 * Async-signal-safe, any thread. */
void cr_interrupt(void);
/* 1 if cr_interrupt() was called since the last clear. Any thread. */
int cr_interrupted(void);
void cr_interrupt_clear(void);

/* Catches SIGINT and SIGTERM with cr_interrupt(). If cr_interrupt_clear() has not been called
 * `grace_ms` milliseconds after the signal, a watchdog deletes the files named by
 * cr_cleanup_add() and ends the process with status 128 + signal: one long operation cannot hold
 * up Ctrl-C. grace_ms 0: no watchdog. */
int cr_interrupt_install(int32_t grace_ms);

/* Files to delete if the process is interrupted for good (half-written outputs). Any thread. */
int cr_cleanup_add(const char *path);
int cr_cleanup_remove(const char *path);

/* ---- files ----------------------------------------------------------------------------------- */

/* Writes a file, whole or not at all: to a temporary dot name beside it, synced, then renamed. An
 * existing file keeps its mode, links are followed, and what is no regular file (a device, a pipe,
 * /dev/stdout) gets the bytes. Temporary files that dead processes left in the folder are deleted.
 * All other writers here do the same. Any thread. */
int cr_file_write(const char *path, const void *data, int64_t bytes);
/* 1 if both names lead to one regular file (by device and inode), else 0. Any thread. */
int cr_file_same(const char *a, const char *b);

/* ---- threads --------------------------------------------------------------------------------- */

/* Threads that CPU operations use: CR_THREADS from the environment if set, else the processors
 * this process may run on. n <= 0 restores that default; returns the count now in force. */
int32_t cr_threads(void);
int32_t cr_set_threads(int32_t n);

/* ---- tensors --------------------------------------------------------------------------------- */

enum { CR_MAX_RANK = 8 };

/* Element types. Every operation takes f32; f16 and bf16 are storage types whose arithmetic is
 * done in f32. f64 and the integers are taken where the comment of an operation says so. */
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

/* Devices: CR_CPU, or CR_CUDA + the card's number. */
enum { CR_CPU = 0, CR_CUDA = 1 };

/* Refcounted memory; opaque. */
typedef struct cr_storage cr_storage;

/* A view of a storage. Elements of dimension k are stride[k] elements apart (0: repeated; views
 * never have negative strides); element 0 stands `offset` elements into the storage. A freed or
 * never filled tensor has storage NULL. rank 0 is a scalar. */
typedef struct cr_tensor {
  cr_storage *storage;
  int32_t dtype;
  int32_t device;
  int32_t rank;
  int32_t shape[8];
  int64_t stride[8];
  int64_t offset;
} cr_tensor;

/* Bytes of one element of `dtype`; the name ("f32"); the dtype of a name, or CR_EINVAL. */
int32_t cr_dtype_size(int32_t dtype);
const char *cr_dtype_name(int32_t dtype);
int32_t cr_dtype_parse(const char *name);

/* A new contiguous tensor, contents undefined. Sizes of 0 are allowed. */
int cr_empty(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device);

/* A contiguous CPU tensor over memory that somebody else keeps: `data` must live until the last
 * view is freed. */
int cr_from_memory(cr_tensor *out, void *data, int32_t rank, const int32_t *shape, int32_t dtype);

/* Drops this tensor's hold on its storage and clears the struct. Twice is fine. */
void cr_free(cr_tensor *t);

/* out = a second hold on the same storage and view. `out` must be empty. */
int cr_share(cr_tensor *out, const cr_tensor *x);

/* Number of elements, -1 for a freed tensor. 1 if rows lie one after another without gaps. */
int64_t cr_numel(const cr_tensor *t);
int cr_is_contiguous(const cr_tensor *t);

/* Address of element 0 of a CPU tensor, NULL otherwise. */
void *cr_data(const cr_tensor *t);

/* Views; `out` must be empty and holds the same storage.
 * view: another shape of the same number of elements, one size may be -1; fails if the strides do
 *   not allow it (use cr_copy first).
 * permute: dimension k of out is dimension dims[k] of x.
 * slice: indices first, first + step, ... < last of one dimension; step >= 1.
 * select: one index of one dimension, which goes away.
 * expand: dimensions of size 1 repeated to `shape`; new ones come in front; -1 keeps a size. */
int cr_view(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape);
int cr_permute(cr_tensor *out, const cr_tensor *x, const int32_t *dims);
int cr_slice(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t first, int32_t last,
             int32_t step);
int cr_select(cr_tensor *out, const cr_tensor *x, int32_t dim, int32_t index);
int cr_expand(cr_tensor *out, const cr_tensor *x, int32_t rank, const int32_t *shape);

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct cr_memory {
  int64_t live_bytes;          /* held by tensors */
  int64_t cached_bytes;        /* freed, kept for reuse */
  int64_t peak_bytes;          /* most live at once since cr_memory_reset_peak() */
  int64_t live_count;          /* storages alive */
  int64_t peak_reserved_bytes; /* most live and cached together */
} cr_memory;

/* What `device` holds now. Mapped weights files count with the bytes of the tensors made from
 * them, since the operating system may drop and reread their pages. */
int cr_memory_get(int32_t device, cr_memory *out);
int cr_memory_reset_peak(int32_t device);
/* Gives cached memory back to the operating system. */
int cr_memory_trim(int32_t device);
/* Names what the memory taken from now on is for ("unet weights"), in reports; NULL or "": nothing
 * in particular. The name must stay valid for good. Memory keeps its name until it is freed. */
void cr_memory_set_tag(const char *name);
typedef struct cr_memory_tag {
  const char *name; /* "" untagged */
  int64_t live_bytes, peak_bytes;
} cr_memory_tag;
/* What a card's memory is used for: up to n tags, most live bytes first; returns how many there
 * are. The CPU counts no tags. */
int32_t cr_memory_tags(int32_t device, cr_memory_tag *out, int32_t n);
/* Lets a card's tensors hold at most `bytes` (0: all that there is), to see how a smaller card
 * would do. What is held already stays. */
int cr_memory_limit(int32_t device, int64_t bytes);
/* 1 when live bytes have grown so far since the last collection that Lua should collect garbage;
 * cr_memory_collected() notes that it did. */
int cr_memory_pressure(void);
void cr_memory_collected(void);

/* ---- devices --------------------------------------------------------------------------------- */

/* A card's operations are queued, in order, on the stream in use; a function of this header returns
 * when its work is queued, not when it is done. Copies to a CPU tensor wait. */
typedef struct cr_device_info {
  char name[256];       /* "NVIDIA H200" */
  int32_t major, minor; /* compute capability */
  int32_t multiprocessors;
  int64_t memory_total, memory_free; /* bytes, of the whole card */
  int32_t driver, runtime;           /* CUDA versions: 13000 is 13.0 */
  int64_t cublas, cudnn;             /* library versions as these number them */
} cr_device_info;

/* Cards that can be used: 0 where there is none, or CR_EDEVICE with the reason where the CUDA part
 * of the program, a library or the driver is missing. */
int32_t cr_device_count(void);
int cr_device_info_get(int32_t device, cr_device_info *out);

/* A card's options by name: reads into *value, or sets it if `set`. CR_EINVAL for an unknown name.
 * - "tf32" 0: float32 products and convolutions in full precision; 1: in TF32 (10-bit mantissa)
 * - "search" 1: algorithms of products and convolutions are timed once per shape and remembered; 0:
 *   the library's first proposal is taken
 * - "blocking" 1: every operation waits until it is done, so that a fault names its own
 * - "prepare": 1 begins to make cuBLAS and cuDNN ready on a thread of its own; 0, and reading,
 *   wait for that; reads 1 once they are
 * - "fp8_fast" 0: cr_quant_linear joins sums of pieces of a row in f32; 1: it leaves all summing to
 *   the tensor cores, which is faster and has fewer bits
 *
 * What an operation takes along in the pass that makes its result, each 1; 0: a pass of its own.
 * - "linear_bias", "linear_activation", "linear_residual": of cr_linear's products; what follows a
 *   step that is off goes with it. Activations but ReLU are always passes of their own
 * - "linear_geglu": GEGLU of cr_linear_geglu
 * - "conv_bias", "conv_activation", "conv_residual": the same of cr_conv2d; 1x1 windows without
 *   strides are cr_linear's
 * - "norm_bias", "norm_silu": bias_before and SiLU of cr_group_norm
 * - "norm_after": `after` of cr_layer_norm
 * - "fusion" 1: all of these are on; sets all of them */
int cr_device_option(int32_t device, const char *name, int64_t *value, int32_t set);
/* Waits until all that is queued is done; CR_EDEVICE if some of it failed. */
int cr_device_synchronize(int32_t device);
/* A job that ends when all that is queued now on the stream in use is done: waits without holding
 * up the loop. Its status is when that was: microseconds of the monotonic clock, modulo 2^31. */
int64_t cr_device_record(int32_t device);
/* Chooses the stream in use on every card: 0 for networks, 1 for short work beside them, which is
 * served first. A tensor that another stream touched last is waited for, on the card, when it is
 * used. < 0: only asks. Returns the stream now in use. */
int32_t cr_device_stream(int32_t stream);
/* Frees all that the card holds: tensors and recordings on it are lost, and say so. After a fault,
 * when every call on the card fails until this, it is started anew: CR_EDEVICE where the driver
 * gives a card that failed to a new process only. */
int cr_device_reset(int32_t device);

/* Recorded work. Between begin and end, operations on the card are recorded instead of run; their
 * tensors come from memory that recordings share, and keep their addresses. Launching runs the
 * recorded work on the same addresses: a tensor made before is read with what it then holds.
 * Recordings share memory for temporaries, so only tensors alive at the end of one keep their
 * contents until the next launch. What cannot be recorded (a copy to the CPU, waiting) fails with
 * CR_EUNSUPPORTED and spoils the recording: end it by cr_graph_abandon. */
typedef struct cr_graph cr_graph;
int cr_graph_begin(int32_t device);
int cr_graph_end(int32_t device, cr_graph **out);
int cr_graph_abandon(int32_t device);
/* on: tensors come from the memory that recordings share, though nothing is recorded, until off.
 * For running what will be recorded once beforehand without taking memory twice. */
int cr_graph_rehearse(int32_t device, int32_t on);
int cr_graph_launch(cr_graph *g);
/* Kernels, copies and fills that one launch runs. */
int64_t cr_graph_size(const cr_graph *g);
void cr_graph_free(cr_graph *g);

/* ---- code made at run time ------------------------------------------------------------------- */

/* A __global__ function of code for a card: a cubin, or PTX. It belongs to the card until that is
 * reset. */
typedef struct cr_code cr_code;
/* What a function is called with: a tensor, by its first element, or `value`, whose bytes the
 * function's parameter takes. */
typedef struct cr_argument {
  const cr_tensor *tensor; /* or NULL */
  const void *value;
} cr_argument;
int cr_code_load(cr_code **out, int32_t device, const void *image, const char *function);
/* Queues a launch: of blocks (x, y, z) of threads each, with so many bytes of shared memory. */
int cr_code_launch(cr_code *c, const int32_t *grid, const int32_t *block, int32_t shared, int32_t n,
                   const cr_argument *arguments);
/* Twice is not fine; NULL is. */
void cr_code_free(cr_code *c);
/* Loads one of CUDA's shared libraries by name, from where the cards' own are found, for everybody
 * to call. CR_EDEVICE if it is missing. */
int cr_cuda_library(const char *name);

/* ---- elementwise operations ------------------------------------------------------------------ */

/* out = x as elements of out's dtype. If `out` is empty it becomes contiguous with x's dtype.
 * Any dtypes: float to integer truncates towards zero and saturates, nan becomes 0. Any strides.
 * Copies between devices too. */
int cr_copy(cr_tensor *out, const cr_tensor *x);

/* out = x converted to `dtype`, contiguous. */
int cr_cast(cr_tensor *out, const cr_tensor *x, int32_t dtype);

/* All elements of t = value. In place, any dtype and strides. */
int cr_fill(cr_tensor *t, double value);

/* out[i] = start + i * step, i < n. Any dtype but bool; computed in float64. */
int cr_arange(cr_tensor *out, int32_t n, double start, double step, int32_t dtype, int32_t device);

/* The comment beside an operation is its help in Lua. */
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
  CR_FLOOR,      /* the next whole number below */
  CR_CEIL,       /* the next whole number above */
  CR_TRUNC,      /* towards zero */
  CR_ROUND,      /* to the nearest whole number, half to even */
  CR_SQUARE,     /* x * x */
  CR_RECIPROCAL, /* 1 / x */
  CR_NOT,        /* of bool */
  CR_UNARY_OPS
};
/* Its name, that of the method in Lua ("exp"); NULL: there is no such operation. */
const char *cr_unary_name(int32_t op);
/* out = op(x). Floats keep their dtype (f64 in f64); ABS, NEG, SIGN, SQUARE, RELU and the ways of
 * rounding keep that of integers and bool, all others give f32 of these; NOT takes bool. GELU is
 * the exact one, x * (1 + erf(x / sqrt 2)) / 2. out may be x itself. */
int cr_unary(cr_tensor *out, int32_t op, const cr_tensor *x);

enum {
  CR_ADD,       /* a + b, broadcast; b may be a number */
  CR_SUB,       /* a - b */
  CR_MUL,       /* a * b */
  CR_DIV,       /* a / b */
  CR_POW,       /* a ^ b */
  CR_MAX,       /* the greater of both */
  CR_MIN,       /* the smaller of both */
  CR_REMAINDER, /* a % b: what a floor division leaves, with the sign of b; whole numbers by 0: 0 */
  CR_FMOD,      /* what a truncated division leaves, with the sign of a; whole numbers by 0: 0 */
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
/* out = a op b with NumPy's broadcasting. Dtypes: equal, or the wider float of the two (f64 > f32 >
 * bf16, f16; bf16 with f16 gives f32); a float beats an integer, and of two integers the wider
 * wins. Integer DIV gives f32. out may be a or b if it has the result's shape and dtype. */
int cr_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b);
/* The same with a number for b (or for a, if `reversed`): the dtype is the tensor's, or f32 if it
 * is an integer type and the number is not whole or the op is DIV or POW. */
int cr_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed);

/* out = min(max(x, low), high). */
int cr_clamp(cr_tensor *out, const cr_tensor *x, double low, double high);

/* out = sum of coefficients[i] * xs[i], i < n <= 16; equal shapes, floats, computed in f32 (in f64
 * if any input is f64). Every sampling step is one of these. out may be one of xs. */
int cr_lincomb(cr_tensor *out, int32_t n, const cr_tensor *const *xs, const double *coefficients);

/* out = condition ? a : b; bool or u8 condition, broadcast. */
int cr_where(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a, const cr_tensor *b);

/* ---- reductions ------------------------------------------------------------------------------ */

enum {
  CR_SUM,    /* the sum: x:sum(), x:sum(2), x:sum({ 1, 2 }, true) */
  CR_MEAN,   /* the mean */
  CR_AMAX,   /* the greatest; a nan is passed on */
  CR_AMIN,   /* the least; a nan is passed on */
  CR_ARGMAX, /* where the greatest is, from 1 on: of one dimension, or of all */
  CR_ARGMIN, /* where the least is, from 1 on: of one dimension, or of all */
  CR_VAR,    /* the population variance */
  CR_REDUCE_OPS
};
const char *cr_reduce_name(int32_t op); /* as cr_unary_name: "max" of CR_AMAX */
/* Reduces the dimensions whose bit is set in dim_mask (bit k: dimension k; 0: all); keep: they stay
 * with size 1. Sums are taken in f64 on a CPU. VAR is the population variance. ARG* give i64 and
 * take one dimension or all. AMAX and AMIN pass a nan on. Floats keep their dtype, SUM of integers
 * gives i64, MEAN and VAR of them f32. Empty: SUM 0, others an error. */
int cr_reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask, int32_t keep);

/* out = running sums (product: products) along x's last dimension, each with its own element.
 * Floats keep their dtype (taken in f64 on a CPU, in f32 on a card), others give i64. */
int cr_scan(cr_tensor *out, const cr_tensor *x, int32_t product);

/* x's elements along its last dimension in rising order (or falling, if `descending`), and where
 * each stood, i64. Equal elements keep their order; a nan is greater than every number. */
int cr_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending);

/* The first k of what cr_sort gives, in falling order if `largest`. */
int cr_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest);

/* ---- moving data ----------------------------------------------------------------------------- */

/* Joins n tensors along dim; equal dtypes and other sizes. */
int cr_cat(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim);

/* Parts of x's dimension dim by an index, i32 or i64: [T], of which number i names where part i of
 * the result is from; or of x's rank, not larger elsewhere, with a number for each element:
 * out[i][j] = x[index[i][j]][j] of dim 0. The index is on x's device or on the CPU. A number that
 * names no place is an error: of an index on a card, the error of the next call that waits for it.
 */
int cr_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index);

/* The other way round: what cr_gather would read from t becomes x, which has the gathered shape and
 * t's dtype, or (add) that much more. In place. Of several elements with one place the last stays;
 * on a card, without `add`, any. */
int cr_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x, int32_t add);

/* The places of x's elements (bool or u8) that are not 0, in row-major order, i64: [n D], a number
 * for each dimension, or (flat) [n], numbers in that order. Makes `out`. Waits for a card. */
int cr_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat);

/* Pads dimension k with before[k] and after[k] elements of `value`. */
int cr_pad(cr_tensor *out, const cr_tensor *x, const int32_t *before, const int32_t *after,
           double value);

/* ---- matrices -------------------------------------------------------------------------------- */

enum { CR_ACT_NONE, CR_ACT_SILU, CR_ACT_GELU, CR_ACT_RELU, CR_ACT_PRELU, CR_ACT_RELU6, CR_ACTS };
/* "silu"; NULL: there is no such activation. */
const char *cr_act_name(int32_t act);

/* out = a b: [... M K] x [... K N] -> [... M N]; leading dimensions broadcast. a, b: same float
 * dtype, any strides; result in that dtype (f64 in f64). */
int cr_matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b);

/* out = act(x weight' + bias) + residual: x [... K], weight [N K], bias [N] or NULL, residual
 * [... N] or NULL. Floats; the weight may have another float dtype than x. out may be residual.
 * With `residual` set the activation comes before the sum. */
int cr_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
              const cr_tensor *residual, int32_t act);

/* out = softmax(scale q k' + mask) v for `heads` heads: q [... T h*d], k [... S h*d], v [... S
 * h*dv]
 * -> [... T h*dv]. Leading dimensions are equal, or 1 in k, v and mask. The last dimension must be
 * dense, the others may have any strides (views of a packed qkv, or [B F H W C] seen as
 * [B H W F C], need no copy). mask: NULL, or f32, added to the scores, broadcast to [... T S].
 * scale <= 0: 1 / sqrt d. Accumulation in f32. Dao et al. 2022 (FlashAttention) for the idea of
 * not storing the scores. */
int cr_attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                 int32_t heads, double scale, const cr_tensor *mask);

/* out = a * gelu(g), where x [... 2D] = (a, g). Shazeer 2020. */
int cr_geglu(cr_tensor *out, const cr_tensor *x);

/* cr_geglu(cr_linear(x, weight, bias)): x [... K], weight [2D K] (values' rows, then gates'), bias
 * [2D] or NULL -> [... D]. On Hopper, for f16 and bf16, one kernel may do it (the option
 * linear_geglu) that keeps the product in f32 and never writes its [... 2D]. */
int cr_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *bias);

/* out = softmax of x over its last dimension. */
int cr_softmax(cr_tensor *out, const cr_tensor *x);

/* ---- quantized numbers ----------------------------------------------------------------------- */

/* Numbers in 8 or 4 bits: codes, and f32 scales that make numbers of them, element = number of its
 * code * scale. The format follows from the tensors:
 * - int8: codes i8, -127 to 127, which are their own numbers
 * - E4M3: codes u8 (Micikevicius et al. 2022, "FP8 formats for deep learning"): sign, 4 bits of
 *   exponent with bias 7, 3 of mantissa; exponent 0 holds the subnormals, multiples of 2^-9; the
 *   largest is 448; no infinities, nan is 0x7f and 0xff
 * - int4, for weights alone: codes u8, two in a byte, the one of even index in the low four bits,
 *   -8 to 7 in two's complement; a scale for each 64 neighbours of the last dimension
 * Activations: codes [... K] and scale [...], one for each row (vector of the last dimension);
 * without a scale ("static") an element is number * divisor[k], where `divisor` [K] belongs to the
 * layer that takes them. Weights in 8 bits: codes [N K] or [O kh kw C], scale [N] or [O]. In 4
 * bits: codes [N K/2] or [O kh kw C/2], scale [N ceil(K/64)] or [O kh kw ceil(C/64)]. Codes, scales
 * and divisors are contiguous where they are read. `dtype` of what makes codes: CR_I8 or CR_U8. */

/* codes [... K] of `dtype`, and scale [...] unless it is NULL, of x [... K]: f32, f16 or bf16, any
 * strides. divisor (f32 [K] or NULL): x is multiplied by 1 / divisor[k] first. With a scale it is
 * that of the row's largest magnitude, max(|x|, 1e-30) / 127 or 448, and x is multiplied by 1 /
 * scale; without one there must be a divisor. Divisions and products round as f32, the code is the
 * nearest, ties to even; what exceeds the largest code becomes that. nan: stays nan in E4M3, where
 * an infinity makes nan of its row if that has a scale; in int8 it becomes 0, and a row with a
 * scale that holds a nan or an infinity gets the scale nan. */
int cr_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor,
                int32_t dtype);
/* out, f32, f16 or bf16 = the numbers that activations or weights of any format stand for. scale:
 * its dimensions are the leading ones of codes (int4: above); NULL: 1. divisor: f32 of the last
 * dimension or NULL, multiplied with it. */
int cr_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                  const cr_tensor *divisor, int32_t dtype);
/* What cr_quantize makes of the result of cr_geglu, cr_layer_norm, cr_group_norm, cr_attention: the
 * result is not rounded to x's dtype on the way where this is one pass. */
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

/* out [... N] = act(x weight' + bias) + residual with a quantized weight [N K] of any format. x
 * [... K]: codes of the weight's 8-bit format, x_scale [...] or NULL (static: weight_scale has what
 * it would be); floats where the weight is int4. out is `dtype`: f32, f16 or bf16. Sums of int8
 * products are exact (K is at most 131072), then multiplied by x_scale * weight_scale in f32.
 * Products of E4M3 are summed in f32; but a Hopper's tensor cores sum pieces of a row with some 14
 * bits, and with the option "fp8_fast" whole rows. int4's numbers are multiplied with x in x's
 * dtype. bias, residual, act as in cr_linear. A card may lack a format (CR_EUNSUPPORTED): E4M3
 * needs compute capability 8.9 or more. */
int cr_quant_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                    const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                    const cr_tensor *residual, int32_t act, int32_t dtype);

/* out [... D] = cr_geglu of cr_quant_linear(x, weight [2D K]), whose result is not rounded to
 * `dtype` (f32, f16, bf16) on the way where this is one pass. codes 0: out is `dtype`; CR_I8 or
 * CR_U8: out is static codes of the result / divisor, f32 [D]. */
int cr_quant_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                          const cr_tensor *weight, const cr_tensor *weight_scale,
                          const cr_tensor *bias, const cr_tensor *divisor, int32_t dtype,
                          int32_t codes);

/* ---- convolutions ---------------------------------------------------------------------------- */

/* pad: top, bottom, left, right (zeros); all of the rest are per axis. */
typedef struct cr_conv {
  int32_t stride_h, stride_w;
  int32_t dilation_h, dilation_w;
  int32_t pad[4];
  int32_t groups;
  int32_t act; /* CR_ACT_*, applied after the bias, before the residual */
} cr_conv;

/* out = act(conv(x, weight) + bias) + residual. x [N H W C], weight [O kh kw C/groups], bias [O] or
 * NULL, residual [N H' W' O] or NULL; slope [O]: CR_ACT_PRELU's, else NULL. Floats. A 1-D
 * convolution is one with H = kh = 1. */
int cr_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
              const cr_tensor *residual, const cr_tensor *slope, const cr_conv *options);

/* The same with a quantized weight [O kh kw C/groups]; x [N H W C]: static codes of the weight's
 * 8-bit format, floats where that is int4. out is `dtype`, sums and scales as in cr_quant_linear
 * (kh kw C/groups is at most 131072). No PReLU. */
int cr_quant_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *weight_scale, const cr_tensor *bias, const cr_tensor *residual,
                    const cr_conv *options, int32_t dtype);

/* out [N 2H 2W O], `dtype` = the 3x3 convolution, padded by 1, of x [N H W C] doubled to the
 * nearest, with the folded weight [4O 2 2 C] that lua/cr/nn/upsample.lua describes, in 8 bits; bias
 * [4O] or NULL. x: static codes. */
int cr_quant_upsample_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                             const cr_tensor *weight_scale, const cr_tensor *bias, int32_t dtype);

/* out = maximum over windows, x [N H W C]; padding does not take part. */
int cr_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                  int32_t stride_h, int32_t stride_w, const int32_t *pad);

/* ---- normalization --------------------------------------------------------------------------- */

/* out = (x - mean) / sqrt(var + eps) * weight + bias, then SiLU if `silu`. x [N ... C]: statistics
 * over everything but N within each of `groups` groups of channels, so the view decides what they
 * cover: [B*F H W C] per frame, [B F H W C] over all frames of the window. bias_before [N C] or
 * NULL is added to x first (a resnet's time embedding). Wu & He 2018. */
int cr_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                  const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before);

/* out = layer norm over the last dimension, plus `after` if not NULL (same shape as x or
 * broadcastable to it: a position encoding). Ba et al. 2016. */
int cr_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *bias, double eps, const cr_tensor *after);

/* ---- diffusion ------------------------------------------------------------------------------- */

/* out [T dim] = sinusoidal embedding of the timesteps t [T] (any dtype but bool): cos(t f_k) for
 * k < h = floor(dim / 2), then sin(t f_k), then one 0 if dim is odd, with f_k = 10000^(-k / h):
 * diffusers' Timesteps with flip_sin_to_cos and no shift. Computed in f64, rounded once to `dtype`,
 * a float dtype. Vaswani et al. 2017; Ho et al. 2020. */
int cr_timestep_embedding(cr_tensor *out, const cr_tensor *t, int32_t dim, int32_t dtype);

/* out = (mean + exp(clamp(logvar, -30, 20) / 2) * noise) * scale: a draw from a normal posterior of
 * which the mean and the logarithm of the variance are known; noise: standard normal draws, NULL: 0
 * (the mean, scaled). Equal shapes, floats, any strides; dtypes and arithmetic as in cr_lincomb.
 * out may be mean, logvar or noise. Kingma & Welling 2014; Rombach et al. 2022 (the scale). */
int cr_posterior_sample(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                        const cr_tensor *noise, double scale);

/* ---- pictures -------------------------------------------------------------------------------- */

enum {
  CR_NEAREST,       /* torch's: source index = floor(i * in / out) */
  CR_BILINEAR,      /* pixel centres at half integers (OpenCV's, torch's align_corners = False) */
  CR_LINEAR,        /* the same; u8 is OpenCV's INTER_LINEAR of bytes, in its fixed point */
  CR_BILINEAR_EDGE, /* TFLite's with half_pixel_centers and align_corners off: x = i * in / out */
  CR_BICUBIC_AA,    /* torch's antialiased bicubic, a = -0.5; f32 not clamped */
  CR_LANCZOS4,      /* OpenCV's INTER_LANCZOS4: 8 taps, no antialiasing; fixed point for u8 */
  CR_RESIZE_METHODS
};
/* "bilinear"; NULL: there is no such method. */
const char *cr_resize_method_name(int32_t method);
/* out = x [N H W C] or [H W C] at height x width. u8 stays u8, floats stay floats. */
int cr_resize(cr_tensor *out, const cr_tensor *x, int32_t height, int32_t width, int32_t method);

/* out [N s*H s*W C] = x [N H W s*s*C], f32, f16 or bf16: a pixel's channels, in the order row,
 * column, channel, as s x s pixels; plus base [N H W C], each pixel of it s x s times, unless NULL.
 * Sums are made in f32. out: of x's dtype, f32, or (`dtype`) u8: clamped to 0..1, times 255,
 * rounded half to even, nan gives 0; or i16: the same times 65535, an unsigned number's 16 bits.
 * flaw, i32 [1] or NULL, becomes 1 if a sum is not finite and is left as it is otherwise. s up to
 * 16, C up to 16. Shi et al. 2016. */
int cr_pixel_shuffle(cr_tensor *out, const cr_tensor *x, int32_t s, const cr_tensor *base,
                     int32_t dtype, cr_tensor *flaw);

/* out [height width C] = x [H W C] moved by the 2x3 matrix m (row major; maps source pixel (x, y)
 * to result pixel), sampled bilinearly; samples outside x count as `fill`, mixed in at the border
 * in proportion. x u8 or f32. The result is `dtype`: u8 truncates. Only the rectangle
 * [left, left + width) x [top, top + height) of the moved picture is computed. */
int cr_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                   int32_t height, int32_t width, double fill, int32_t dtype);

/* The same sampled by a bicubic kernel (a = -0.5), widened along each axis of x where the map
 * shrinks it, so that nothing aliases; near x's border the weights inside it are renormalized, and
 * outside its nearest pixels go on. x [H W C] f32 -> f32 [height width C]. */
int cr_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                    int32_t height, int32_t width);

/* out [height width C] = x [H W C] (u8 or f32, kept; u8 truncates) sampled bilinearly where
 * theta (2x3, row major) puts the result's pixels, both pictures spanning -1..1 from the first
 * pixel's centre to the last's; outside counts as `fill`. The same as cr_warp_affine but for its
 * arithmetic: single precision in the order of torch's affine_grid and grid_sample (align_corners,
 * processors with fma), bit for bit, for programs that must give the same bytes. */
int cr_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, int32_t height,
                   int32_t width, double fill);

/* out u8 [height width C] = x u8 [H W C] moved by m as in cr_warp_affine, outside 0, with the
 * arithmetic of OpenCV 4's warpAffine (INTER_LINEAR): places in 1/32 of a pixel, weights of 15
 * bits; the bytes that it gives. */
int cr_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m, int32_t height,
                  int32_t width);

/* out = minimum over x-before .. x+after in both directions; x [H W C] f32; pixels outside do not
 * take part. */
int cr_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after);

/* out = x [H W C] f32 blurred by a Gaussian of `size` (odd) taps, border reflected (not repeated).
 */
int cr_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma);

/* out (u8 [H W C]) = weight * face + (1 - weight) * frame, truncated; frame u8 [H W C], face f32
 * [H W C] in 0..255, weight f32 [H W 1]. out may be frame. */
int cr_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
             const cr_tensor *weight);

/* A picture as video decoders give it: planes Y [height width], then U and V, each [height /
 * 2^shift_y, width / 2^shift_x] rounded up, dense, one after another. */
typedef struct cr_yuv {
  int32_t width, height;    /* 8 or more */
  int32_t shift_x, shift_y; /* 0 or 1 */
  int32_t full_range;       /* 0: Y 16..235, U and V 16..240; 1: all 0..255 */
  int32_t matrix[4]; /* 65536 times V's share in red, U's in blue, less U's and V's in green, for
                        the limited range: libswscale's sws_getCoefficients; all 0: the planes are
                        G, B and R */
  int32_t bits; /* 0: values of 8 bits, a byte each; 9..16: of so many bits, 16 bits each, which
                   only readers and writers of video know */
} cr_yuv;
/* out u8 [height width 3] = the planes x (u8 [bytes]) as RGB: chroma at every pixel by libswscale's
 * bicubic filter, its matrix and its rounding: from 16 x 16 on the bytes that it gives. */
int cr_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
/* The way back: out u8 [bytes] = planes as `format` says of x u8 [H W 3], whose last row and column
 * are repeated where format's height or width is one more. Both are multiples of 2^shift and 12 or
 * more. Chroma by libswscale's filter, its matrix and its rounding: the bytes that it gives. */
int cr_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);

/* A turned square cut out of a frame, for a network: out f32 [size size C] = scale * mean + shift
 * of x u8 [H W C], C <= 4. square: its centre x, y and side in pixels of x, and its angle (radians,
 * clockwise as seen); pixel centres lie at half integers. Bilinear; where the square is larger than
 * the result, up to 4 x 4 samples a pixel (of an upright one up to 5 x 5 pixels) are averaged.
 * Outside x is 0. */
int cr_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, int32_t size,
                  double scale, double shift);

/* ---- random numbers -------------------------------------------------------------------------- */

enum {
  CR_RNG_TORCH_CPU,  /* torch.randn on a CPU: mt19937, its two Box-Muller forms */
  CR_RNG_TORCH_CUDA, /* torch.randn on a CUDA card with 132 multiprocessors: Philox 4x32-10 */
  CR_RNG_PHILOX,     /* counter = element index: the same numbers on every device */
  CR_RNG_KINDS
};
/* "torch-cpu"; NULL: there is no such kind. */
const char *cr_generator_kind_name(int32_t kind);
typedef struct cr_generator cr_generator;

/* A generator with torch.manual_seed's seed. Freed by cr_generator_free. */
int cr_generator_new(cr_generator **out, int32_t kind, uint64_t seed);
/* Another one that draws from here on what g would. */
int cr_generator_copy(cr_generator **out, const cr_generator *g);
/* Moves g on as a cr_randn of n numbers of a float dtype would. Of a counter-based kind nothing is
 * drawn. */
int cr_generator_skip(cr_generator *g, int64_t n, int32_t dtype);
void cr_generator_free(cr_generator *g);

/* out = standard normal draws, any float dtype, contiguous: the values that torch.randn(shape)
 * gives in row-major order of `out`. With channels-last data, draw in torch's order and permute.
 * Salmon et al. 2011 (Philox), Matsumoto & Nishimura 1998. */
int cr_randn(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device,
             cr_generator *g);
/* Uniform on [0, 1). */
int cr_rand(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype, int32_t device,
            cr_generator *g);

/* ---- weights files --------------------------------------------------------------------------- */

/* A file of named tensors: safetensors, PyTorch .pt/.pth/.bin (zip archive or the legacy stream),
 * NumPy .npy and .npz, CTranslate2 model.bin, ONNX (its graph is the metadata). The kind is told by
 * the contents, not by the name. Nothing in a file is executed: a pickle may only build
 * dictionaries, lists, numbers, strings and tensors; any other global is refused by name
 * (CR_EFORMAT). A tensor that Crescent cannot hold (sparse, quantized, complex, of a subclass) is
 * listed and refused when it is taken. Memory is bounded by a multiple of the file's size, whatever
 * the file claims. A file must stay as it is while tensors lie over it. One that is cut short ends
 * the process, with a sentence, status 1 and the cleanup of cr_cleanup_add(), when a page that is
 * gone is touched. */
typedef struct cr_weights cr_weights;

typedef struct cr_weights_entry {
  const char *name; /* nested dictionaries' keys are joined by dots; lives as long as the file */
  int32_t dtype;    /* of cr_weights_tensor's tensor; < 0: see trouble */
  int32_t rank;
  int32_t shape[8];
  int64_t bytes;       /* of the elements in the file, dense */
  const char *trouble; /* why the tensor cannot be taken: "has dtype complex64, which is not
                        * handled"; NULL if it can */
} cr_weights_entry;

/* Opens and checks the whole directory of a file (not the numbers). */
int cr_weights_open(cr_weights **out, const char *path);
void cr_weights_close(cr_weights *w); /* tensors taken from it stay valid */
int64_t cr_weights_count(const cr_weights *w);
/* Entries in the order of the file. */
int cr_weights_entry_at(const cr_weights *w, int64_t index, cr_weights_entry *out);
/* Index of a name, or CR_EINVAL. */
int64_t cr_weights_find(const cr_weights *w, const char *name);
/* A CPU tensor over the mapped file (safetensors, zip-stored, legacy and .npy members; strided
 * views of a shared storage stay views) or unpacked from it (deflated members). 8-bit floats become
 * f16, unsigned integers of 16 bits i32 and of 32 and 64 bits i64. Read-only by contract: copy
 * before writing. */
int cr_weights_tensor(const cr_weights *w, int64_t index, cr_tensor *out);
/* What was passed over when the file was opened ("12 bytes behind the archive"), or NULL. */
const char *cr_weights_warning(const cr_weights *w);
/* What is not a tensor, as JSON: safetensors' __metadata__, the numbers and strings of a pickle
 * (e.g. Whisper's dims). Lives as long as the file. */
const char *cr_weights_metadata(const cr_weights *w);
/* The path of a file that was changed in place while it, or a tensor over it, was in use, or NULL:
 * its size or its time of change is another. A file that is closed is named once. Ask on the thread
 * that runs Lua, at the end of what the weights were for; valid until the next call. */
const char *cr_weights_changed(void);
/* "safetensors", "torch-zip", "torch-legacy", "npy", "npz", "ctranslate2", "onnx" */
const char *cr_weights_format(const cr_weights *w);

/* Writes tensors as safetensors (metadata_json: a JSON object of strings, or NULL) or one tensor
 * as .npy, to a temporary dot name beside `path`, then renames it. */
int cr_safetensors_save(const char *path, int32_t n, const char *const *names,
                        const cr_tensor *const *tensors, const char *metadata_json);
int cr_npy_save(const char *path, const cr_tensor *t);
/* The same of several as .npz, at most 4 GB; dense tensors on the CPU. */
int cr_npz_save(const char *path, int32_t n, const char *const *names,
                const cr_tensor *const *tensors);

/* SHA-256 of a file as 64 hex digits and a NUL. Any thread. */
int cr_sha256_file(const char *path, char *hex);

/* A digest of bytes as they come: "SHA256" or "MD5". One thread at a time. */
typedef struct cr_digest cr_digest;
int cr_digest_open(cr_digest **out, const char *algorithm);
int cr_digest_add(cr_digest *d, const void *bytes, int64_t n);
/* Bytes of a file from `offset` on, fewer than n only at its end; returns how many. */
int64_t cr_digest_add_file(cr_digest *d, const char *path, int64_t offset, int64_t n);
/* The same as a job, on one of the loop's threads; nothing else is done with the digest until it
 * has ended, but that it may be closed. */
int64_t cr_digest_start_file(cr_digest *d, const char *path, int64_t offset, int64_t n);
/* Two hex digits for each byte of the digest, 64 at most, and a NUL. Nothing is added after it. */
int cr_digest_end(cr_digest *d, char *hex);
void cr_digest_close(cr_digest *d);

/* ---- event loop ------------------------------------------------------------------------------ */

/* Work that runs on other threads (media) is started by a function that returns a job number > 0.
 * When it ends, a completion is appended to a ring, and the loop wakes. Lua drains the ring and
 * resumes whoever waits. There are no callbacks from C into Lua. */
typedef struct cr_completion {
  int64_t job;
  int32_t status; /* >= 0 as the function's comment says, or CR_E* */
  char message[500];
} cr_completion;

/* The core's libuv loop (a uv_loop_t *), made on first use; NULL if that fails. luv is set to it,
 * so its timers and sockets run on the same loop. */
void *cr_loop(void);
/* Takes up to n completions; returns how many. */
int cr_loop_drain(cr_completion *out, int32_t n);
/* Jobs started and not yet drained. */
int64_t cr_loop_pending(void);

/* ---- transfers by HTTP (in crescent_remote.so) ----------------------------------------------- */

/* A request. Texts are copied; NULL is as good as "". */
typedef struct cr_transfer_options {
  const char *method, *url;
  const char *const *headers; /* header_count lines "Name: value" */
  int32_t header_count;
  const char *sign;                /* AWS Signature 4: "aws:amz:REGION:SERVICE"; "": none */
  const char *user, *secret;       /* the key's id and the key, for it */
  const void *body;                /* body_bytes, copied; or */
  const char *body_path;           /* so many bytes of a file, from body_offset on */
  int64_t body_offset, body_bytes; /* body_bytes < 0: the request has none */
  const char *out_path; /* the answer's body goes to this file, which is there already, from */
  int64_t out_offset;   /* here on, if its status is out_status; with another 2xx it is left */
  int32_t out_status;   /* out, and with the rest it comes to memory, as without a path */
  int64_t limit;        /* most bytes of it in memory; more are an error */
  double connect_seconds, idle_seconds; /* without a connection, without a byte; 0: no limit */
  int32_t direct;                       /* 1: by no proxy, whatever the environment says */
} cr_transfer_options;

/* Starts a request on a thread that all of them share; a job, whose status is that of the answer
 * (200, 404), or 0 where none came whole. It fails where a file cannot be read or written, and over
 * too long an answer. Redirections are answers. */
typedef struct cr_transfer cr_transfer;
int64_t cr_transfer_start(cr_transfer **out, const cr_transfer_options *options);
/* Bytes of the answer's body that have come to where they were to go. Any time. */
int64_t cr_transfer_received(const cr_transfer *t);
/* Once the job has ended: why no answer came, which names no URL; the answer's header lines, and
 * its body in memory. They live as long as the transfer. */
const char *cr_transfer_problem(const cr_transfer *t);
const char *cr_transfer_headers(const cr_transfer *t, int64_t *bytes);
const char *cr_transfer_body(const cr_transfer *t, int64_t *bytes);
/* Ends it, whether it runs (then its job ends soon) or not, and frees it. */
void cr_transfer_close(cr_transfer *t);

/* ---- media (in crescent_media.so) ------------------------------------------------------------ */

/* What a video says about the display that it was made for; pairs are numerator, denominator. */
typedef struct cr_hdr {
  int32_t mastering;                    /* 1: the next three are known */
  int32_t primaries[12], white[4];      /* x and y of red, green, blue; of white */
  int32_t luminance[4];                 /* least and most, candela per square metre */
  int32_t max_light, max_average_light; /* of the pictures; 0 unknown */
  int32_t dynamic;                      /* 1: each picture says more (Dolby Vision, HDR10+) */
} cr_hdr;

typedef struct cr_media_info {
  int32_t has_video, has_audio;
  int32_t width, height; /* as shown: after rotation */
  int32_t rotation;      /* degrees clockwise that decoding applies */
  double fps;            /* average; 0 unknown */
  double duration;       /* seconds; 0 unknown */
  int64_t frames;        /* at 25 fps, estimated from the duration; 0 unknown */
  int32_t color_space, color_range, color_primaries, color_transfer; /* libav's enums */
  int32_t sample_rate, channels;
  double audio_duration;
  char video_codec[32], audio_codec[32], format[64];
  int32_t aspect_num, aspect_den; /* a pixel's width to its height, as shown; 0/1 unknown */
  int32_t bits;                   /* of a value of a pixel: 8, 10, ...; 0 unknown */
  cr_hdr hdr;
  char pix_fmt[32]; /* libav's name of how pixels lie: yuv420p10le; "" unknown */
  int32_t alpha;    /* 1: some pixels may be transparent, and not by a palette */
} cr_media_info;

/* Reads a file's headers, and of a video the first picture, which may say how it is to be turned.
 * Any thread. */
int cr_media_probe(const char *path, cr_media_info *out);

/* The versions of libav's libraries, for reports. Any thread. */
const char *cr_media_version(void);

/* The next sentence that media functions have for the user beside their success (sound that is
 * missing, depth that is lost), and how many there were with it: 0, none. Each comes once. Any
 * thread. */
int cr_media_warning(char *out, int32_t bytes);

/* Decodes the best video stream as u8 RGB [H W 3], rotation applied, the stream's own matrix and
 * range, at a constant `fps` (25; 0: the stream's own frames) picking frames as `ffmpeg -r` does.
 */
typedef struct cr_video cr_video;
int cr_video_open(cr_video **out, const char *path, double fps);
void cr_video_close(cr_video *v);
/* Starts reading up to n (<= 256) frames from the current position on another thread; a job. Its
 * status is the number of frames read, less than n only at the end. */
int64_t cr_video_read_start(cr_video *v, int32_t n);
/* Frame i of the last finished read, as a new tensor u8 [H W 3]; *pts_seconds (or NULL) its time
 * in the source. Each can be taken once. */
int cr_video_take(cr_video *v, int32_t i, cr_tensor *out, double *pts_seconds);
/* From the next read on: on != 0 keeps frames as they were decoded where cr_yuv can tell how they
 * lie (8-bit 4:2:0, 4:2:2, 4:4:4; upright, of the first one's size), to be converted elsewhere. */
int cr_video_planes(cr_video *v, int32_t on);
/* For all reads, before the first: of a video whose values have more than 8 bits all frames keep
 * them, as planes turned upright. The bits that a value has then; 8: it has no more, and nothing
 * changes. */
int cr_video_deep(cr_video *v);
/* As cr_video_take; 1: out is planes as *format says, u8 [bytes], or i16 [values], the bits of
 * unsigned numbers, where format->bits says so; 0: out is u8 [H W 3]. */
int cr_video_take_planes(cr_video *v, int32_t i, cr_tensor *out, cr_yuv *format,
                         double *pts_seconds);
/* Starts moving so that the next read begins with frame `index` (from 0, counted at the constant
 * rate); exact: the same pictures come as in a run from the start. A job; status 0, or
 * CR_EINVAL past the end. */
int64_t cr_video_seek_start(cr_video *v, int64_t index);

/* Decodes the best audio stream, resampled to `rate` Hz (0: its own) and mixed to `channels` (0:
 * its own), as ffmpeg does; placed by its timestamps: what begins late has silence before it, as a
 * hole has in it. s16 != 0: through 16-bit integers (rounded, then / 32768), as the reference's
 * audio is. */
typedef struct cr_audio cr_audio;
int cr_audio_open(cr_audio **out, const char *path, int32_t rate, int32_t channels, int32_t s16);
/* The same of what comes as it is made: a URL, a pipe, a device; `format` is libav's name of how it
 * is read ("": as FFmpeg finds out). */
int cr_audio_open_live(cr_audio **out, const char *url, const char *format, int32_t rate,
                       int32_t channels);
void cr_audio_close(cr_audio *a);
int32_t cr_audio_rate(const cr_audio *a);
int32_t cr_audio_channels(const cr_audio *a);
/* Up to n (<= 2^24) sample frames: a job, status = number of frames, less than n only at the end.
 * A file without a single sample is an error. */
int64_t cr_audio_read_start(cr_audio *a, int64_t n);
/* The last finished read as f32 [n channels]; can be taken once. */
int cr_audio_take(cr_audio *a, cr_tensor *out);

/* Pieces of sound of any rate and number of channels, one after another, resampled and mixed as
 * above. */
typedef struct cr_pcm cr_pcm;
int cr_pcm_open(cr_pcm **out, int32_t rate, int32_t channels);
void cr_pcm_close(cr_pcm *p);
/* n samples of each channel, interleaved, i16 or f32 in [-1, 1]; n = 0: the end, after which
 * another sound may begin. What is no number is silent. */
int cr_pcm_push(cr_pcm *p, const void *samples, int64_t n, int32_t dtype, int32_t rate,
                int32_t channels);
/* All that is resampled and was not taken: f32 [n channels]; n may be 0. */
int cr_pcm_take(cr_pcm *p, cr_tensor *out);

typedef struct cr_writer_options {
  int32_t width, height; /* of the frames that will come; odd sizes are padded to even unless
                            lossless */
  double fps;
  char codec[32]; /* "" libx264; lossless: FFV1 in Matroska, RGB, or if `deep` as the source */
  int32_t crf;    /* constant rate factor, 0..51; < 0: 18 */
  int32_t lossless;
  int32_t color_space, color_range, color_primaries, color_transfer; /* as in cr_media_info */
  const char *const *audio_paths; /* audio_count files, named until the writer is open: one track is
                                     encoded in its own rate and channels, of several the sum */
  int32_t audio_count;            /* 0: no sound */
  double audio_gain;              /* factor of the sum of several */
  double audio_start;             /* seconds of them to leave out */
  double audio_end;               /* seconds of them at which they stop; <= 0: their end */
  char comment[500];              /* metadata "comment"; "" none */
  int32_t aspect_num, aspect_den; /* as in cr_media_info */
  char pix_fmt[32]; /* libav's name of the encoder's pixels; "": yuv420p; if `bits` are more than 8
                       and the encoder can, of 10 bits, or, if `deep`, source_pix_fmt */
  int32_t bits;     /* of the video that the frames come from, as the next two */
  cr_hdr hdr;
  char source_pix_fmt[32];
  int32_t deep; /* 1: frames will come with all these bits; 0: in 8 */
  int32_t
      timed; /* 1: frames may come with times of their own; fps is then how long the last lasts */
  int32_t live; /* 1: the path is a URL, a pipe or a file that is written as it grows, or "": memory
                   (cr_writer_take); frames are encoded without looking ahead and leave at once */
  char container[32]; /* of a live one, libav's name ("mp4", "hls"); "": by the path's ending */
  int32_t sound_rate, sound_channels; /* > 0: sound comes by cr_writer_sound_start, not from files
                                       */
} cr_writer_options;

/* Encodes frames to a temporary dot name beside `path` and renames it when closed. */
typedef struct cr_writer cr_writer;
int cr_writer_open(cr_writer **out, const char *path, const cr_writer_options *options);
/* How the encoder's own pictures lie: 1 and *format if the writer takes pictures that cr_rgb_to_yuv
 * made so, or a reader gave so (of more than 8 bits), from which it saves a conversion and loses
 * none of its bytes; 0 if it takes RGB only. */
int cr_writer_planes(const cr_writer *w, cr_yuv *format);
/* Queues u8 [F H W 3] or [H W 3], or one picture's planes, u8 [bytes] or i16 [values]; a job, done
 * when encoded: status = frames written so far. `seconds`: when the first is shown, after all
 * before it (moved there if it is not), which a `timed` writer keeps; < 0: when the last ends. */
int64_t cr_writer_write_start(cr_writer *w, const cr_tensor *frames, double seconds);
/* Queues sound of a writer with a sound_rate, f32 [n channels], in front of the frames that it goes
 * along with: sound that lacks when a frame is encoded is silent. A job, done when taken. */
int64_t cr_writer_sound_start(cr_writer *w, const cr_tensor *sound);
/* Seconds by which the sound that has left ends before the pictures that have: what the sound's
 * encoder holds. When no job is under way. */
double cr_writer_sound_lag(const cr_writer *w);
/* What a live writer has written to memory since the last call, u8 [n]; n may be 0. */
int cr_writer_take(cr_writer *w, cr_tensor *out);
/* Ends the file: sound cut or padded with silence to the pictures' length, trailer, rename. A
 * job. */
int64_t cr_writer_finish_start(cr_writer *w);
/* The same at once, for whoever cannot wait for a job: encodes what is queued, ends the file, and
 * frees the writer, whether that fails or not. */
int cr_writer_end(cr_writer *w);
/* Frees the writer; an unfinished file is deleted. */
void cr_writer_close(cr_writer *w);

/* Puts the pictures of parts of a film, one encoder's at 25 a second, one after the other into a
 * file, and beside them the sound of another (NULL: none): packets are copied. Returns the number
 * of pictures. Any thread. */
int64_t cr_media_join(const char *path, int32_t count, const char *const *parts, const char *sound);

/* A picture file (PNG, JPEG, ...) as u8 [H W 3]. Any thread, as the next three. */
int cr_picture_read(cr_tensor *out, const char *path);
/* All that it holds: [H W C] with C 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (not
 * multiplied in), u8, or of more than 8 bits i16, whose 16 bits are a number 0..65535. 1: out is
 * i16 [values], planes of luma and chroma as *format says. */
int cr_picture_read_whole(cr_tensor *out, const char *path, cr_yuv *format);
/* Such a picture as PNG, through a temporary name. */
int cr_picture_write(const cr_tensor *x, const char *path);
/* CR_EINVAL if a picture of this size is more than the PNG encoder takes. */
int cr_picture_check(const char *path, int64_t height, int64_t width);

/* ---- HTTP (in crescent_http.so) -------------------------------------------------------------- */

/* Reads HTTP/1.1 requests out of the bytes that came over a connection. Nothing here does input or
 * output: who holds the socket gives the bytes and gets events, one with each call. A handle is
 * used by one thread at a time. */
typedef struct cr_http cr_http;
/* head_bytes: how many a request's head may have, and between pieces of its body a chunk's. */
int cr_http_new(cr_http **out, int32_t head_bytes);
void cr_http_free(cr_http *h);

enum {
  CR_HTTP_MORE = 0, /* all bytes were read: more are needed */
  CR_HTTP_HEAD = 1,
  CR_HTTP_BODY = 2, /* a piece of the body */
  CR_HTTP_END = 3   /* of the request: what follows is the next */
};

typedef struct cr_http_event {
  int32_t kind;     /* CR_HTTP_MORE, ... */
  int32_t used;     /* bytes that were read; those after them are given again with the next call */
  int32_t first;    /* of a piece: where in the given bytes it lies, */
  int32_t bytes;    /* and how many it has; of a head: how many `head` has */
  const char *head; /* method, target, names in lower case and values in turn, each ended by a 0;
                       valid until the next call */
  int64_t length;   /* of the body; -1: comes in chunks and is not known */
  int32_t minor;    /* the version is HTTP/1.minor, 0 or 1 */
  int32_t keep_alive; /* 1: the client would go on over this connection */
  int32_t status;     /* of a failure: what to answer, 400 ... 505 */
} cr_http_event;

/* Reads on, up to the next event, and returns its kind. After a failure the connection cannot be
 * understood any more and is to be closed. Refused is what could be taken for another request
 * elsewhere: two lengths, a length beside chunks, bare CR or LF, folded lines. */
int cr_http_read(cr_http *h, const char *data, int32_t n, cr_http_event *out);

/* A server's side of a WebSocket (RFC 6455), in the same way: bytes in, messages out, and back.
 * Pings are answered, and so is the other side's close, in what cr_ws_output gives. */
typedef struct cr_ws cr_ws;
/* What Sec-WebSocket-Accept says to a Sec-WebSocket-Key: 28 characters and a 0. */
int cr_ws_accept(const char *key, char *out);
/* A message of more than max_bytes ends the connection with status 1009. */
int cr_ws_new(cr_ws **out, int64_t max_bytes);
void cr_ws_free(cr_ws *w);

enum {
  CR_WS_MORE = 0,
  CR_WS_TEXT = 1, /* UTF-8 */
  CR_WS_BINARY = 2,
  CR_WS_CLOSE = 8, /* the last: the other side closed, or (status 0, no data) broke the protocol */
  CR_WS_PING = 9   /* only to be sent */
};

typedef struct cr_ws_message {
  int32_t kind;     /* CR_WS_MORE, ... */
  int32_t used;     /* bytes that were read; those after them are given again with the next call */
  int32_t status;   /* of a close: why, 1000 ... 4999; 0: it does not say */
  const char *data; /* of a close its reason; valid until the next cr_ws_read */
  int64_t bytes;
} cr_ws_message;

/* Reads on, up to the next message, and returns its kind. After a message it is called again with
 * what is left, be it nothing, until it returns CR_WS_MORE. */
int cr_ws_read(cr_ws *w, const char *data, int32_t n, cr_ws_message *out);
/* Puts a message, or a close after which nothing follows, into the output. CR_ECLOSED after one. */
int cr_ws_send(cr_ws *w, int32_t kind, const char *data, int64_t n);
int cr_ws_close(cr_ws *w, int32_t status, const char *reason, int32_t n);
/* Takes the bytes that are to be sent, valid until the next call of it; returns how many. */
int64_t cr_ws_output(cr_ws *w, const char **out);

/* A server's side of TLS (1.2 and later), in the same way. */
typedef struct cr_tls_keys cr_tls_keys;
/* Files in PEM: the certificate with those of its issuers, and its key, without a password. */
int cr_tls_keys_open(cr_tls_keys **out, const char *certificate, const char *key);
void cr_tls_keys_close(cr_tls_keys *keys); /* connections that use them go on */

typedef struct cr_tls cr_tls;
int cr_tls_new(cr_tls **out, cr_tls_keys *keys);
void cr_tls_free(cr_tls *t);
/* Takes n bytes that came over the connection. */
int cr_tls_receive(cr_tls *t, const char *data, int32_t n);
/* Up to n bytes that the other side meant; 0: more must come; CR_ECLOSED: it has ended. */
int cr_tls_read(cr_tls *t, char *out, int32_t n);
int cr_tls_write(cr_tls *t, const char *data, int32_t n);
/* Says that nothing more is written. */
int cr_tls_end(cr_tls *t);
/* As cr_ws_output: to be asked after each call of the others. */
int64_t cr_tls_output(cr_tls *t, const char **out);

#ifdef __cplusplus
}
#endif
#endif
