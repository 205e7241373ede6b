/* The names that a pickle may mention, and what calling each of them builds.
 *
 * This list is the whole of what a weights file can make us do. Everything on it only arranges
 * values that were read already. */
#include <string.h>

#include "base/internal.h"
#include "weights/pickle.h"

enum { MAX_DIMS = 64, MAX_KEY_BYTES = 255 };

enum role {
  REBUILD_TENSOR,    /* (storage, offset, shape, stride, ...) */
  REBUILD_TENSOR_V3, /* (storage, offset, shape, stride, grad, hooks, dtype, ...) */
  REBUILD_PARAMETER, /* (tensor, ...) */
  STORAGE,           /* not called, named in persistent ids */
  DTYPE,             /* not called */
  DICT,              /* () or (pairs) */
  SEQUENCE,          /* () or (items) */
  SAME               /* (value, ...) */
};

static const struct {
  const char *module, *name;
  enum role role;
  int32_t dtype, bits;
} globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, 0, 0},
    {"torch._utils", "_rebuild_tensor", REBUILD_TENSOR, 0, 0},
    {"torch._utils", "_rebuild_tensor_v3", REBUILD_TENSOR_V3, 0, 0},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, 0, 0},
    {"torch._utils", "_rebuild_parameter_with_state", REBUILD_PARAMETER, 0, 0},
    {"collections", "OrderedDict", DICT, 0, 0},
    {"builtins", "dict", DICT, 0, 0},
    {"__builtin__", "dict", DICT, 0, 0},
    {"builtins", "list", SEQUENCE, 0, 0},
    {"__builtin__", "list", SEQUENCE, 0, 0},
    {"builtins", "tuple", SEQUENCE, 0, 0},
    {"__builtin__", "tuple", SEQUENCE, 0, 0},
    {"builtins", "set", SEQUENCE, 0, 0},
    {"__builtin__", "set", SEQUENCE, 0, 0},
    {"builtins", "frozenset", SEQUENCE, 0, 0},
    {"__builtin__", "frozenset", SEQUENCE, 0, 0},
    {"torch", "Size", SEQUENCE, 0, 0},
    {"torch", "device", SAME, 0, 0},
    {"_codecs", "encode", SAME, 0, 0}, /* how protocol 2 writes bytes */
    {"torch", "FloatStorage", STORAGE, CR_F32, 32},
    {"torch", "HalfStorage", STORAGE, CR_F16, 16},
    {"torch", "BFloat16Storage", STORAGE, CR_BF16, 16},
    {"torch", "DoubleStorage", STORAGE, CR_F64, 64},
    {"torch", "ByteStorage", STORAGE, CR_U8, 8},
    {"torch", "CharStorage", STORAGE, CR_I8, 8},
    {"torch", "ShortStorage", STORAGE, CR_I16, 16},
    {"torch", "IntStorage", STORAGE, CR_I32, 32},
    {"torch", "LongStorage", STORAGE, CR_I64, 64},
    {"torch", "BoolStorage", STORAGE, CR_BOOL, 8},
    {"torch", "UntypedStorage", STORAGE, CR_U8, 8},
    {"torch.storage", "UntypedStorage", STORAGE, CR_U8, 8},
    {"torch", "ComplexFloatStorage", STORAGE, -1, 64},
    {"torch", "ComplexDoubleStorage", STORAGE, -1, 128},
    {"torch", "QUInt8Storage", STORAGE, -1, 8},
    {"torch", "QInt8Storage", STORAGE, -1, 8},
    {"torch", "QInt32Storage", STORAGE, -1, 32},
    {"torch", "float32", DTYPE, CR_F32, 32},
    {"torch", "float16", DTYPE, CR_F16, 16},
    {"torch", "bfloat16", DTYPE, CR_BF16, 16},
    {"torch", "float64", DTYPE, CR_F64, 64},
    {"torch", "uint8", DTYPE, CR_U8, 8},
    {"torch", "int8", DTYPE, CR_I8, 8},
    {"torch", "int16", DTYPE, CR_I16, 16},
    {"torch", "int32", DTYPE, CR_I32, 32},
    {"torch", "int64", DTYPE, CR_I64, 64},
    {"torch", "bool", DTYPE, CR_BOOL, 8},
    {"torch", "uint16", DTYPE, -1, 16},
    {"torch", "uint32", DTYPE, -1, 32},
    {"torch", "uint64", DTYPE, -1, 64},
    {"torch", "float8_e4m3fn", DTYPE, -1, 8},
    {"torch", "float8_e5m2", DTYPE, -1, 8},
    {"torch", "float8_e4m3fnuz", DTYPE, -1, 8},
    {"torch", "float8_e5m2fnuz", DTYPE, -1, 8},
    {"torch", "float8_e8m0fnu", DTYPE, -1, 8},
    {"torch", "complex64", DTYPE, -1, 64},
    {"torch", "complex128", DTYPE, -1, 128},
};
enum { GLOBALS = sizeof globals / sizeof *globals };

