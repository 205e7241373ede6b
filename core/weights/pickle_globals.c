/* The names that a pickle may use, and what calling each of them builds.
 *
 * A weights file cannot make the reader do anything beyond this list. Each entry only arranges
 * values that were read already. */
#include <string.h>

#include "base/internal.h"
#include "weights/pickle.h"

enum { MAX_KEY_BYTES = 255 };

enum role {
  REBUILD_TENSOR,    /* (storage, offset, shape, stride, grad, hooks, metadata) */
  REBUILD_TENSOR_V3, /* (storage, offset, shape, stride, grad, hooks, dtype, metadata) */
  REBUILD_PARAMETER, /* (tensor, ...) */
  REBUILD_CLASS,     /* (function, class, arguments, attributes) */
  REBUILD_WRAPPER,   /* (class, ...) */
  UNREADABLE,        /* (...): a tensor with trouble */
  CLASS,             /* not called: the class of a plain tensor */
  STORAGE,           /* not called: named in persistent ids */
  DTYPE,             /* not called */
  NAME,              /* not called */
  DICT,              /* () or (pairs) */
  SEQUENCE,          /* () or (items) */
  SAME,              /* (value, ...) */
  REFUSED
};

/* PyTorch's storages and dtypes are in the table of elements. */
static const struct {
  const char *name;
  enum role role;
  const char *trouble;
} globals[] = {
    {"torch._utils._rebuild_tensor_v2", REBUILD_TENSOR, NULL},
    {"torch._utils._rebuild_tensor", REBUILD_TENSOR, NULL},
    {"torch._utils._rebuild_tensor_v3", REBUILD_TENSOR_V3, NULL},
    {"torch._utils._rebuild_parameter", REBUILD_PARAMETER, NULL},
    {"torch._utils._rebuild_parameter_with_state", REBUILD_PARAMETER, NULL},
    {"torch._tensor._rebuild_from_type_v2", REBUILD_CLASS, NULL},
    {"torch._utils._rebuild_wrapper_subclass", REBUILD_WRAPPER, NULL},
    {"torch._utils._rebuild_sparse_tensor", UNREADABLE, "is sparse, which is not handled"},
    {"torch._utils._rebuild_sparse_csr_tensor", UNREADABLE, "is sparse, which is not handled"},
    {"torch._utils._rebuild_qtensor", UNREADABLE, "is quantized, which is not handled"},
    {"torch._utils._rebuild_nested_tensor", UNREADABLE, "is nested, which is not handled"},
    {"torch._utils._rebuild_meta_tensor_no_storage", UNREADABLE,
     "was saved from the meta device, without its data"},
    {"torch.Tensor", CLASS, NULL},
    {"torch.nn.parameter.Parameter", CLASS, NULL},
    {"torch.nn.parameter.Buffer", CLASS, NULL},
    {"torch.per_tensor_affine", NAME, NULL},
    {"torch.per_tensor_symmetric", NAME, NULL},
    {"torch.per_channel_affine", NAME, NULL},
    {"torch.per_channel_symmetric", NAME, NULL},
    {"torch.per_channel_affine_float_qparams", NAME, NULL},
    {"torch.serialization._get_layout", SAME, NULL},
    {"collections.OrderedDict", DICT, NULL},
    {"builtins.dict", DICT, NULL},
    {"__builtin__.dict", DICT, NULL},
    {"builtins.list", SEQUENCE, NULL},
    {"__builtin__.list", SEQUENCE, NULL},
    {"builtins.tuple", SEQUENCE, NULL},
    {"__builtin__.tuple", SEQUENCE, NULL},
    {"builtins.set", SEQUENCE, NULL},
    {"__builtin__.set", SEQUENCE, NULL},
    {"builtins.frozenset", SEQUENCE, NULL},
    {"__builtin__.frozenset", SEQUENCE, NULL},
    {"torch.Size", SEQUENCE, NULL},
    {"torch.device", SAME, NULL},
    {"_codecs.encode", SAME, NULL}, /* protocol 2 writes bytes so */
};
enum { GLOBALS = sizeof globals / sizeof *globals };

