/* Weights files: detects the format by the contents, keeps the directory, and makes the tensors.
 *
 * The readers (safetensors.c, torch_file.c, npy.c, ctranslate2.c, onnx.c) fill the directory
 * through cr__weights_add, the one place that checks shapes, strides and stores against each
 * other. */
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

static bool within(const cr__mapped *map, int64_t position, int64_t bytes) {
  return position >= 0 && bytes >= 0 && position <= map->size && bytes <= map->size - position;
}

bool cr__weights_within(const cr_weights *w, int64_t position, int64_t bytes) {
  return within(w->map, position, bytes);
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

size_t cr__weights_allowance(const cr_weights *w) {
  return (size_t)w->map->size * CR__MOST_TIMES + CR__SPARE_BYTES;
}

void cr__weights_warn(cr_weights *w, const char *format, ...) {
  char text[200];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  w->warning = cr__arena_string(&w->arena, text, strlen(text));
}

int32_t cr__weights_add_store(cr_weights *w, const cr__store *store) {
  bool packed = store->deflated || store->field;
  if (!within(store->map ? store->map : w->map, store->position, store->packed) ||
      store->bytes < 0 || (!packed && store->bytes > store->packed))
    return cr__weights_fail(w, CR_EFORMAT, "the data at byte %lld does not lie within the file",
                            (long long)store->position);
  if (packed && (w->left -= store->bytes) < 0)
    return cr__weights_fail(
        w, CR_EFORMAT, "its compressed parts claim more bytes than a file of its size may have");
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

static int add_entry(cr_weights *w, const cr__entry *entry) {
  void *array = w->entries;
  bool grown = grow(&array, w->count, &w->capacity, sizeof *w->entries);
  w->entries = array;
  if (!grown) return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
  w->entries[w->count++] = *entry;
  return CR_OK;
}

int cr__weights_add_trouble(cr_weights *w, const char *name, const char *trouble) {
  return add_entry(w, &(cr__entry){.name = name, .trouble = trouble, .store = -1});
}

int cr__weights_add_alias(cr_weights *w, const char *name, int64_t k) {
  cr__entry entry = w->entries[k];
  entry.name = name;
  if (entry.store >= 0) w->stores[entry.store].users++;
  return add_entry(w, &entry);
}

/* Returns why a valid tensor cannot be taken, or NULL. The text lives as long as w. Subtracts the
 * tensor's bytes from those that the file may still claim. */
static const char *trouble_of(cr_weights *w, const cr__layout *l, int64_t numel) {
  char text[160] = "";
  int64_t bytes = l->element->dtype < 0 ? 0 : numel * cr_dtype_size(l->element->dtype);
  if (l->element->dtype < 0) {
    snprintf(text, sizeof text, "has dtype %s, which is not handled", cr__element_name(l->element));
  } else if (l->rank > CR_MAX_RANK) {
    snprintf(text, sizeof text, "has %lld dimensions; at most %d are handled", (long long)l->rank,
             CR_MAX_RANK);
  } else if (bytes > w->left) {
    snprintf(text, sizeof text, "claims %lld bytes, more than a file of this size may have",
             (long long)bytes);
  } else {
    w->left -= bytes;
  }
  for (int64_t k = 0; k < l->rank && !*text; k++)
    if (l->shape[k] > INT32_MAX)
      snprintf(text, sizeof text, "has a size of %lld; at most %d is handled",
               (long long)l->shape[k], INT32_MAX);
  if (!*text) return NULL;
  const char *kept = cr__arena_string(&w->arena, text, strlen(text));
  return kept ? kept : "cannot be described: out of memory";
}

/* Sets shape, strides, offset, span and bytes. Returns what is wrong with them, or NULL. */
static const char *lay_out(cr__entry *entry, const cr__layout *l, int64_t *numel) {
  static const char *const too_many = "claims more elements than any file can hold";
  int64_t last = l->offset, bits = l->element->bits;
  bool empty = false, beyond = false;
  *numel = 1;
  for (int64_t k = 0; k < l->rank; k++) {
    if (l->shape[k] < 0) return "has a negative size";
    if (l->shape[k] == 0) empty = true;
  }
  if (l->offset < 0) return "has a negative offset";
  for (int64_t k = l->rank - 1; k >= 0; k--) {
    int64_t step = l->stride && !empty ? l->stride[k] : *numel, reach;
    if (l->stride && l->stride[k] < 0) return "has a negative stride";
    if (k < CR_MAX_RANK) {
      entry->shape[k] = l->shape[k] > INT32_MAX ? INT32_MAX : (int32_t)l->shape[k];
      entry->stride[k] = step;
    }
    if (empty) continue;
    beyond = beyond || __builtin_mul_overflow(step, l->shape[k] - 1, &reach) ||
             __builtin_add_overflow(last, reach, &last);
    if (__builtin_mul_overflow(*numel, l->shape[k], numel)) return too_many;
  }
  if (beyond) return "reaches past the end of its storage";
  if (empty) *numel = 0;
  if (*numel > (int64_t)1 << 42 || __builtin_mul_overflow(*numel, bits, &bits)) return too_many;
  entry->bytes = bits / 8 + (bits % 8 != 0);
  entry->offset = empty ? 0 : l->offset;
  entry->span = empty ? 0 : last - l->offset + 1;
  return NULL;
}

int cr__weights_add(cr_weights *w, const char *name, const cr__layout *l, int32_t store) {
  cr__entry entry = {.name = name,
                     .element = l->element,
                     .swapped = l->swapped,
                     .negated = l->negated,
                     .rank = (int32_t)l->rank,
                     .store = store};
  int64_t numel = 0, end = 0;
  const char *wrong = lay_out(&entry, l, &numel), *shown = cr_printable(name, strlen(name));
  if (wrong) return cr__weights_fail(w, CR_EFORMAT, "tensor %s %s", shown, wrong);
  /* The last element of a view must lie within its store. */
  if (entry.span && (__builtin_add_overflow(entry.offset, entry.span, &end) ||
                     __builtin_mul_overflow(end, (int64_t)l->element->bits, &end) ||
                     end / 8 + (end % 8 != 0) > w->stores[store].bytes))
    return cr__weights_fail(w, CR_EFORMAT,
                            "tensor %s reaches past the end of its storage of %lld bytes", shown,
                            (long long)w->stores[store].bytes);
  entry.trouble = trouble_of(w, l, numel);
  w->stores[store].users++;
  return add_entry(w, &entry);
}

static uint64_t hash(const char *name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
  return h ^ h >> 29;
}

int cr__weights_index(cr_weights *w) {
  free(w->index);
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
                                cr_printable(other, strlen(other)));
    }
    w->index[slot] = (int32_t)i + 1;
  }
  return CR_OK;
}