static bool equal(const char *text, size_t bytes, const char *word) {
  return strlen(word) == bytes && memcmp(text, word, bytes) == 0;
}

int cr__pickle_global(cr__pickle *pickle, cr__value **out, const char *module, size_t module_bytes,
                      const char *name, size_t name_bytes) {
  for (int i = 0; i < GLOBALS; i++) {
    if (!equal(name, name_bytes, globals[i].name) ||
        !equal(module, module_bytes, globals[i].module))
      continue;
    *out = cr__value_new(pickle->arena, CR__GLOBAL);
    if (!*out) return CR_ENOMEM;
    (*out)->integer = i;
    return CR_OK;
  }
  return cr__fail(CR_EFORMAT,
                  "%s: the pickle calls %s.%s, which is refused: only tensors and plain "
                  "data are read",
                  pickle->path, cr__printable(module, module_bytes),
                  cr__printable(name, name_bytes));
}

static int bad_arguments(const cr__pickle *pickle, int number) {
  return cr__fail(CR_EFORMAT, "%s: damaged pickle: wrong arguments for %s.%s", pickle->path,
                  globals[number].module, globals[number].name);
}

static int rebuild_tensor(cr__pickle *pickle, cr__value **out, int number,
                          const cr__value *arguments) {
  bool v3 = globals[number].role == REBUILD_TENSOR_V3;
  cr__value *const *a = arguments->items;
  if (arguments->count < (v3 ? 7 : 4) || a[0]->kind != CR__STORAGE || a[1]->kind != CR__INTEGER ||
      a[2]->kind != CR__TUPLE || a[3]->kind != CR__TUPLE || a[2]->count != a[3]->count ||
      a[2]->count > MAX_DIMS)
    return bad_arguments(pickle, number);
  for (int64_t k = 0; k < a[2]->count; k++)
    if (a[2]->items[k]->kind != CR__INTEGER || a[3]->items[k]->kind != CR__INTEGER)
      return bad_arguments(pickle, number);
  *out = cr__value_new(pickle->arena, CR__TENSOR);
  if (!*out) return CR_ENOMEM;
  cr__pickle_tensor *tensor = &(*out)->tensor;
  tensor->storage = &a[0]->storage;
  tensor->dtype = tensor->storage->dtype;
  tensor->bits = tensor->storage->bits;
  tensor->dtype_name = tensor->storage->dtype_name;
  tensor->offset = a[1]->integer;
  tensor->shape = a[2];
  tensor->stride = a[3];
  if (v3) {
    if (a[6]->kind != CR__GLOBAL || globals[a[6]->integer].role != DTYPE)
      return bad_arguments(pickle, number);
    tensor->dtype = globals[a[6]->integer].dtype;
    tensor->bits = globals[a[6]->integer].bits;
    tensor->dtype_name = globals[a[6]->integer].name;
  }
  return CR_OK;
}

