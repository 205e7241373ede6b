/* A pickle machine that can build plain data and tensors and do nothing else.
 *
 * Invariants: no name in a pickle is looked up anywhere but in the short list of pickle_globals.c
 * and the table of elements, and what stands there are constructors written in C. A pickle with any
 * other name is refused, called or not, unless the name is but the class of a tensor, which then
 * has trouble. The arena bounds the memory. Values may share children and even contain themselves:
 * who walks them has to bound the walk. */
#ifndef CR_PICKLE_H
#define CR_PICKLE_H

#include "base/buffer.h"
#include "weights/element.h"

enum { CR__PICKLE_DIMS = 64 }; /* most dimensions of a tensor in a pickle */

enum cr__value_kind {
  CR__NONE,
  CR__FLAG, /* integer 0 or 1 */
  CR__INTEGER,
  CR__REAL,
  CR__STRING, /* text; Python's bytes too */
  CR__LIST,   /* lists and sets */
  CR__TUPLE,
  CR__DICT, /* items: key, value, key, value, ... */
  CR__GLOBAL,
  CR__STORAGE,
  CR__TENSOR,
  CR__MARK /* only on the machine's stack */
};

typedef struct cr__value cr__value;

/* A storage as a persistent id names it. */
typedef struct cr__pickle_storage {
  const char *key; /* NUL-terminated */
  const cr__element *element;
  int64_t elements; /* of the whole storage */
  int64_t first;    /* where a legacy view of a storage begins, in elements */
} cr__pickle_storage;

typedef struct cr__pickle_tensor {
  const char *trouble; /* why it cannot be had; then nothing else is set */
  const cr__pickle_storage *storage;
  const cr__element *element; /* of the tensor; differs from the storage's if that is untyped */
  bool negated;
  int64_t offset;
  const cr__value *shape, *stride; /* tuples of integers, as many of one as of the other */
} cr__pickle_tensor;

/* A name that stands in the pickle. */
typedef struct cr__pickle_global {
  int32_t role;               /* pickle_globals.c's */
  bool excused;               /* not on the list, but only the class of a tensor */
  const char *name;           /* printable */
  const char *trouble;        /* of the tensors that it builds */
  const cr__element *element; /* of storages and dtypes */
} cr__pickle_global;

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
    cr__pickle_global global;
    cr__pickle_storage storage;
    cr__pickle_tensor tensor;
  };
};

/* One reading of a pickle. */
typedef struct cr__pickle {
  const char *path;    /* for messages */
  cr__arena *arena;    /* of the values; strings may point into the pickle itself */
  cr__value *storages; /* a list of all that persistent ids named */
  cr__value *refused;  /* a list of the globals that are not ours */
  int64_t budget;      /* items that calls may still copy */
} cr__pickle;

/* Reads one pickle from the beginning of data; *used: its length. Set path and arena before. */
int cr__pickle_read(cr__pickle *pickle, cr__value **out, const uint8_t *data, int64_t size,
                    int64_t *used);

/* ---- between the files of the pickle machine ---- */

/* What is left of the pickle. */
typedef struct cr__pickle_bytes {
  cr__pickle *pickle;
  const uint8_t *start, *p, *end;
} cr__pickle_bytes;

/* Fail with the place in the pickle. Macros, so that a checker sees the code come back. */
#define cr__pickle_damaged(b, what) (cr__pickle_message(b, what), CR_EFORMAT)
void cr__pickle_message(const cr__pickle_bytes *b, const char *what);
int cr__pickle_no_memory(const cr__pickle *pickle);

/* Of the kind's size only: most values of a pickle are small. NULL (message set) without memory. */
cr__value *cr__value_new(cr__arena *arena, enum cr__value_kind kind);
bool cr__value_push(cr__arena *arena, cr__value *list, cr__value *item);

/* The operands behind an opcode: `bytes` of them, a little-endian number of `width` bytes, a line.
 */
int cr__pickle_take(cr__pickle_bytes *b, uint64_t bytes, const uint8_t **out);
int cr__pickle_number(cr__pickle_bytes *b, int width, uint64_t *out);
int cr__pickle_line(cr__pickle_bytes *b, const char **text, size_t *bytes);
/* The value that an opcode says by itself, with its operands: a number, a string, None. *out is
 * NULL if the opcode is of another kind. */
int cr__pickle_literal(cr__pickle_bytes *b, uint8_t opcode, cr__value **out);

/* The global's value; a name that is not on the list is noted as refused. */
int cr__pickle_global_value(cr__pickle *pickle, cr__value **out, const char *module,
                            size_t module_bytes, const char *name, size_t name_bytes);
/* Fails with the name of a refused global. */
int cr__pickle_refuse(const cr__pickle *pickle, const cr__value *global);
int cr__pickle_call(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                    cr__value *arguments);
int cr__pickle_persistent(cr__pickle *pickle, cr__value **out, const cr__value *id);

#endif
