/* ONNX's tensors. Raw data is mapped, in the file itself or in an external one. Numbers that
 * Protocol Buffers encoded one by one are decoded when the tensor is taken. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/onnx.h"

enum { MAX_DIMS = 64 };

/* Field numbers of a TensorProto. */
enum {
  DIMS = 1,
  DATA_TYPE = 2,
  SEGMENT = 3,
  FLOAT_DATA = 4,
  INT32_DATA = 5,
  INT64_DATA = 7,
  NAME = 8,
  RAW_DATA = 9,
  DOUBLE_DATA = 10,
  UINT64_DATA = 11,
  EXTERNAL_DATA = 13,
  DATA_LOCATION = 14
};

/* Indexed by TensorProto's data_type: safetensors' name of the element type (NULL: not supported),
 * and the field that holds the numbers if they are not raw. */
static const struct {
  const char *element, *name;
  uint32_t field;
} types[] = {
    {NULL, "undefined", 0},
    {"F32", "float", FLOAT_DATA},
    {"U8", "uint8", INT32_DATA},
    {"I8", "int8", INT32_DATA},
    {"U16", "uint16", INT32_DATA},
    {"I16", "int16", INT32_DATA},
    {"I32", "int32", INT32_DATA},
    {"I64", "int64", INT64_DATA},
    {NULL, "string", 0},
    {"BOOL", "bool", INT32_DATA},
    {"F16", "float16", INT32_DATA},
    {"F64", "double", DOUBLE_DATA},
    {"U32", "uint32", UINT64_DATA},
    {"U64", "uint64", UINT64_DATA},
    {"C64", "complex64", FLOAT_DATA},
    {NULL, "complex128", 0},
    {"BF16", "bfloat16", INT32_DATA},
    {"F8_E4M3", "float8e4m3fn", INT32_DATA},
    {"F8_E4M3FNUZ", "float8e4m3fnuz", INT32_DATA},
    {"F8_E5M2", "float8e5m2", INT32_DATA},
    {"F8_E5M2FNUZ", "float8e5m2fnuz", INT32_DATA},
};
enum { TYPES = sizeof types / sizeof *types };

typedef struct proto_tensor {
  const char *name;
  uint64_t type;
  int64_t rank, shape[MAX_DIMS];
  cr__proto raw, external; /* raw: the data; external: the whole message, which has the external
                              data's entries */
  bool is_raw, is_external, is_segment;
} proto_tensor;

static int add_dim(const cr_weights *w, proto_tensor *t, uint64_t value, const uint8_t *at) {
  if (t->rank == MAX_DIMS) return cr__onnx_damaged(w, at, "a tensor has too many dimensions");
  t->shape[t->rank++] = value > INT64_MAX ? -1 : (int64_t)value;
  return CR_OK;
}

static int read_fields(cr_weights *w, cr__proto message, proto_tensor *t) {
  cr__proto_field f;
  int more;
  cr__proto all = message;
  while ((more = cr__proto_next(&message, &f)) > 0) {
    if (f.number == DIMS && f.wire == CR__PROTO_VARINT) {
      CR_TRY(add_dim(w, t, f.value, message.p));
    } else if (f.number == DIMS && f.wire == CR__PROTO_BYTES) {
      for (uint64_t value; f.body.p < f.body.end;) {
        if (!cr__proto_varint(&f.body, &value))
          return cr__onnx_damaged(w, f.body.p, "a tensor's shape cannot be read");
        CR_TRY(add_dim(w, t, value, f.body.p));
      }
    } else if (f.number == DATA_TYPE) {
      t->type = f.value;
    } else if (f.number == SEGMENT) {
      t->is_segment = true;
    } else if (f.number == RAW_DATA && f.wire == CR__PROTO_BYTES) {
      t->raw = f.body;
      t->is_raw = true;
    } else if (f.number == DATA_LOCATION) {
      t->is_external = f.value == 1;
    }
  }
  t->external = all;
  return more < 0 ? cr__onnx_damaged(w, message.p, "a tensor cannot be read") : CR_OK;
}

/* ---- numbers encoded one by one ---- */

/* Decodes all numbers of `field`, packed or not, and returns their count; -1: damaged. out NULL:
 * counts only. */
