/* A pickle machine that builds plain data and tensors and can do nothing else.
 *
 * Invariants: names in a pickle are looked up only in the short list of pickle_globals.c and in the
 * table of elements; their constructors are written in C. A pickle with any other name is refused,
 * whether it calls the name or not. The only exception is the name of a tensor's class: that tensor
 * then has `trouble`. The arena bounds the memory. Values may share children and even contain
 * themselves, so whoever walks them must bound the walk. */
#ifndef CR_PICKLE_H
#define CR_PICKLE_H

#include "base/buffer.h"
#include "weights/element.h"

enum { CR__PICKLE_DIMS = 64 }; /* most dimensions of a tensor in a pickle */

enum cr__value_kind {
  CR__NONE,
  CR__FLAG, /* the integer is 0 or 1 */
  CR__INTEGER,
  CR__REAL,
  CR__STRING, /* text or Python's bytes */
  CR__LIST,   /* a list or a set */
  CR__TUPLE,
  CR__DICT, /* items: key, value, key, value, ... */
  CR__GLOBAL,
  CR__STORAGE,
  CR__TENSOR,
  CR__MARK /* only on the stack */
};

typedef struct cr__value cr__value;

/* A storage as a persistent id describes it. */
typedef struct cr__pickle_storage {
  const char *key; /* NUL-terminated */
  const cr__element *element;
  int64_t elements; /* of the whole storage */
  int64_t first;    /* first element of a legacy view of a storage */
} cr__pickle_storage;

typedef struct cr__pickle_tensor {
  const char *trouble; /* why the tensor cannot be taken, else NULL; if set, no other field is */
  const cr__pickle_storage *storage;
  const cr__element *element; /* of the tensor; differs from the storage's if that is untyped */
  bool negated;
  int64_t offset;
  const cr__value *shape, *stride; /* tuples of integers of the same length */
} cr__pickle_tensor;

/* A global, that is, a name in the pickle. */
typedef struct cr__pickle_global {
  int32_t role;               /* enum role of pickle_globals.c */
  bool excused;               /* not in the list, but used only as the class of a tensor */
  const char *name;           /* printable */
  const char *trouble;        /* of the tensors that it builds */
  const cr__element *element; /* of a storage or a dtype */
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

/* The state of reading one pickle. */
typedef struct cr__pickle {
  const char *path;    /* for messages */
  cr__arena *arena;    /* for the values; strings may point into the pickle itself */
  cr__value *storages; /* a list of all storages that persistent ids name */
  cr__value *refused;  /* a list of the globals that are not allowed */
  int64_t budget;      /* number of items that calls may still copy */
} cr__pickle;

/* Reads one pickle from the beginning of data. *used is its length. Set path and arena before the
 * call. */
int cr__pickle_read(cr__pickle *pickle, cr__value **out, const uint8_t *data, int64_t size,
                    int64_t *used);

/* ---- shared by the files of the pickle machine ---- */

/* The rest of the pickle. */
typedef struct cr__pickle_bytes {
  cr__pickle *pickle;
  const uint8_t *start, *p, *end;
} cr__pickle_bytes;

/* Fail with the position in the pickle. A macro, so that static checkers see which code is
 * returned. */
#define cr__pickle_damaged(b, what) (cr__pickle_message(b, what), CR_EFORMAT)
void cr__pickle_message(const cr__pickle_bytes *b, const char *what);
int cr__pickle_no_memory(const cr__pickle *pickle);

/* Allocates a value of only the size that its kind needs, since most values of a pickle are small.
 * NULL with the message set if there is no memory. */
cr__value *cr__value_new(cr__arena *arena, enum cr__value_kind kind);
bool cr__value_push(cr__arena *arena, cr__value *list, cr__value *item);

/* Read the operands of an opcode: `bytes` raw bytes, a little-endian number of `width` bytes, a
 * line. */
int cr__pickle_take(cr__pickle_bytes *b, uint64_t bytes, const uint8_t **out);
int cr__pickle_number(cr__pickle_bytes *b, int width, uint64_t *out);
int cr__pickle_line(cr__pickle_bytes *b, const char **text, size_t *bytes);
/* Reads the value of an opcode that is a literal: a number, a string, None. *out is NULL for other
 * opcodes. */
int cr__pickle_literal(cr__pickle_bytes *b, uint8_t opcode, cr__value **out);

/* Makes the value of a global. A name that is not in the list is noted as refused. */
int cr__pickle_global_value(cr__pickle *pickle, cr__value **out, const char *module,
                            size_t module_bytes, const char *name, size_t name_bytes);
/* Fails with the global's name if it is refused. */
int cr__pickle_refuse(const cr__pickle *pickle, const cr__value *global);
int cr__pickle_call(cr__pickle *pickle, cr__value **out, const cr__value *callee,
                    cr__value *arguments);
int cr__pickle_persistent(cr__pickle *pickle, cr__value **out, const cr__value *id);

#endif
