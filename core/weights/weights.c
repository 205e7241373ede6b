/* Weights files: tells the format by the contents, keeps the directory, hands out tensors.
 *
 * The readers (safetensors.c, torch_file.c, npy.c, ctranslate2.c) fill the directory through
 * cr__weights_add, the one place where shapes, strides and stores are checked against each other.
 */
#include "weights/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/zip.h"

void cr__weights_message(const cr_weights *w, int code, const char *format, ...) {
  char text[900];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  cr__fail(code, "%s: %s", w->path, text);
}

bool cr__weights_within(const cr_weights *w, int64_t position, int64_t bytes) {
  return position >= 0 && bytes >= 0 && position <= w->map->size &&
         bytes <= w->map->size - position;
}

static bool grow(void **array, int64_t count, int64_t *capacity, size_t item) {
  if (count < *capacity) return true;
  int64_t wanted = *capacity ? *capacity * 2 : 64;
  if (wanted > INT32_MAX) return false;
  void *bigger = realloc(*array, (size_t)wanted * item);
  if (!bigger) return false;
  *array = bigger;
  *capacity = wanted;
  return true;
}

int32_t cr__weights_add_store(cr_weights *w, const cr__store *store) {
  if (!cr__weights_within(w, store->position, store->packed) || store->bytes < 0 ||
      (!store->deflated && store->bytes > store->packed))
    return cr__weights_fail(w, CR_EFORMAT, "the numbers at byte %lld do not lie within the file",
                            (long long)store->position);
  void *array = w->stores;
  int64_t capacity = w->store_capacity;
  bool grown = grow(&array, w->store_count, &capacity, sizeof *w->stores);
  w->stores = array;
  w->store_capacity = (int32_t)capacity;
  if (!grown) return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
  w->stores[w->store_count] = *store;
  w->stores[w->store_count].users = 0;
  w->stores[w->store_count].cache = NULL;
  return w->store_count++;
}

int cr__weights_add(cr_weights *w, const char *name, int32_t dtype, const char *dtype_name,
                    int32_t element_bits, int64_t rank, const int64_t *shape, const int64_t *stride,
                    int64_t offset, int32_t store) {
  const char *shown = cr__printable(name, strlen(name));
  if (rank < 0 || rank > CR_MAX_RANK)
    return cr__weights_fail(w, CR_EUNSUPPORTED,
                            "tensor %s has %lld dimensions; at most %d are handled", shown,
                            (long long)rank, CR_MAX_RANK);
  if (dtype >= 0) element_bits = cr_dtype_size(dtype) * 8;
  cr__entry entry = {.name = name, .dtype = dtype, .dtype_name = dtype_name, .rank = (int32_t)rank};
  int64_t numel = 1, dense[CR_MAX_RANK], last = offset;
  bool empty = false;
  for (int64_t k = 0; k < rank; k++) {
    if (shape[k] < 0)
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s has a negative size", shown);
    if (shape[k] > INT32_MAX)
      return cr__weights_fail(w, CR_EUNSUPPORTED,
                              "tensor %s has a size of %lld; at most %d is handled", shown,
                              (long long)shape[k], INT32_MAX);
    if (shape[k] == 0) empty = true;
  }
  for (int64_t k = rank - 1; k >= 0; k--) {
    entry.shape[k] = (int32_t)shape[k];
    dense[k] = numel;
    if (!empty && __builtin_mul_overflow(numel, shape[k], &numel))
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s claims more elements than any file holds",
                              shown);
  }
  if (empty) numel = 0;
  if (offset < 0) return cr__weights_fail(w, CR_EFORMAT, "tensor %s has a negative offset", shown);
  for (int64_t k = 0; k < rank; k++) {
    int64_t step = stride ? stride[k] : dense[k], reach;
    if (step < 0) return cr__weights_fail(w, CR_EFORMAT, "tensor %s has a negative stride", shown);
    if (empty) step = dense[k];
    entry.stride[k] = step;
    if (!empty && (__builtin_mul_overflow(step, shape[k] - 1, &reach) ||
                   __builtin_add_overflow(last, reach, &last)))
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s reaches past the end of its storage",
                              shown);
  }
  const cr__store *home = &w->stores[store];
  int64_t bits;
  if (numel > (int64_t)1 << 42 || __builtin_mul_overflow(numel, (int64_t)element_bits, &bits))
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s claims more elements than any file holds",
                            shown);
  /* `last` is the last element that a view touches; it must exist. */
  if (!empty) {
    int64_t end;
    if (__builtin_add_overflow(last, 1, &end) ||
        __builtin_mul_overflow(end, (int64_t)element_bits, &end) || (end + 7) / 8 > home->bytes)
      return cr__weights_fail(w, CR_EFORMAT,
                              "tensor %s reaches past the end of its storage of %lld bytes", shown,
                              (long long)home->bytes);
  }
  entry.offset = empty ? 0 : offset;
  entry.bytes = bits / 8 + (bits % 8 != 0);
  entry.store = store;
  void *array = w->entries;
  bool grown = grow(&array, w->count, &w->capacity, sizeof *w->entries);
  w->entries = array;
  if (!grown) return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
  w->stores[store].users++;
  w->entries[w->count++] = entry;
  return CR_OK;
}

