/* Loads oneDNN, and caches its primitives (dnnl.h). */
#include "cpu/dnnl.h"

#include <dlfcn.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_SLOTS = 4096, CACHE_LIMIT = CACHE_SLOTS / 2 };

typedef struct slot {
  cr__key key; /* n == 0: an empty slot */
  cr__primitive primitive;
} slot;

static slot *cache; /* open addressing; emptied when half full */
static int32_t cached;
static cr__dnnl dnnl;
static bool loaded;

/* oneDNN writes its machine code without checking that it got memory for it, and crashes if it did
 * not. So the address space is probed first; a primitive takes some MiB. */
static int check_room(const char *name) {
  enum { MIB = 32 };
  void *room =
      mmap(NULL, (size_t)MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED)
    return cr__fail(CR_ENOMEM, "%s: out of memory: oneDNN needs about %d MiB for its code", name,
                    MIB);
  munmap(room, (size_t)MIB << 20);
  return CR_OK;
}

static int load(const char *name) {
  if (check_room(name) < 0) return CR_ENOMEM;
  void *handle = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (handle == NULL)
    return cr__fail(CR_EUNSUPPORTED,
                    "%s: matrix products on the CPU need oneDNN, which cannot be loaded (%s): "
                    "install libdnnl.so.2 (Debian: apt install libdnnl2)",
                    name, dlerror());
#define X(f)                                                                                       \
  *(void **)&dnnl.f = dlsym(handle, "dnnl_" #f);                                                   \
  if (dnnl.f == NULL)                                                                              \
    return cr__fail(CR_EUNSUPPORTED, "%s: libdnnl.so.2 lacks dnnl_" #f ": version 2.6 is needed",  \
                    name);
  CR_DNNL_FUNCTIONS(X)
#undef X
  if (dnnl.engine_create(&dnnl.engine, dnnl_cpu, 0) != dnnl_success ||
      dnnl.stream_create(&dnnl.stream, dnnl.engine, dnnl_stream_default_flags) != dnnl_success)
    return cr__fail(CR_EDEVICE, "%s: oneDNN cannot create a CPU engine", name);
  cache = calloc(CACHE_SLOTS, sizeof *cache);
  if (cache == NULL) return cr__fail(CR_ENOMEM, "%s: out of memory", name);
  loaded = true;
  return CR_OK;
}

const cr__dnnl *cr__dnnl_get(const char *name) {
  if (!loaded && load(name) < 0) return NULL;
  int32_t threads = cr_threads();
  if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
  return &dnnl;
}

dnnl_data_type_t cr__dnnl_type(int32_t dtype) {
  return dtype == CR_BF16 ? dnnl_bf16 : dtype == CR_I8 ? dnnl_s8 : dnnl_f32;
}

/* Whether the library uses this instruction set here; ONEDNN_MAX_CPU_ISA can forbid it. */
static bool has(dnnl_cpu_isa_t isa) {
  return cr__dnnl_get("CPU") != NULL && (dnnl.get_effective_cpu_isa() & isa) == isa;
}

bool cr__dnnl_bf16(void) { return has(dnnl_cpu_isa_avx512_core_bf16); }
bool cr__dnnl_amx(void) { return has(dnnl_cpu_isa_avx512_core_amx); }
bool cr__dnnl_int8(void) { return has(dnnl_cpu_isa_avx512_core_vnni); }

/* ---- the cache ---- */

void cr__key_begin(cr__key *key, int32_t kind) {
  memset(key, 0, sizeof *key);
  cr__key_put(key, kind);
  cr__key_put(key, cr_threads());
}

static slot *slot_of(const cr__key *key) {
  uint64_t h = 1469598103934665603u;
  for (int32_t i = 0; i < key->n; i++) h = (h ^ (uint32_t)key->words[i]) * 1099511628211u;
  h ^= h >> 29;
  for (uint64_t i = h;; i++) {
    slot *s = &cache[i % CACHE_SLOTS];
    if (s->key.n == 0 || memcmp(&s->key, key, sizeof *key) == 0) return s;
  }
}

cr__primitive *cr__primitive_find(const cr__key *key) {
  slot *s = slot_of(key);
  return s->key.n ? &s->primitive : NULL;
}

static void destroy(cr__primitive *p) {
  for (int32_t i = 0; i < p->n; i++)
    if (p->args[i].memory) dnnl.memory_destroy(p->args[i].memory);
  if (p->reorder_args[0].memory) dnnl.memory_destroy(p->reorder_args[0].memory);
  if (p->reorder) dnnl.primitive_destroy(p->reorder);
  if (p->primitive) dnnl.primitive_destroy(p->primitive);
  memset(p, 0, sizeof *p);
}

static void empty_cache(void) {
  for (int32_t i = 0; i < CACHE_SLOTS; i++) {
    if (cache[i].key.n) destroy(&cache[i].primitive);
    cache[i].key.n = 0;
  }
  cached = 0;
}

/* ---- creating a primitive ---- */

/* Adds the memory object of one argument; its data pointer is set at each run. */
static bool add_arg(cr__primitive *p, int arg, const dnnl_memory_desc_t *layout) {
  dnnl_exec_arg_t *a = &p->args[p->n++];
  a->arg = arg;
  return dnnl.memory_create(&a->memory, layout, dnnl.engine, DNNL_MEMORY_NONE) == dnnl_success;
}

static bool append_act(dnnl_post_ops_t post, int32_t act) {
  switch (act) {
  case CR_ACT_NONE:
    return true;
  case CR_ACT_SILU:
    return !dnnl.post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_swish, 1.0f, 0.0f);
  case CR_ACT_GELU:
    return !dnnl.post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_gelu_erf, 0.0f, 0.0f);
  case CR_ACT_RELU:
    return !dnnl.post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_relu, 0.0f, 0.0f);
  case CR_ACT_RELU6:
    return !dnnl.post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_clip, 0.0f, 6.0f);
  default: /* oneDNN does not have it, or only as reference loops */
    return false;
  }
}