static bool equal(const char *text, size_t bytes, const char *word) {
  return strlen(word) == bytes && memcmp(text, word, bytes) == 0;
}

/* Whether `full` is the module, a dot and the name. */
static bool is_global(const char *full, const char *module, size_t module_bytes, const char *name,
                      size_t name_bytes) {
  return strlen(full) == module_bytes + 1 + name_bytes && memcmp(full, module, module_bytes) == 0 &&
         full[module_bytes] == '.' && memcmp(full + module_bytes + 1, name, name_bytes) == 0;
}

/* Finds PyTorch's storages and dtypes. */
static const cr__element *find_element(const char *module, size_t module_bytes, const char *name,
                                       size_t name_bytes, enum role *role) {
  bool torch = equal(module, module_bytes, "torch");
  *role = STORAGE;
  if ((torch || equal(module, module_bytes, "torch.storage")) &&
      equal(name, name_bytes, "UntypedStorage"))
    return cr__element_of(CR_U8);
  if (!torch) return NULL;
  const cr__element *element = cr__element_named(CR__TORCH_STORAGE, name, name_bytes);
  if (element) return element;
  *role = DTYPE;
  return cr__element_named(CR__TORCH_DTYPE, name, name_bytes);
}

int cr__pickle_global_value(cr__pickle *pickle, cr__value **out, const char *module,
                            size_t module_bytes, const char *name, size_t name_bytes) {
  *out = cr__value_new(pickle->arena, CR__GLOBAL);
  if (!*out) return cr__pickle_no_memory(pickle);
  cr__pickle_global *global = &(*out)->global;
  for (int i = 0; i < GLOBALS; i++) {
    if (!is_global(globals[i].name, module, module_bytes, name, name_bytes)) continue;
    *global =
        (cr__pickle_global){globals[i].role, false, globals[i].name, globals[i].trouble, NULL};
    return CR_OK;
  }
  enum role role = REFUSED;
  const cr__element *element = find_element(module, module_bytes, name, name_bytes, &role);
  cr__text full = {0};
  cr__text_puts(&full, cr_printable(module, module_bytes));
  cr__text_puts(&full, ".");
  cr__text_puts(&full, cr_printable(name, name_bytes));
  const char *kept = full.failed ? NULL : cr__arena_string(pickle->arena, full.data, full.size);
  cr__text_free(&full);
  if (!kept) return cr__pickle_no_memory(pickle);
  *global = (cr__pickle_global){element ? role : REFUSED, false, kept, NULL, element};
  if (!element && !cr__value_push(pickle->arena, pickle->refused, *out))
    return cr__pickle_no_memory(pickle);
  return CR_OK;
}

int cr__pickle_refuse(const cr__pickle *pickle, const cr__value *global) {
  if (global->kind != CR__GLOBAL || global->global.role != REFUSED) return CR_OK;
  return cr__fail(CR_EFORMAT,
                  "%s: the pickle calls %s, which is refused: only tensors and plain data are read",
                  pickle->path, global->global.name);
}

static int bad_arguments(const cr__pickle *pickle, const cr__value *callee) {
  return cr__fail(CR_EFORMAT, "%s: damaged pickle: the arguments of %s are wrong", pickle->path,
                  callee->global.name);
}

static bool all_integers(const cr__value *tuple) {
  for (int64_t k = 0; k < tuple->count; k++)
    if (tuple->items[k]->kind != CR__INTEGER) return false;
  return true;
}

/* Whether a tensor's metadata, {'conj': ..., 'neg': ...}, says that its elements are stored with
 * the opposite sign. */
static bool is_negated(const cr__value *metadata) {
  for (int64_t i = 0; metadata->kind == CR__DICT && i + 1 < metadata->count; i += 2) {
    const cr__value *key = metadata->items[i], *value = metadata->items[i + 1];
    if (key->kind == CR__STRING && equal(key->text, key->bytes, "neg"))
      return value->kind == CR__FLAG && value->integer;
  }
  return false;
}

