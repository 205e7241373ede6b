/* What the readers of the weights formats share: the directory that each of them fills.
 *
 * Invariants, which cr_weights_tensor relies on: every entry names a store; offset and strides of
 * an entry stay within its store's bytes; every store lies within its mapped file. The
 * cr__weights_add functions check these; a reader cannot go round them. */
#ifndef CR_WEIGHTS_H
#define CR_WEIGHTS_H

#include "base/buffer.h"
#include "base/internal.h"
#include "base/output.h"
#include "weights/element.h"
#include "weights/mapped_file.h"

/* A file of n bytes may take as much memory as this many times n, and SPARE_BYTES more, whatever it
 * claims: for its directory, for what is unpacked, and for its tensors together. */
enum { CR__MOST_TIMES = 64, CR__SPARE_BYTES = 8 << 20 };

/* One block of elements in the file. */
typedef struct cr__store {
  cr__mapped *map;  /* NULL: the file's own */
  int64_t position; /* in the file */
  int64_t packed;   /* bytes there */
  int64_t bytes;    /* unpacked */
  bool deflated;
  uint32_t field; /* of Protocol Buffers: its numbers, of `width` bytes each, are gathered; 0: no */
  int32_t width;
  uint32_t crc;      /* of the unpacked bytes, if deflated */
  int32_t users;     /* entries that look into it */
  cr_storage *cache; /* kept while several entries share what is not mapped */
} cr__store;

/* One named tensor. */
typedef struct cr__entry {
  const char *name;
  const cr__element *element;
  const char *trouble; /* why it cannot be taken ("is sparse, ..."), or NULL */
  bool swapped, negated;
  int32_t rank; /* may be above CR_MAX_RANK if there is trouble; shape then holds the first ones */
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
  int64_t offset; /* in elements */
  int64_t span;   /* elements from there to the last one, itself included; 0: it has none */
  int64_t bytes;  /* of the elements in the file, dense */
  int32_t store;
} cr__entry;

struct cr_weights {
  char *path;
  const char *format;
  cr__mapped *map;
  cr__mapped **others; /* files beside it that hold numbers of it */
  int32_t other_count;
  cr__arena arena; /* names */
  cr__entry *entries;
  int64_t count, capacity;
  cr__store *stores;
  int32_t store_count, store_capacity;
  int32_t *index; /* hash table of entry numbers + 1 */
  int64_t index_size;
  cr__text metadata;
  int64_t left;        /* bytes of tensors that may still be claimed */
  const char *warning; /* what was passed over, or NULL */
};

/* A failure with the file's name in front. A macro, so that a checker sees the code come back. */
#define cr__weights_fail(w, code, ...) (cr__weights_message(w, code, __VA_ARGS__), (code))
void cr__weights_message(const cr_weights *w, int code, const char *format, ...) CR_PRINTF(3, 4);
/* True if [position, position + bytes) lies within the file. */
bool cr__weights_within(const cr_weights *w, int64_t position, int64_t bytes);
/* Number of the new store, or an error. */
int32_t cr__weights_add_store(cr_weights *w, const cr__store *store);
/* How a tensor lies in its store. `shape` may hold any numbers; stride NULL: dense. */
typedef struct cr__layout {
  const cr__element *element;
  bool swapped, negated;
  int64_t rank;
  const int64_t *shape, *stride;
  int64_t offset; /* in elements */
} cr__layout;
/* Adds an entry after checking shape, strides and store. What is sound but cannot be read here gets
 * an entry with trouble. */
int cr__weights_add(cr_weights *w, const char *name, const cr__layout *layout, int32_t store);
/* Adds an entry that cannot be taken; `trouble` lives as long as w. */
int cr__weights_add_trouble(cr_weights *w, const char *name, const char *trouble);
/* Adds another name of entry k. */
int cr__weights_add_alias(cr_weights *w, const char *name, int64_t k);
/* Memory that the file's directory may take. */
size_t cr__weights_allowance(const cr_weights *w);
/* Notes what was passed over, for the one who opened the file: "12 bytes behind the archive". */
void cr__weights_warn(cr_weights *w, const char *format, ...) CR_PRINTF(2, 3);
/* Makes the hash table of all names; fails if two are the same. */
int cr__weights_index(cr_weights *w);

/* The readers: each fills w->format, entries, stores and metadata from the mapped file. */
int cr__safetensors_read(cr_weights *w);
int cr__npy_read(cr_weights *w);
/* Of an opened archive: whether all its members are .npy files, and reading them. */
struct cr__zip;
bool cr__npz_is(const struct cr__zip *zip);
int cr__npz_read(cr_weights *w, const struct cr__zip *zip);
int cr__ctranslate2_read(cr_weights *w);
int cr__onnx_read(cr_weights *w);
/* Unpacks the numbers of a store with a `field` from its bytes, which are a TensorProto. */
int cr__onnx_gather(const cr__store *store, const uint8_t *data, uint8_t *out);
int cr__torch_zip_read(cr_weights *w);
int cr__torch_legacy_read(cr_weights *w);

#endif
