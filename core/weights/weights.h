/* The directory of a weights file, which each format's reader fills.
 *
 * Invariants, on which cr_weights_tensor relies: every entry names a store; its offset and strides
 * stay within its store's bytes; every store lies within its mapped file. The cr__weights_add
 * functions check this, and a reader has no other way to add. */
#ifndef CR_WEIGHTS_H
#define CR_WEIGHTS_H

#include "base/buffer.h"
#include "base/internal.h"
#include "base/output.h"
#include "weights/element.h"
#include "weights/mapped_file.h"

/* A file of n bytes may take MOST_TIMES * n + SPARE_BYTES bytes of memory, whatever it claims: for
 * its directory, for unpacked data, and for all its tensors together. */
enum { CR__MOST_TIMES = 64, CR__SPARE_BYTES = 8 << 20 };

/* A block of elements in the file. */
typedef struct cr__store {
  cr__mapped *map;  /* NULL: the weights file itself */
  int64_t position; /* in the file */
  int64_t packed;   /* bytes in the file */
  int64_t bytes;    /* bytes after unpacking */
  bool deflated;
  uint32_t field; /* the Protocol Buffers field with the numbers, which become `width` bytes each;
                     0: raw data */
  int32_t width;
  uint32_t crc;      /* of the unpacked bytes; only if deflated */
  int32_t users;     /* number of entries that view it */
  cr_storage *cache; /* unpacked data that several entries share */
} cr__store;

/* A named tensor. */
typedef struct cr__entry {
  const char *name;
  const cr__element *element;
  const char *trouble; /* why it cannot be taken ("is sparse, ..."), or NULL */
  bool swapped, negated;
  /* May exceed CR_MAX_RANK if there is trouble; shape then has the first dimensions. */
  int32_t rank;
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
  int64_t offset; /* in elements */
  int64_t span;  /* elements from the first to the last one that the strides reach; 0: the tensor is
                    empty */
  int64_t bytes; /* size of the dense elements in the file */
  int32_t store;
} cr__entry;

struct cr_weights {
  char *path;
  const char *format;
  cr__mapped *map;
  cr__mapped **others; /* external data files of an ONNX model */
  int32_t other_count;
  cr__arena arena; /* for names */
  cr__entry *entries;
  int64_t count, capacity;
  cr__store *stores;
  int32_t store_count, store_capacity;
  int32_t *index; /* hash table: index of an entry + 1; 0: a free slot */
  int64_t index_size;
  cr__text metadata;
  int64_t left;        /* bytes that tensors may still claim */
  const char *warning; /* what was ignored, or NULL */
};

/* Fails with the file's name in front of the message. A macro, so that static checkers see which
 * code is returned. */
#define cr__weights_fail(w, code, ...) (cr__weights_message(w, code, __VA_ARGS__), (code))
void cr__weights_message(const cr_weights *w, int code, const char *format, ...) CR_PRINTF(3, 4);
/* Returns whether [position, position + bytes) lies within the file. */
bool cr__weights_within(const cr_weights *w, int64_t position, int64_t bytes);
/* Adds a store. Returns its index, or an error. */
int32_t cr__weights_add_store(cr_weights *w, const cr__store *store);
/* The layout of a tensor in its store. `shape` may hold any numbers; stride NULL: dense. */
typedef struct cr__layout {
  const cr__element *element;
  bool swapped, negated;
  int64_t rank;
  const int64_t *shape, *stride;
  int64_t offset; /* in elements */
} cr__layout;
/* Adds an entry after checking its shape, strides and store. A valid tensor that is not supported
 * gets an entry with `trouble`. */
int cr__weights_add(cr_weights *w, const char *name, const cr__layout *layout, int32_t store);
/* Adds an entry that cannot be taken. `trouble` must live as long as w. */
int cr__weights_add_trouble(cr_weights *w, const char *name, const char *trouble);
/* Adds a second name for entry k. */
int cr__weights_add_alias(cr_weights *w, const char *name, int64_t k);
/* Returns how much memory the file's directory may take. */
size_t cr__weights_allowance(const cr_weights *w);
/* Notes what was ignored, for cr_weights_warning: "12 bytes behind the archive". */
void cr__weights_warn(cr_weights *w, const char *format, ...) CR_PRINTF(2, 3);
/* Makes the hash table of all names. It fails if two tensors have the same name. */
int cr__weights_index(cr_weights *w);

/* The readers. Each sets w->format, entries, stores and metadata from the mapped file. */
int cr__safetensors_read(cr_weights *w);
int cr__npy_read(cr_weights *w);
/* For an opened archive: whether all its members are .npy files, and the reader of these. */
struct cr__zip;
bool cr__npz_is(const struct cr__zip *zip);
int cr__npz_read(cr_weights *w, const struct cr__zip *zip);
int cr__ctranslate2_read(cr_weights *w);
int cr__onnx_read(cr_weights *w);
/* Decodes the numbers of a store with a `field` from its bytes, which are a TensorProto. */
int cr__onnx_gather(const cr__store *store, const uint8_t *data, uint8_t *out);
int cr__torch_zip_read(cr_weights *w);
int cr__torch_legacy_read(cr_weights *w);

#endif
