/* oneDNN (libdnnl.so.2), loaded on first use, and a cache of its primitives.
 *
 * A primitive is machine code made for one problem: creating it costs from 50 us to some ms, and
 * finding it again here well under 1 us. The caller describes a problem by a key of plain numbers;
 * if the cache has none of that key, it fills a cr__primitive by cr__primitive_add. Invariants: a
 * key holds everything that the primitive depends on (cr__key_begin puts the thread count in);
 * primitives are used from the one thread that calls tensor functions. */
#ifndef CR_CPU_DNNL_H
#define CR_CPU_DNNL_H

#include <oneapi/dnnl/dnnl.h>

#include "base/internal.h"

#define CR_DNNL_FUNCTIONS(X)                                                                       \
  X(get_effective_cpu_isa)                                                                         \
  X(engine_create)                                                                                 \
  X(stream_create)                                                                                 \
  X(stream_wait)                                                                                   \
  X(memory_create)                                                                                 \
  X(memory_destroy)                                                                                \
  X(memory_set_data_handle)                                                                        \
  X(memory_desc_init_by_strides)                                                                   \
  X(memory_desc_init_by_tag)                                                                       \
  X(memory_desc_equal)                                                                             \
  X(memory_desc_get_size)                                                                          \
  X(primitive_attr_create)                                                                         \
  X(primitive_attr_destroy)                                                                        \
  X(primitive_attr_set_post_ops)                                                                   \
  X(post_ops_create)                                                                               \
  X(post_ops_destroy)                                                                              \
  X(post_ops_append_eltwise)                                                                       \
  X(post_ops_append_sum)                                                                           \
  X(post_ops_append_binary)                                                                        \
  X(matmul_desc_init)                                                                              \
  X(dilated_convolution_forward_desc_init)                                                         \
  X(reorder_primitive_desc_create)                                                                 \
  X(primitive_desc_create)                                                                         \
  X(primitive_desc_destroy)                                                                        \
  X(primitive_desc_query_md)                                                                       \
  X(primitive_create)                                                                              \
  X(primitive_destroy)                                                                             \
  X(primitive_execute)

typedef struct cr__dnnl {
#define X(f) __typeof__(&dnnl_##f) f;
  CR_DNNL_FUNCTIONS(X)
#undef X
  dnnl_engine_t engine;
  dnnl_stream_t stream;
} cr__dnnl;

/* The library's functions; NULL, with "NAME: ..." set, if it is not on this machine
 * (CR_EUNSUPPORTED) or has no room (CR_ENOMEM): the caller returns cr__last_code(). Sets OpenMP's
 * thread count to cr_threads(). */
const cr__dnnl *cr__dnnl_get(const char *name);

/* oneDNN's type of CR_F32, CR_BF16, CR_I8. */
dnnl_data_type_t cr__dnnl_type(int32_t dtype);
/* Whether this processor multiplies bf16 faster than f32 (avx512_bf16), far faster (AMX), and int8
 * without loss (VNNI; of older processors' oneDNN loses a bit). False where there is no oneDNN. */
bool cr__dnnl_bf16(void);
bool cr__dnnl_amx(void);
bool cr__dnnl_int8(void);

enum { CR_KEY_WORDS = 40, CR_PRIMITIVE_ARGS = 7 };

typedef struct cr__key {
  int32_t n;
  int32_t words[CR_KEY_WORDS];
} cr__key;

typedef struct cr__primitive {
  dnnl_primitive_t primitive;
  int32_t n; /* of the arguments, in the order of cr__primitive_add's */
  dnnl_exec_arg_t args[CR_PRIMITIVE_ARGS];
  /* weights in a layout of the library's choice: made by `reorder` before each run */
  dnnl_primitive_t reorder;
  dnnl_exec_arg_t reorder_args[2];
  int32_t weights_at;    /* index in args */
  int64_t weights_bytes; /* of the chosen layout */
} cr__primitive;

/* Starts a key; `kind` tells the callers apart. cr__key_put appends one number. */
void cr__key_begin(cr__key *key, int32_t kind);
static inline void cr__key_put(cr__key *key, int32_t word) { key->words[key->n++] = word; }

/* The primitive with this key; NULL if there is none. */
cr__primitive *cr__primitive_find(const cr__key *key);

/* What follows a product in the same pass over its result, in this order. */
typedef struct cr__fused {
  const dnnl_memory_desc_t *channels; /* layout of a factor for each channel; NULL: none */
  bool added;                         /* after the factor a summand for each channel */
  int32_t act;                        /* CR_ACT_* */
  int32_t residual;                   /* CR_RESIDUAL_* */
} cr__fused;
enum { CR_RESIDUAL_NONE, CR_RESIDUAL_IN_PLACE, CR_RESIDUAL_APART };

/* One argument of a primitive: its DNNL_ARG_* and layout. */
typedef struct cr__primitive_arg {
  int arg;
  const dnnl_memory_desc_t *layout;
} cr__primitive_arg;

/* Makes the primitive of an operation descriptor and keeps it under `key`; NULL (message set) on
 * failure. Destroys nothing of the caller's. Of the n arguments, the one with DNNL_ARG_WEIGHTS may
 * come in a layout that differs from what the library chose; it is then reordered at each run.
 * `result` is the layout of the destination (and of a residual apart). The data of what is fused
 * follow those of the n arguments: factor, summand, residual apart. */
cr__primitive *cr__primitive_add(const char *name, const cr__key *key, const_dnnl_op_desc_t op,
                                 cr__fused fused, const dnnl_memory_desc_t *result, int32_t n,
                                 const cr__primitive_arg *args);

/* Runs it on data[i], i < p->n. */
int cr__primitive_run(const char *name, cr__primitive *p, void *const *data);

#endif