/* Files that are mistaken for weights, and what to do with them. */
static const struct {
  int32_t at;
  int32_t length;
  const char *bytes, *what;
} not_weights[] = {
    {0, 8, "\x89HDF\r\n\x1a\n",
     "this is an HDF5 file, which is not supported: convert it to safetensors"},
    {0, 4, "GGUF", "this is a GGUF file, which is not supported: convert it to safetensors"},
    {4, 4, "TFL3", "this is a TFLite model, a network and not a plain file of weights"},
    {257, 5, "ustar",
     "this is a tar archive (PyTorch before 0.1.10), which is not supported: load and save it with "
     "a newer PyTorch"},
    {0, 7, "version",
     "this is a text file, perhaps a Git LFS pointer: fetch the real file (git lfs pull)"},
    {0, 2, "\x1f\x8b", "the file is compressed by gzip: unpack it first"},
    {0, 1, "<", "this is a web page or XML, not weights: the download went wrong"},
};

static int detect(cr_weights *w) {
  const uint8_t *data = w->map->data;
  int64_t size = w->map->size;
  if (size == 0) return cr__weights_fail(w, CR_EFORMAT, "the file is empty");
  if (size < 8)
    return cr__weights_fail(w, CR_EFORMAT, "the file is too short for weights (%lld bytes)",
                            (long long)size);
  if (memcmp(data, "PK\3\4", 4) == 0 || memcmp(data, "PK\5\6", 4) == 0)
    return cr__torch_zip_read(w);
  if (memcmp(data, "\x93NUMPY", 6) == 0) return cr__npy_read(w);
  /* This test must precede that for pickles: a safetensors header of 640, 896, 1152 or 1408 bytes
   * begins like one. No other format here has four zeros and a brace at these positions. */
  if (size > 8 && data[8] == '{' && cr__le32(data + 4) == 0) return cr__safetensors_read(w);
  if (data[0] == 0x80 && data[1] >= 2 && data[1] <= 5) return cr__torch_legacy_read(w);
  for (size_t i = 0; i < sizeof not_weights / sizeof *not_weights; i++)
    if (size >= not_weights[i].at + not_weights[i].length &&
        memcmp(data + not_weights[i].at, not_weights[i].bytes, (size_t)not_weights[i].length) == 0)
      return cr__weights_fail(w, CR_EFORMAT, "%s", not_weights[i].what);
  if (size > 8 && data[8] == '{') return cr__safetensors_read(w);
  /* A CTranslate2 model begins with its version, then "...Spec" with a NUL. */
  uint32_t version = cr__le32(data);
  uint16_t length = cr__le16(data + 4);
  if (version >= 1 && version <= 20 && length >= 5 && length <= 256 && size >= 6 + length &&
      memcmp(data + 6 + length - 5, "Spec", 5) == 0)
    return cr__ctranslate2_read(w);
  /* ONNX has no magic number: a ModelProto begins with its field 1, a small version, followed by
   * another of its fields. */
  if (data[0] == 0x08 && data[1] > 0 && data[1] < 0x80 && data[2] &&
      strchr("\x12\x1a\x22\x28\x32\x3a\x42", data[2]))
    return cr__onnx_read(w);
  return cr__weights_fail(
      w, CR_EFORMAT,
      "this is not a weights file: neither safetensors nor PyTorch, .npy, CTranslate2 or ONNX");
}