static uint64_t hash(const char *name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
  return h ^ h >> 29;
}

static int build_index(cr_weights *w) {
  w->index_size = 16;
  while (w->index_size < w->count * 2) w->index_size *= 2;
  w->index = calloc((size_t)w->index_size, sizeof *w->index);
  if (!w->index) return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
  for (int64_t i = 0; i < w->count; i++) {
    int64_t slot = (int64_t)(hash(w->entries[i].name) & (uint64_t)(w->index_size - 1));
    for (; w->index[slot]; slot = (slot + 1) & (w->index_size - 1)) {
      const char *other = w->entries[w->index[slot] - 1].name;
      if (strcmp(other, w->entries[i].name) == 0)
        return cr__weights_fail(w, CR_EFORMAT, "two tensors are named %s",
                                cr__printable(other, strlen(other)));
    }
    w->index[slot] = (int32_t)i + 1;
  }
  return CR_OK;
}

/* Files that people mistake for weights, and what to say about them. */
static const struct {
  int32_t at;
  int32_t length;
  const char *bytes, *what;
} strangers[] = {
    {0, 8, "\x89HDF\r\n\x1a\n", "an HDF5 file, which is not read here; convert it to safetensors"},
    {0, 4, "GGUF", "a GGUF file, which is not read here; convert it to safetensors"},
    {4, 4, "TFL3", "a TFLite model: a network and not a plain file of weights"},
    {257, 5, "ustar",
     "a tar archive (PyTorch before 0.1.10), which is not read here; load and save it "
     "again with a newer PyTorch"},
    {0, 7, "version", "a text file, perhaps a Git LFS pointer: fetch the real file (git lfs pull)"},
    {0, 2, "\x1f\x8b", "compressed by gzip: unpack it first"},
    {0, 1, "<", "a web page or XML, not weights: the download went wrong"},
};

static int detect(cr_weights *w) {
  const uint8_t *data = w->map->data;
  int64_t size = w->map->size;
  if (size == 0) return cr__weights_fail(w, CR_EFORMAT, "the file is empty");
  if (size < 8)
    return cr__weights_fail(w, CR_EFORMAT, "too short for a weights file (%lld bytes)",
                            (long long)size);
  if (memcmp(data, "PK\3\4", 4) == 0 || memcmp(data, "PK\5\6", 4) == 0)
    return cr__torch_zip_read(w);
  if (memcmp(data, "\x93NUMPY", 6) == 0) return cr__npy_read(w);
  /* Before the pickles: a header of 640, 896, 1152 or 1408 bytes begins as they do. No other format
   * here has four zeros and this brace in these places. */
  if (size > 8 && data[8] == '{' && cr__le32(data + 4) == 0) return cr__safetensors_read(w);
  if (data[0] == 0x80 && data[1] >= 2 && data[1] <= 5) return cr__torch_legacy_read(w);
  for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
    if (size >= strangers[i].at + strangers[i].length &&
        memcmp(data + strangers[i].at, strangers[i].bytes, (size_t)strangers[i].length) == 0)
      return cr__weights_fail(w, CR_EFORMAT, "%s", strangers[i].what);
  if (size > 8 && data[8] == '{') return cr__safetensors_read(w);
  /* A CTranslate2 model: version, then "...Spec" with its NUL. */
  uint32_t version = cr__le32(data);
  uint16_t length = cr__le16(data + 4);
  if (version >= 1 && version <= 20 && length >= 5 && length <= 256 && size >= 6 + length &&
      memcmp(data + 6 + length - 5, "Spec", 5) == 0)
    return cr__ctranslate2_read(w);
  return cr__weights_fail(w, CR_EFORMAT,
                          "not a weights file: neither safetensors nor PyTorch, .npy "
                          "or CTranslate2");
}