static int64_t gather(cr__proto message, uint32_t field, int bytes, uint8_t *out) {
  cr__proto_field f;
  int64_t count = 0;
  int more;
  int width = field == FLOAT_DATA ? 4 : field == DOUBLE_DATA ? 8 : 0; /* 0: varints */
  while ((more = cr__proto_next(&message, &f)) > 0) {
    if (f.number != field) continue;
    bool packed = f.wire == CR__PROTO_BYTES;
    do {
      uint64_t value = f.value;
      if (packed && f.body.p == f.body.end) break;
      if (packed && width) {
        if (cr__proto_size(&f.body) < width) return -1;
        value = width == 4 ? cr__le32(f.body.p) : cr__le64(f.body.p);
        f.body.p += width;
      } else if (packed && !cr__proto_varint(&f.body, &value)) {
        return -1;
      }
      if (out)
        for (int k = 0; k < bytes; k++) *out++ = (uint8_t)(value >> 8 * k);
      count++;
    } while (packed);
  }
  return more < 0 ? -1 : count;
}

int cr__onnx_gather(const cr__store *store, const uint8_t *data, uint8_t *out) {
  cr__proto message = {data, data + store->packed};
  return gather(message, store->field, store->width, out) < 0 ? CR_EFORMAT : CR_OK;
}

/* ---- external data files ---- */

typedef struct place {
  char location[PATH_MAX];
  int64_t offset, length; /* length < 0: up to the end */
} place;

/* Parses a number in decimal digits. */
static bool decimal(const cr__proto *text, int64_t *out) {
  *out = 0;
  for (const uint8_t *p = text->p; p < text->end; p++)
    if (*p < '0' || *p > '9' || __builtin_mul_overflow(*out, 10, out) ||
        __builtin_add_overflow(*out, *p - '0', out))
      return false;
  return text->p < text->end;
}

static int read_place(cr_weights *w, cr__proto message, place *out) {
  cr__proto_field f, key, value;
  *out = (place){.length = -1};
  while (cr__proto_next(&message, &f) > 0) {
    if (f.number != EXTERNAL_DATA || f.wire != CR__PROTO_BYTES) continue;
    CR_TRY(cr__onnx_find(w, f.body, 1, &key));
    CR_TRY(cr__onnx_find(w, f.body, 2, &value));
    int64_t n = cr__proto_size(&key.body), size = cr__proto_size(&value.body);
    bool ok = true;
    if (n == 8 && memcmp(key.body.p, "location", 8) == 0) {
      ok = size > 0 && size < PATH_MAX && !memchr(value.body.p, 0, (size_t)size);
      if (ok) memcpy(out->location, value.body.p, (size_t)size);
    } else if (n == 6 && memcmp(key.body.p, "offset", 6) == 0) {
      ok = decimal(&value.body, &out->offset);
    } else if (n == 6 && memcmp(key.body.p, "length", 6) == 0) {
      ok = decimal(&value.body, &out->length);
    }
    if (!ok) return cr__onnx_damaged(w, f.body.p, "the location of external data cannot be read");
  }
  return *out->location ? CR_OK : cr__onnx_damaged(w, message.p, "external data has no location");
}

/* Whether `path` is in `folder` after following links; false if it does not exist. */
static bool lies_within(const char *folder, const char *path) {
  char *a = realpath(folder, NULL), *b = realpath(path, NULL);
  size_t n = a ? strlen(a) : 0;
  bool ok = a && b && strncmp(a, b, n) == 0 && (b[n] == '/' || n == 1);
  free(a);
  free(b);
  return ok;
}