static int rebuild_tensor(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                          const cr__value *arguments) {
  bool v3 = callee->global.role == REBUILD_TENSOR_V3;
  cr__value *const *a = arguments->items;
  int64_t n = arguments->count, metadata = v3 ? 7 : 6;
  if (n < (v3 ? 7 : 4) || a[0]->kind != CR__STORAGE || a[1]->kind != CR__INTEGER ||
      a[2]->kind != CR__TUPLE || a[3]->kind != CR__TUPLE || a[2]->count != a[3]->count ||
      a[2]->count > CR__PICKLE_DIMS || !all_integers(a[2]) || !all_integers(a[3]) ||
      (v3 && (a[6]->kind != CR__GLOBAL || a[6]->global.role != DTYPE)))
    return bad_arguments(pickle, callee);
  *out = cr__value_new(pickle->arena, CR__TENSOR);
  if (!*out) return cr__pickle_no_memory(pickle);
  (*out)->tensor = (cr__pickle_tensor){
      .storage = &a[0]->storage,
      .element = v3 ? a[6]->global.element : a[0]->storage.element,
      .negated = n > metadata && is_negated(a[metadata]),
      .offset = a[1]->integer,
      .shape = a[2],
      .stride = a[3],
  };
  return CR_OK;
}

static int make_unreadable(cr__pickle *pickle, cr__value **out, const char *trouble) {
  *out = cr__value_new(pickle->arena, CR__TENSOR);
  if (!*out) return cr__pickle_no_memory(pickle);
  (*out)->tensor = (cr__pickle_tensor){.trouble = trouble};
  return CR_OK;
}

/* Makes a tensor of a user's class. The class is only named, not called, so its name is excused. */
static int make_foreign(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                        cr__value *class) {
  if (class->kind != CR__GLOBAL) return bad_arguments(pickle, callee);
  class->global.excused = true;
  cr__text text = {0};
  cr__text_puts(&text, "is of the class ");
  cr__text_puts(&text, class->global.name);
  cr__text_puts(&text, ", which is not handled");
  const char *trouble = text.failed ? NULL : cr__arena_string(pickle->arena, text.data, text.size);
  cr__text_free(&text);
  return trouble ? make_unreadable(pickle, out, trouble) : cr__pickle_no_memory(pickle);
}

/* Tensors of PyTorch's own classes are plain tensors. */
static int rebuild_class(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                         const cr__value *arguments) {
  cr__value *const *a = arguments->items;
  if (arguments->count != 4 || a[0]->kind != CR__GLOBAL || a[1]->kind != CR__GLOBAL ||
      a[2]->kind != CR__TUPLE || a[0]->global.role == REBUILD_CLASS)
    return bad_arguments(pickle, callee);
  if (a[1]->global.role != CLASS) return make_foreign(pickle, out, callee, a[1]);
  CR_TRY(cr__pickle_call(pickle, out, a[0], a[2]));
  return *out && (*out)->kind == CR__TENSOR ? CR_OK : bad_arguments(pickle, callee);
}

/* Makes a dictionary from a list of pairs. */
static int make_dict(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                     const cr__value *arguments) {
  *out = cr__value_new(pickle->arena, CR__DICT);
  if (!*out) return cr__pickle_no_memory(pickle);
  if (arguments->count == 0) return CR_OK;
  const cr__value *pairs = arguments->items[0];
  if (arguments->count > 1 || (pairs->kind != CR__LIST && pairs->kind != CR__TUPLE))
    return bad_arguments(pickle, callee);
  /* An ordinary pickle copies each pair once; the budget stops one that copies a list again and
   * again. */
  pickle->budget -= pairs->count;
  if (pickle->budget < 0) return bad_arguments(pickle, callee);
  for (int64_t i = 0; i < pairs->count; i++) {
    const cr__value *pair = pairs->items[i];
    if ((pair->kind != CR__LIST && pair->kind != CR__TUPLE) || pair->count != 2)
      return bad_arguments(pickle, callee);
    if (!cr__value_push(pickle->arena, *out, pair->items[0]) ||
        !cr__value_push(pickle->arena, *out, pair->items[1]))
      return cr__pickle_no_memory(pickle);
  }
  return CR_OK;
}