/* A dictionary from a list of pairs. */
static int make_dict(cr__pickle *pickle, cr__value **out, int number, const cr__value *arguments) {
  *out = cr__value_new(pickle->arena, CR__DICT);
  if (!*out) return CR_ENOMEM;
  if (arguments->count == 0) return CR_OK;
  const cr__value *pairs = arguments->items[0];
  if (arguments->count > 1 || (pairs->kind != CR__LIST && pairs->kind != CR__TUPLE))
    return bad_arguments(pickle, number);
  /* Honest pickles copy each pair once; one that copies a list over and over is stopped. */
  pickle->budget -= pairs->count;
  if (pickle->budget < 0) return bad_arguments(pickle, number);
  for (int64_t i = 0; i < pairs->count; i++) {
    const cr__value *pair = pairs->items[i];
    if ((pair->kind != CR__LIST && pair->kind != CR__TUPLE) || pair->count != 2)
      return bad_arguments(pickle, number);
    if (!cr__value_push(pickle->arena, *out, pair->items[0]) ||
        !cr__value_push(pickle->arena, *out, pair->items[1]))
      return CR_ENOMEM;
  }
  return CR_OK;
}

int cr__pickle_call(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                    cr__value *arguments) {
  int number = (int)callee->integer;
  int64_t count = arguments->count;
  cr__value *first = count ? arguments->items[0] : NULL;
  switch (globals[number].role) {
  case REBUILD_TENSOR:
  case REBUILD_TENSOR_V3:
    return rebuild_tensor(pickle, out, number, arguments);
  case REBUILD_PARAMETER:
    if (!first || first->kind != CR__TENSOR) return bad_arguments(pickle, number);
    *out = first;
    return CR_OK;
  case DICT:
    return make_dict(pickle, out, number, arguments);
  case SEQUENCE:
    if (count > 1 || (first && first->kind != CR__LIST && first->kind != CR__TUPLE))
      return bad_arguments(pickle, number);
    *out = cr__value_new(pickle->arena, first ? CR__TUPLE : CR__LIST);
    if (!*out) return CR_ENOMEM;
    if (first) {
      /* A tuple cannot be added to, so it may share the items. */
      (*out)->items = first->items;
      (*out)->count = (*out)->capacity = first->count;
    }
    return CR_OK;
  case SAME:
    if (!first || first->kind != CR__STRING) return bad_arguments(pickle, number);
    *out = first;
    return CR_OK;
  case STORAGE:
  case DTYPE:
    break;
  }
  return bad_arguments(pickle, number);
}

/* ("storage", type, key, location, elements [, view]) */
int cr__pickle_persistent(cr__pickle *pickle, cr__value **out, const cr__value *id) {
  const char *bad = "a persistent id that is no storage";
  if (id->kind != CR__TUPLE || id->count < 5 || id->items[0]->kind != CR__STRING ||
      !equal(id->items[0]->text, id->items[0]->bytes, "storage"))
    return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
  const cr__value *type = id->items[1], *key = id->items[2], *elements = id->items[4];
  if (type->kind != CR__GLOBAL || globals[type->integer].role != STORAGE ||
      key->kind != CR__STRING || key->bytes > MAX_KEY_BYTES || memchr(key->text, 0, key->bytes) ||
      elements->kind != CR__INTEGER || elements->integer < 0)
    return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
  *out = cr__value_new(pickle->arena, CR__STORAGE);
  if (!*out) return CR_ENOMEM;
  cr__pickle_storage *storage = &(*out)->storage;
  storage->key = cr__arena_string(pickle->arena, key->text, key->bytes);
  if (!storage->key) return CR_ENOMEM;
  storage->dtype = globals[type->integer].dtype;
  storage->bits = globals[type->integer].bits;
  storage->dtype_name = globals[type->integer].name;
  storage->elements = elements->integer;
  /* The legacy format may name a part of a storage: (key, first element, elements). */
  if (id->count > 5 && id->items[5]->kind == CR__TUPLE) {
    const cr__value *view = id->items[5];
    if (view->count != 3 || view->items[1]->kind != CR__INTEGER || view->items[1]->integer < 0)
      return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
    storage->first = view->items[1]->integer;
  }
  return cr__value_push(pickle->arena, pickle->storages, *out) ? CR_OK : CR_ENOMEM;
}