/* Appends the fused post-operations. `at` gets the positions of those with an operand: factor,
 * addend and separate residual, as far as they exist. */
static int32_t append_fused(dnnl_post_ops_t post, cr__fused fused, const dnnl_memory_desc_t *result,
                            const dnnl_memory_desc_t *layouts[3], int at[3]) {
  int32_t n = 0, position = 0;
  if (fused.channels) {
    if (dnnl.post_ops_append_binary(post, dnnl_binary_mul, fused.channels)) return -1;
    layouts[n] = fused.channels, at[n++] = position++;
  }
  if (fused.channels && fused.added) {
    if (dnnl.post_ops_append_binary(post, dnnl_binary_add, fused.channels)) return -1;
    layouts[n] = fused.channels, at[n++] = position++;
  }
  if (!append_act(post, fused.act)) return -1;
  position += fused.act != CR_ACT_NONE;
  if (fused.residual == CR_RESIDUAL_IN_PLACE && dnnl.post_ops_append_sum(post, 1.0f)) return -1;
  if (fused.residual == CR_RESIDUAL_SEPARATE) {
    if (dnnl.post_ops_append_binary(post, dnnl_binary_add, result)) return -1;
    layouts[n] = result, at[n++] = position;
  }
  return n;
}

/* All steps that can fail, so that the caller cleans up in one place. */
static bool build(cr__primitive *p, dnnl_primitive_attr_t attr, dnnl_post_ops_t post,
                  dnnl_primitive_desc_t *desc, const_dnnl_op_desc_t op, cr__fused fused,
                  const dnnl_memory_desc_t *result, int32_t n, const cr__primitive_arg *args) {
  const dnnl_memory_desc_t *layouts[3];
  int at[3];
  int32_t more = append_fused(post, fused, result, layouts, at);
  if (more < 0 || dnnl.primitive_attr_set_post_ops(attr, post) ||
      dnnl.primitive_desc_create(desc, op, attr, dnnl.engine, NULL) ||
      dnnl.primitive_create(&p->primitive, *desc))
    return false;
  for (int32_t i = 0; i < n; i++) {
    const dnnl_memory_desc_t *layout = args[i].layout;
    if (args[i].arg == DNNL_ARG_WEIGHTS) {
      p->weights_at = i;
      const dnnl_memory_desc_t *chosen =
          dnnl.primitive_desc_query_md(*desc, dnnl_query_weights_md, 0);
      if (!dnnl.memory_desc_equal(chosen, layout)) {
        dnnl_primitive_desc_t reorder;
        if (dnnl.reorder_primitive_desc_create(&reorder, layout, dnnl.engine, chosen, dnnl.engine,
                                               NULL))
          return false;
        dnnl_status_t rc = dnnl.primitive_create(&p->reorder, reorder);
        dnnl.primitive_desc_destroy(reorder);
        p->reorder_args[0].arg = DNNL_ARG_FROM;
        if (rc ||
            dnnl.memory_create(&p->reorder_args[0].memory, layout, dnnl.engine, DNNL_MEMORY_NONE))
          return false;
        p->weights_bytes = (int64_t)dnnl.memory_desc_get_size(chosen);
        layout = chosen;
      }
    }
    if (!add_arg(p, args[i].arg, layout)) return false;
  }
  if (p->reorder) {
    p->reorder_args[1].arg = DNNL_ARG_TO;
    p->reorder_args[1].memory = p->args[p->weights_at].memory;
  }
  for (int32_t i = 0; i < more; i++)
    if (!add_arg(p, DNNL_ARG_ATTR_MULTIPLE_POST_OP(at[i]) | DNNL_ARG_SRC_1, layouts[i]))
      return false;
  return true;
}

