/* A pickle machine that can build plain data and tensors and do nothing else.
 *
 * Invariants: no name in a pickle is looked up anywhere but in the short list of pickle_globals.c,
 * and what stands there are constructors written in C; any other name ends the reading at once,
 * called or not. Memory in use is at most a fixed multiple of the pickle's length. Values may
 * share children and even contain themselves: who walks them has to bound the walk. */
#ifndef CR_PICKLE_H
#define CR_PICKLE_H

#include "base/buffer.h"

enum cr__value_kind {
  CR__NONE,
  CR__FLAG, /* integer 0 or 1 */
  CR__INTEGER,
  CR__REAL,
  CR__STRING, /* text; Python's bytes too */
  CR__LIST,   /* lists and sets */
  CR__TUPLE,
  CR__DICT,   /* items: key, value, key, value, ... */
  CR__GLOBAL, /* integer: number in the list of allowed globals */
  CR__STORAGE,
  CR__TENSOR,
  CR__MARK /* only on the machine's stack */
};

typedef struct cr__value cr__value;

/* A storage as a persistent id names it. */
typedef struct cr__pickle_storage {
  const char *key; /* NUL-terminated */
  int32_t dtype;   /* < 0: not ours */
  int32_t bits;    /* of an element */
  const char *dtype_name;
  int64_t elements; /* of the whole storage */
  int64_t first;    /* where a legacy view of a storage begins, in elements */
} cr__pickle_storage;

typedef struct cr__pickle_tensor {
  const cr__pickle_storage *storage;
  int32_t dtype, bits; /* of the tensor; differs from the storage's if that is untyped */
  const char *dtype_name;
  int64_t offset;
  const cr__value *shape, *stride; /* tuples; their items are checked by who reads them */
} cr__pickle_tensor;

struct cr__value {
  enum cr__value_kind kind;
  union {
    int64_t integer;
    double real;
    struct {
      const char *text;
      size_t bytes;
    };
    struct {
      cr__value **items;
      int64_t count, capacity;
    };
    cr__pickle_storage storage;
    cr__pickle_tensor tensor;
  };
};

/* One reading of a pickle. */
typedef struct cr__pickle {
  const char *path;    /* for messages */
  cr__arena *arena;    /* of the values; strings may point into the pickle itself */
  cr__value *storages; /* a list of all that persistent ids named */
  int64_t budget;      /* items that calls may still copy */
} cr__pickle;

/* Reads one pickle from the beginning of data; *used: its length. Set path and arena before. */
int cr__pickle_read(cr__pickle *pickle, cr__value **out, const uint8_t *data, int64_t size,
                    int64_t *used);

/* ---- between pickle.c and pickle_globals.c ---- */

cr__value *cr__value_new(cr__arena *arena, enum cr__value_kind kind);
bool cr__value_push(cr__arena *arena, cr__value *list, cr__value *item);
/* The global's value, or CR_EFORMAT with its name. */
int cr__pickle_global(cr__pickle *pickle, cr__value **out, const char *module, size_t module_bytes,
                      const char *name, size_t name_bytes);
int cr__pickle_call(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                    cr__value *arguments);
int cr__pickle_persistent(cr__pickle *pickle, cr__value **out, const cr__value *id);

#endif
