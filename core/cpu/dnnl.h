/* oneDNN (libdnnl.so.2), which is loaded on first use, and a cache of its primitives.
 *
 * A primitive is machine code generated for one problem: creating it takes 50 us to some ms,
 * finding it in the cache well under 1 us. The caller describes a problem by a key of integers. If
 * the cache has no primitive with that key, the caller adds one by cr__primitive_add.
 *
 * Invariants: a key has everything that the primitive depends on (cr__key_begin includes the number
 * of threads). Only the thread that calls tensor functions uses primitives. */
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

/* Returns the library's functions, or NULL with "NAME: ..." set if it is not installed
 * (CR_EUNSUPPORTED) or memory is short (CR_ENOMEM); the caller returns cr__last_code(). Sets
 * OpenMP's number of threads to cr_threads(). */
const cr__dnnl *cr__dnnl_get(const char *name);

/* Returns oneDNN's type for CR_F32, CR_BF16 or CR_I8. */
dnnl_data_type_t cr__dnnl_type(int32_t dtype);
/* Whether this processor multiplies bf16 faster than f32 (avx512_bf16) or much faster (AMX), and
 * int8 exactly (VNNI; on older processors oneDNN loses a bit). False without oneDNN. */
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
  int32_t n; /* number of arguments, in the order of cr__primitive_add's */
  dnnl_exec_arg_t args[CR_PRIMITIVE_ARGS];
  /* weights in the layout that the library chose, which `reorder` makes before each run */
  dnnl_primitive_t reorder;
  dnnl_exec_arg_t reorder_args[2];
  int32_t weights_at;    /* index in args */
  int64_t weights_bytes; /* of the chosen layout */
} cr__primitive;

/* Starts a key; `kind` tells the callers apart. cr__key_put appends a number. */
void cr__key_begin(cr__key *key, int32_t kind);
static inline void cr__key_put(cr__key *key, int32_t word) { key->words[key->n++] = word; }

/* Returns the primitive with this key, or NULL. */
cr__primitive *cr__primitive_find(const cr__key *key);

/* The post-operations fused into a product, in this order. */
typedef struct cr__fused {
  const dnnl_memory_desc_t *channels; /* layout of the factor per channel; NULL: none */
  bool added;                         /* a summand per channel, after the factor */
  int32_t act;                        /* CR_ACT_* */
  int32_t residual;                   /* CR_RESIDUAL_* */
} cr__fused;
enum { CR_RESIDUAL_NONE, CR_RESIDUAL_IN_PLACE, CR_RESIDUAL_SEPARATE };

/* An argument of a primitive: its DNNL_ARG_* and layout. */
typedef struct cr__primitive_arg {
  int arg;
  const dnnl_memory_desc_t *layout;
} cr__primitive_arg;

/* Creates the primitive of an operation descriptor and keeps it under `key`. Returns NULL with the
 * message set on failure. The caller keeps ownership of what it passes. If the library chose
 * another layout for DNNL_ARG_WEIGHTS than the given one, the weights are reordered at each run.
 * `result` is the layout of the destination, and of a separate residual. The data of the fused
 * operands follow those of the n arguments: factor, summand, separate residual. */
cr__primitive *cr__primitive_add(const char *name, const cr__key *key, const_dnnl_op_desc_t op,
                                 cr__fused fused, const dnnl_memory_desc_t *result, int32_t n,
                                 const cr__primitive_arg *args);

/* Runs it with data[i] for i < p->n. */
int cr__primitive_run(const char *name, cr__primitive *p, void *const *data);

#endif