cr__primitive *cr__primitive_add(const char *name, const cr__key *key, const_dnnl_op_desc_t op,
                                 cr__fused fused, const dnnl_memory_desc_t *result, int32_t n,
                                 const cr__primitive_arg *args) {
  if (check_room(name) < 0) return NULL;
  cr__primitive p = {0};
  dnnl_primitive_attr_t attr = NULL;
  dnnl_post_ops_t post = NULL;
  dnnl_primitive_desc_t desc = NULL;
  bool ok = !dnnl.primitive_attr_create(&attr) && !dnnl.post_ops_create(&post) &&
            build(&p, attr, post, &desc, op, fused, result, n, args);
  if (desc) dnnl.primitive_desc_destroy(desc);
  if (post) dnnl.post_ops_destroy(post);
  if (attr) dnnl.primitive_attr_destroy(attr);
  if (!ok) {
    destroy(&p);
    cr__fail(CR_EUNSUPPORTED, "%s: oneDNN does not support this problem", name);
    return NULL;
  }
  if (cached >= CACHE_LIMIT) empty_cache();
  slot *s = slot_of(key);
  s->key = *key;
  s->primitive = p;
  cached++;
  return &s->primitive;
}

int cr__primitive_run(const char *name, cr__primitive *p, void *const *data) {
  cr_storage *chosen = NULL;
  for (int32_t i = 0; i < p->n; i++) {
    void *address = data[i];
    if (p->reorder && i == p->weights_at) {
      chosen = cr__storage_new(p->weights_bytes, CR_CPU);
      if (chosen == NULL) return CR_ENOMEM;
      dnnl.memory_set_data_handle(p->reorder_args[0].memory, address);
      address = chosen->data;
    }
    dnnl.memory_set_data_handle(p->args[i].memory, address);
  }
  dnnl_status_t rc = dnnl_success;
  if (p->reorder) rc = dnnl.primitive_execute(p->reorder, dnnl.stream, 2, p->reorder_args);
  if (rc == dnnl_success) rc = dnnl.primitive_execute(p->primitive, dnnl.stream, p->n, p->args);
  if (rc == dnnl_success) rc = dnnl.stream_wait(dnnl.stream);
  if (chosen) cr__release(chosen);
  if (rc == dnnl_success) return CR_OK;
  return cr__fail(rc == dnnl_out_of_memory ? CR_ENOMEM : CR_EDEVICE,
                  "%s: oneDNN failed with status %d", name, (int)rc);
}