/* Adds the file's name to the message of an arena, which does not know it. */
static void name_file(const cr_weights *w, int code) {
  char text[600];
  snprintf(text, sizeof text, "%s", cr_last_error());
  if (!strstr(text, w->path)) cr__weights_message(w, code, "%s", text);
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
  if (rc >= 0) {
    w->arena.limit = cr__weights_allowance(w);
    w->left = (int64_t)cr__weights_allowance(w) * 2;
    rc = detect(w);
  }
  if (rc >= 0) rc = cr__weights_index(w);
  if (rc >= 0 && !w->metadata.size) cr__text_puts(&w->metadata, "{}");
  if (rc >= 0 && w->metadata.failed) rc = cr__weights_fail(w, CR_ENOMEM, "out of memory");
  if (rc < 0) {
    if (w->arena.exhausted) name_file(w, rc);
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
  for (int32_t i = 0; i < w->other_count; i++) cr__mapped_release(w->others[i]);
  free(w->others);
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
  out->dtype = entry->trouble ? -1 : entry->element->dtype;
  out->trouble = entry->trouble;
  out->rank = entry->rank < CR_MAX_RANK ? entry->rank : CR_MAX_RANK;
  memcpy(out->shape, entry->shape, sizeof out->shape);
  out->bytes = entry->bytes;
  return CR_OK;
}

CR_EXPORT int64_t cr_weights_find(const cr_weights *w, const char *name) {
  if (!w || !name) return cr__fail(CR_EINVAL, "weights_find: a file and a name are needed");
  int64_t slot = (int64_t)(hash(name) & (uint64_t)(w->index_size - 1));
  for (; w->index[slot]; slot = (slot + 1) & (w->index_size - 1))
    if (strcmp(w->entries[w->index[slot] - 1].name, name) == 0) return w->index[slot] - 1;
  return cr__weights_fail(w, CR_EINVAL, "there is no tensor %s", cr_printable(name, strlen(name)));
}

CR_EXPORT const char *cr_weights_metadata(const cr_weights *w) { return w->metadata.data; }

CR_EXPORT const char *cr_weights_warning(const cr_weights *w) { return w->warning; }

CR_EXPORT const char *cr_weights_format(const cr_weights *w) { return w->format; }

/* Makes a storage of a store's elements, with one reference for the caller. */
static cr_storage *store_open(const cr_weights *w, cr__store *store, int32_t alignment) {
  if (store->cache) {
    cr__retain(store->cache);
    return store->cache;
  }
  cr__mapped *map = store->map ? store->map : w->map;
  uint8_t *data = map->data + store->position;
  if (!store->deflated && !store->field && (uintptr_t)data % (uintptr_t)alignment == 0) {
    cr__mapped_retain(map);
    return cr__storage_wrap(data, store->bytes, cr__mapped_release, map);
  }
  cr_storage *storage = cr__storage_new(store->bytes, CR_CPU);
  if (!storage) return NULL;
  if (store->field) {
    cr__onnx_gather(store, data, storage->data);
  } else if (!store->deflated) {
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

/* Decodes the elements that an entry spans into a storage of their own. */
static cr_storage *decoded(const cr_weights *w, const cr__entry *entry) {
  const cr__element *element = entry->element;
  cr_storage *raw = store_open(w, &w->stores[entry->store], 1);
  cr_storage *out =
      raw ? cr__storage_new(entry->span * cr_dtype_size(element->dtype), CR_CPU) : NULL;
  const uint8_t *data = raw ? (uint8_t *)raw->data + entry->offset * (element->bits / 8) : NULL;
  if (out &&
      !cr__element_decode(element, entry->swapped, entry->negated, data, entry->span, out->data)) {
    cr__weights_message(w, CR_EUNSUPPORTED, "tensor %s holds numbers above %lld",
                        cr_printable(entry->name, strlen(entry->name)), (long long)INT64_MAX);
    cr__release(out);
    out = NULL;
  }
  if (raw) cr__release(raw);
  return out;
}

CR_EXPORT int cr_weights_tensor(const cr_weights *w, int64_t index, cr_tensor *out) {
  if (!w || index < 0 || index >= w->count)
    return cr__fail(CR_EINVAL, "weights_tensor: there is no entry %lld", (long long)index);
  const cr__entry *entry = &w->entries[index];
  if (entry->trouble)
    return cr__weights_fail(w, CR_EUNSUPPORTED, "tensor %s %s",
                            cr_printable(entry->name, strlen(entry->name)), entry->trouble);
  const cr__element *element = entry->element;
  if (entry->bytes == 0) return cr_empty(out, entry->rank, entry->shape, element->dtype, CR_CPU);
  bool coded = element->coding != CR__PLAIN || entry->swapped || entry->negated;
  cr_storage *storage =
      coded ? decoded(w, entry)
            : store_open(w, &w->stores[entry->store], cr_dtype_size(element->dtype));
  if (!storage) return cr__last_code();
  cr_tensor view = {0};
  cr__tensor_set(&view, storage, element->dtype, entry->rank, entry->shape, entry->stride,
                 coded ? 0 : entry->offset);
  cr__release(storage);
  if (!out->storage) {
    *out = view;
    return CR_OK;
  }
  int rc = cr_copy(out, &view);
  cr_free(&view);
  return rc;
}