/* Maps the file of an external location, which must be in the model's folder. */
static int open_beside(cr_weights *w, const char *location, cr__mapped **out) {
  char folder[PATH_MAX], path[2 * PATH_MAX];
  const char *slash = strrchr(w->path, '/');
  snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - w->path + 1) : 2,
           slash ? w->path : "./");
  snprintf(path, sizeof path, "%s%s", folder, location);
  for (int32_t i = 0; i < w->other_count; i++)
    if (strcmp(w->others[i]->path, path) == 0) {
      *out = w->others[i];
      return CR_OK;
    }
  const char *shown = cr_printable(location, strlen(location));
  if (*location == '/' || strstr(location, ".."))
    return cr__weights_fail(
        w, CR_EFORMAT, "its external data %s is outside its folder, which is not allowed", shown);
  cr__mapped *map = NULL;
  if (cr__mapped_open(&map, path) < 0)
    return cr__weights_fail(w, CR_EIO,
                            "its external data %s cannot be opened: put the file beside it", shown);
  cr__mapped **grown = realloc(w->others, ((size_t)w->other_count + 1) * sizeof(cr__mapped *));
  if (grown) w->others = grown;
  if (!grown || !lies_within(folder, path)) {
    cr__mapped_release(map);
    return cr__weights_fail(w, grown ? CR_EFORMAT : CR_ENOMEM,
                            "its external data %s leads outside its folder, which is not allowed",
                            shown);
  }
  w->others[w->other_count++] = map;
  w->left += 2 * map->size; /* external files count towards the allowance */
  *out = map;
  return CR_OK;
}

static int external_store(cr_weights *w, const proto_tensor *t, const char *shown, int64_t wanted,
                          cr__store *store) {
  place at;
  CR_TRY(read_place(w, t->external, &at));
  CR_TRY(open_beside(w, at.location, &store->map));
  int64_t room = store->map->size - at.offset;
  int64_t length = at.length < 0 ? wanted : at.length;
  if (at.offset < 0 || room < 0 || length > room)
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s reaches past the end of its external data %s",
                            shown, cr_printable(at.location, strlen(at.location)));
  store->position = at.offset;
  store->packed = store->bytes = length;
  return CR_OK;
}

/* ---- a tensor ---- */

/* Returns the bytes that the shape needs, saturated. */
static int64_t wanted_bytes(const proto_tensor *t, int64_t bits) {
  int64_t n = 1;
  bool huge = false, empty = false;
  for (int64_t k = 0; k < t->rank; k++) {
    if (t->shape[k] == 0) empty = true;
    huge = huge || __builtin_mul_overflow(n, t->shape[k], &n);
  }
  if (empty) return 0;
  return huge || n < 0 || n > INT64_MAX / 128 ? INT64_MAX : (n * bits + 7) / 8;
}

int cr__onnx_tensor(cr_weights *w, cr__proto message, const char *name) {
  proto_tensor t = {0};
  if (!name) CR_TRY(cr__onnx_name(w, message, NAME, &name));
  CR_TRY(read_fields(w, message, &t));
  const char *shown = cr_printable(name, strlen(name));
  if (t.type >= TYPES || !types[t.type].element || t.is_segment) {
    char text[120];
    if (t.is_segment)
      snprintf(text, sizeof text, "is stored in segments, which are not handled");
    else if (t.type < TYPES)
      snprintf(text, sizeof text, "has data type %s, which is not handled", types[t.type].name);
    else
      snprintf(text, sizeof text, "has data type %llu, which is not handled",
               (unsigned long long)t.type);
    const char *trouble = cr__arena_string(&w->arena, text, strlen(text));
    return trouble ? cr__weights_add_trouble(w, name, trouble) : CR_ENOMEM;
  }
  const char *code = types[t.type].element;
  const cr__element *element = cr__element_named(CR__SAFETENSORS, code, strlen(code));
  int64_t wanted = wanted_bytes(&t, element->bits);
  cr__store store = {.position = t.raw.p - w->map->data};
  if (t.is_external) {
    CR_TRY(external_store(w, &t, shown, wanted, &store));
  } else if (t.is_raw) {
    store.packed = store.bytes = cr__proto_size(&t.raw);
  } else {
    store.position = message.p - w->map->data;
    store.packed = cr__proto_size(&message);
    store.field = types[t.type].field;
    store.width = element->bits / 8;
    int64_t count = gather(message, store.field, store.width, NULL);
    if (count < 0) return cr__onnx_damaged(w, message.p, "a tensor's numbers cannot be read");
    /* A complex number is two floats. */
    store.bytes = count * (element->bits == 64 && store.field == FLOAT_DATA ? 4 : store.width);
  }
  if (store.bytes != wanted)
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s has %lld bytes, but its shape needs %lld",
                            shown, (long long)store.bytes, (long long)wanted);
  int32_t number = cr__weights_add_store(w, &store);
  if (number < 0) return number;
  return cr__weights_add(
      w, name, &(cr__layout){.element = element, .rank = t.rank, .shape = t.shape}, number);
}