int cr__pickle_call(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                    cr__value *arguments) {
  CR_TRY(cr__pickle_refuse(pickle, callee));
  int64_t count = arguments->count;
  cr__value *first = count ? arguments->items[0] : NULL;
  switch ((enum role)callee->global.role) {
  case REBUILD_TENSOR:
  case REBUILD_TENSOR_V3:
    return rebuild_tensor(pickle, out, callee, arguments);
  case REBUILD_PARAMETER:
    if (!first || first->kind != CR__TENSOR) return bad_arguments(pickle, callee);
    *out = first;
    return CR_OK;
  case REBUILD_CLASS:
    return rebuild_class(pickle, out, callee, arguments);
  case REBUILD_WRAPPER:
    return first ? make_foreign(pickle, out, callee, first) : bad_arguments(pickle, callee);
  case UNREADABLE:
    return make_unreadable(pickle, out, callee->global.trouble);
  case DICT:
    return make_dict(pickle, out, callee, arguments);
  case SEQUENCE:
    if (count > 1 || (first && first->kind != CR__LIST && first->kind != CR__TUPLE))
      return bad_arguments(pickle, callee);
    *out = cr__value_new(pickle->arena, first ? CR__TUPLE : CR__LIST);
    if (!*out) return cr__pickle_no_memory(pickle);
    if (first) {
      /* A tuple is immutable, so it may share the items. */
      (*out)->items = first->items;
      (*out)->count = (*out)->capacity = first->count;
    }
    return CR_OK;
  case SAME:
    if (!first || first->kind != CR__STRING) return bad_arguments(pickle, callee);
    *out = first;
    return CR_OK;
  case CLASS:
  case STORAGE:
  case DTYPE:
  case NAME:
  case REFUSED:
    break;
  }
  return bad_arguments(pickle, callee);
}

/* ("storage", type, key, location, elements [, view]) */
int cr__pickle_persistent(cr__pickle *pickle, cr__value **out, const cr__value *id) {
  const char *bad = "a persistent id is not a storage";
  if (id->kind != CR__TUPLE || id->count < 5 || id->items[0]->kind != CR__STRING ||
      !equal(id->items[0]->text, id->items[0]->bytes, "storage"))
    return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
  const cr__value *type = id->items[1], *key = id->items[2], *elements = id->items[4];
  if (type->kind != CR__GLOBAL || type->global.role != STORAGE || key->kind != CR__STRING ||
      key->bytes > MAX_KEY_BYTES || memchr(key->text, 0, key->bytes) ||
      elements->kind != CR__INTEGER || elements->integer < 0)
    return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
  *out = cr__value_new(pickle->arena, CR__STORAGE);
  if (!*out) return cr__pickle_no_memory(pickle);
  cr__pickle_storage *storage = &(*out)->storage;
  storage->key = cr__arena_string(pickle->arena, key->text, key->bytes);
  if (!storage->key) return cr__pickle_no_memory(pickle);
  storage->element = type->global.element;
  storage->elements = elements->integer;
  /* The legacy format may describe a part of a storage: (key, first element, elements). */
  if (id->count > 5 && id->items[5]->kind == CR__TUPLE) {
    const cr__value *view = id->items[5];
    if (view->count != 3 || view->items[1]->kind != CR__INTEGER || view->items[1]->integer < 0)
      return cr__fail(CR_EFORMAT, "%s: damaged pickle: %s", pickle->path, bad);
    storage->first = view->items[1]->integer;
  }
  return cr__value_push(pickle->arena, pickle->storages, *out) ? CR_OK
                                                               : cr__pickle_no_memory(pickle);
}