CR_EXPORT int cr_weights_open(cr_weights **out, const char *path) {
  if (!out || !path) return cr__fail(CR_EINVAL, "weights_open: a path is needed");
  *out = NULL;
  cr_weights *w = calloc(1, sizeof *w);
  if (!w || !(w->path = strdup(path))) {
    free(w);
    return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  w->format = "unknown";
  int rc = cr__mapped_open(&w->map, path);
  if (rc >= 0) rc = detect(w);
  if (rc >= 0) rc = build_index(w);
  if (rc >= 0 && !w->metadata.size) cr__text_puts(&w->metadata, "{}");
  if (rc >= 0 && w->metadata.failed) rc = cr__weights_fail(w, CR_ENOMEM, "out of memory");
  if (rc < 0) {
    cr_weights_close(w);
    return rc;
  }
  *out = w;
  return CR_OK;
}

CR_EXPORT void cr_weights_close(cr_weights *w) {
  if (!w) return;
  for (int32_t i = 0; i < w->store_count; i++)
    if (w->stores[i].cache) cr__release(w->stores[i].cache);
  free(w->stores);
  free(w->entries);
  free(w->index);
  cr__arena_free(&w->arena);
  cr__text_free(&w->metadata);
  cr__mapped_release(w->map);
  free(w->path);
  free(w);
}

CR_EXPORT int64_t cr_weights_count(const cr_weights *w) { return w ? w->count : 0; }

CR_EXPORT int cr_weights_entry_at(const cr_weights *w, int64_t index, cr_weights_entry *out) {
  if (!w || index < 0 || index >= w->count)
    return cr__fail(CR_EINVAL, "weights_entry_at: there is no entry %lld", (long long)index);
  const cr__entry *entry = &w->entries[index];
  memset(out, 0, sizeof *out);
  out->name = entry->name;
  out->dtype = entry->dtype;
  out->rank = entry->rank;
  memcpy(out->shape, entry->shape, sizeof out->shape);
  out->bytes = entry->bytes;
  return CR_OK;
}

CR_EXPORT int64_t cr_weights_find(const cr_weights *w, const char *name) {
  int64_t slot = (int64_t)(hash(name) & (uint64_t)(w->index_size - 1));
  for (; w->index[slot]; slot = (slot + 1) & (w->index_size - 1))
    if (strcmp(w->entries[w->index[slot] - 1].name, name) == 0) return w->index[slot] - 1;
  return cr__weights_fail(w, CR_EINVAL, "there is no tensor %s", cr__printable(name, strlen(name)));
}

CR_EXPORT const char *cr_weights_metadata(const cr_weights *w) { return w->metadata.data; }

CR_EXPORT const char *cr_weights_format(const cr_weights *w) { return w->format; }

/* The store's elements as a storage with one reference for the caller. */
static cr_storage *store_open(const cr_weights *w, cr__store *store, int32_t alignment) {
  if (store->cache) {
    cr__retain(store->cache);
    return store->cache;
  }
  uint8_t *data = w->map->data + store->position;
  if (!store->deflated && (uintptr_t)data % (uintptr_t)alignment == 0) {
    cr__mapped_retain(w->map);
    return cr__storage_wrap(data, store->bytes, cr__mapped_release, w->map);
  }
  cr_storage *storage = cr__storage_new(store->bytes, CR_CPU);
  if (!storage) return NULL;
  if (!store->deflated) {
    memcpy(storage->data, data, (size_t)store->bytes);
  } else if (cr__inflate(w->path, data, store->packed, storage->data, store->bytes, store->crc) <
             0) {
    cr__release(storage);
    return NULL;
  }
  if (store->users > 1) {
    cr__retain(storage);
    store->cache = storage;
  }
  return storage;
}

CR_EXPORT int cr_weights_tensor(const cr_weights *w, int64_t index, cr_tensor *out) {
  if (!w || index < 0 || index >= w->count)
    return cr__fail(CR_EINVAL, "weights_tensor: there is no entry %lld", (long long)index);
  const cr__entry *entry = &w->entries[index];
  if (entry->dtype < 0)
    return cr__weights_fail(w, CR_EUNSUPPORTED, "tensor %s has dtype %s, which is not handled",
                            cr__printable(entry->name, strlen(entry->name)), entry->dtype_name);
  if (entry->bytes == 0) return cr_empty(out, entry->rank, entry->shape, entry->dtype, CR_CPU);
  cr_storage *storage = store_open(w, &w->stores[entry->store], cr_dtype_size(entry->dtype));
  if (!storage) return CR_ENOMEM;
  cr_tensor view = {0};
  cr__tensor_set(&view, storage, entry->dtype, entry->rank, entry->shape, entry->stride,
                 entry->offset);
  cr__release(storage);
  if (!out->storage) {
    *out = view;
    return CR_OK;
  }
  int rc = cr_copy(out, &view);
  cr_free(&view);
  return rc;
}
