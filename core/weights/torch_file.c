/* PyTorch's files: the zip archive that torch.save writes, and the stream that it wrote before
 * version 1.6.
 *
 * Both hold a pickle in which every tensor names a storage by a key. The pickle's nested
 * dictionaries are flattened: a tensor's name is its keys joined by dots, and everything else
 * becomes the metadata. Storages are mapped; views share them, with their saved strides. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/pickle.h"
#include "weights/weights.h"
#include "weights/zip.h"

enum {
  MAX_DEPTH = 64,
  MAX_NAME_BYTES = 1024,
  /* Limits for any file; they grow with its size. They are needed because a pickle can refer to a
   * value many times. */
  SPARE_VISITS = 1 << 20,
  SPARE_TENSORS = 1 << 16,
  SPARE_METADATA_BYTES = 1 << 20,
  LEGACY_PROTOCOL = 1001
};

/* A tensor found in the pickle, whose storage is not located yet. */
typedef struct found {
  const char *name;
  const cr__pickle_tensor *tensor;
} found;

typedef struct walker {
  cr_weights *w;
  cr__text name;
  int64_t visits;
  found *list;
  int64_t count, capacity;
} walker;

static int no_memory(const cr_weights *w) {
  return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
}

static int walk(walker *k, const cr__value *value, int depth, bool *wrote);

static int too_large(const walker *k) {
  return cr__weights_fail(k->w, CR_EFORMAT, "the pickle is nested too deeply or too large");
}

static int add_found(walker *k, const cr__value *value) {
  if (k->count > SPARE_TENSORS + k->w->map->size / 2) return too_large(k);
  if (k->count == k->capacity) {
    int64_t capacity = k->capacity ? k->capacity * 2 : 64;
    found *list = realloc(k->list, (size_t)capacity * sizeof *list);
    if (!list) return no_memory(k->w);
    k->list = list;
    k->capacity = capacity;
  }
  const char *text = k->name.size ? k->name.data : "tensor";
  char *name = cr__arena_string(&k->w->arena, text, strlen(text));
  if (!name) return CR_ENOMEM;
  k->list[k->count++] = (found){name, &value->tensor};
  return CR_OK;
}

static void cut(cr__text *text, size_t size) {
  if (text->failed || !text->data) return;
  text->size = size;
  text->data[size] = 0;
}

/* Walks one child, with `key` appended to the name. */
static int walk_child(walker *k, const char *key, size_t bytes, const cr__value *child, int depth,
                      bool *wrote) {
  size_t length = k->name.size;
  if (memchr(key, 0, bytes) || bytes > MAX_NAME_BYTES || length + bytes + 1 > MAX_NAME_BYTES)
    return cr__weights_fail(k->w, CR_EFORMAT,
                            "damaged pickle: a name is longer than %d bytes or holds a zero byte",
                            MAX_NAME_BYTES);
  if (length) cr__text_add(&k->name, ".", 1);
  cr__text_add(&k->name, key, bytes);
  if (k->name.failed) return no_memory(k->w);
  CR_TRY(walk(k, child, depth + 1, wrote));
  cut(&k->name, length);
  return CR_OK;
}

/* Appends the closing bracket of a container, or removes what was written since `start` if nothing
 * in it is wanted. */
static void end(cr__text *json, const char *bracket, bool wanted, size_t start) {
  if (wanted)
    cr__text_puts(json, bracket);
  else
    cut(json, start);
}

static int walk_dict(walker *k, const cr__value *dict, int depth, bool *wrote) {
  cr__text *json = &k->w->metadata;
  size_t start = json->size;
  bool any = false;
  cr__text_puts(json, "{");
  for (int64_t i = 0; i + 1 < dict->count; i += 2) {
    const cr__value *key = dict->items[i];
    char number[32];
    const char *text = key->text;
    size_t bytes = key->bytes, before = json->size;
    if (key->kind == CR__INTEGER || key->kind == CR__FLAG) {
      bytes = (size_t)snprintf(number, sizeof number, "%lld", (long long)key->integer);
      text = number;
    } else if (key->kind != CR__STRING) {
      continue; /* a key that cannot be part of a name */
    }
    if (any) cr__text_puts(json, ",");
    cr__text_json_string(json, text, bytes < MAX_NAME_BYTES ? bytes : MAX_NAME_BYTES);
    cr__text_puts(json, ":");
    bool child = false;
    CR_TRY(walk_child(k, text, bytes, dict->items[i + 1], depth, &child));
    if (child)
      any = true;
    else
      cut(json, before);
  }
  *wrote = any || dict->count == 0 || depth == 0;
  end(json, "}", *wrote, start);
  return CR_OK;
}

static int walk_list(walker *k, const cr__value *list, int depth, bool *wrote) {
  cr__text *json = &k->w->metadata;
  size_t start = json->size;
  bool any = false;
  cr__text_puts(json, "[");
  for (int64_t i = 0; i < list->count; i++) {
    char number[32];
    size_t bytes = (size_t)snprintf(number, sizeof number, "%lld", (long long)i);
    bool child = false;
    if (i) cr__text_puts(json, ",");
    CR_TRY(walk_child(k, number, bytes, list->items[i], depth, &child));
    if (child)
      any = true;
    else
      cr__text_puts(json, "null");
  }
  *wrote = any || list->count == 0;
  end(json, "]", *wrote, start);
  return CR_OK;
}

/* Walks a value. *wrote: something was appended to the metadata. */
static int walk(walker *k, const cr__value *value, int depth, bool *wrote) {
  cr__text *json = &k->w->metadata;
  char number[32];
  *wrote = true;
  if (depth > MAX_DEPTH || ++k->visits > SPARE_VISITS + 4 * k->w->map->size ||
      (int64_t)json->size > SPARE_METADATA_BYTES + 16 * k->w->map->size)
    return too_large(k);
  switch (value->kind) {
  case CR__DICT:
    return walk_dict(k, value, depth, wrote);
  case CR__LIST:
  case CR__TUPLE:
    return walk_list(k, value, depth, wrote);
  case CR__TENSOR:
    *wrote = false;
    return add_found(k, value);
  case CR__FLAG:
    cr__text_puts(json, value->integer ? "true" : "false");
    return CR_OK;
  case CR__REAL:
    cr__text_json_number(json, value->real);
    return CR_OK;
  case CR__STRING:
    cr__text_json_string(json, value->text, value->bytes);
    return CR_OK;
  case CR__INTEGER:
    snprintf(number, sizeof number, "%lld", (long long)value->integer);
    cr__text_puts(json, number);
    return CR_OK;
  case CR__NONE:
    cr__text_puts(json, "null");
    return CR_OK;
  case CR__GLOBAL:
  case CR__STORAGE:
  case CR__MARK:
    break;
  }
  *wrote = false;
  return CR_OK;
}

/* Collects all tensors of the pickle, and its metadata. */
static int flatten(walker *k, const cr__value *root) {
  bool wrote = false;
  if (root->kind == CR__DICT) {
    CR_TRY(walk(k, root, 0, &wrote));
  } else {
    /* The metadata is always a JSON object, whatever the file's root is. */
    cr__text_puts(&k->w->metadata, "{\"value\":");
    CR_TRY(walk(k, root, 0, &wrote));
    if (wrote)
      cr__text_puts(&k->w->metadata, "}");
    else
      cut(&k->w->metadata, 0);
  }
  return k->w->metadata.failed ? no_memory(k->w) : CR_OK;
}

static void walker_free(walker *k) {
  free(k->list);
  cr__text_free(&k->name);
}

/* Adds an entry for a tensor that cannot be taken. */
static int add_trouble(cr_weights *w, const found *f) {
  const char *text = f->tensor->trouble;
  const char *kept = cr__arena_string(&w->arena, text, strlen(text));
  return kept ? cr__weights_add_trouble(w, f->name, kept) : CR_ENOMEM;
}

/* Adds an entry for a tensor that views `store`. */
static int add_tensor(cr_weights *w, const found *f, int32_t store) {
  const cr__pickle_tensor *t = f->tensor;
  int64_t shape[CR__PICKLE_DIMS], stride[CR__PICKLE_DIMS];
  for (int64_t i = 0; i < t->shape->count; i++) {
    shape[i] = t->shape->items[i]->integer;
    stride[i] = t->stride->items[i]->integer;
  }
  /* The size of an untyped storage is in bytes, but the tensor's offset is in elements. */
  cr__layout layout = {.element = t->element,
                       .negated = t->negated,
                       .rank = t->shape->count,
                       .shape = shape,
                       .stride = stride};
  if (t->offset < 0 || __builtin_add_overflow(t->offset, t->storage->first, &layout.offset))
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s has an invalid offset",
                            cr_printable(f->name, strlen(f->name)));
  return cr__weights_add(w, f->name, &layout, store);
}

/* Returns the bytes of a storage, or -1 if no file can hold them. */
static int64_t storage_bytes(const cr__pickle_storage *s) {
  int64_t bits;
  return __builtin_mul_overflow(s->elements, (int64_t)s->element->bits, &bits) ? -1 : bits / 8;
}

/* ---- zip archives ---- */

static int check_byteorder(const cr_weights *w, const cr__zip *zip, const char *folder) {
  char name[MAX_NAME_BYTES + 32];
  snprintf(name, sizeof name, "%sbyteorder", folder);
  const cr__zip_member *member = cr__zip_find(zip, name);
  if (!member || member->deflated) return CR_OK; /* torch never deflates it */
  if (member->bytes == 6 && memcmp(w->map->data + member->position, "little", 6) == 0) return CR_OK;
  return cr__weights_fail(w, CR_EUNSUPPORTED,
                          "its numbers are big-endian: save it again on a little-endian machine");
}

/* Finds "FOLDER/data.pkl", and copies FOLDER with its slash. */
static const cr__zip_member *find_pickle(const cr__zip *zip, char *folder, size_t size) {
  const cr__zip_member *best = NULL;
  for (int64_t i = 0; i < zip->count; i++) {
    const char *name = zip->members[i].name, *slash = strrchr(name, '/');
    if (strcmp(slash ? slash + 1 : name, "data.pkl") != 0) continue;
    if (!best || strlen(name) < strlen(best->name)) best = &zip->members[i];
  }
  if (!best || strlen(best->name) - 8 >= size) return NULL;
  snprintf(folder, size, "%.*s", (int)strlen(best->name) - 8, best->name);
  return best;
}

/* stores: for each member, the index of its store + 1; 0: none yet. */
static int add_zip_tensor(cr_weights *w, const cr__zip *zip, const char *folder, const found *f,
                          int32_t *stores) {
  if (f->tensor->trouble) return add_trouble(w, f);
  const char *shown = cr_printable(f->name, strlen(f->name));
  char name[MAX_NAME_BYTES + 300];
  snprintf(name, sizeof name, "%sdata/%s", folder, f->tensor->storage->key);
  const char *place = cr_printable(name, strlen(name));
  const cr__zip_member *member = cr__zip_find(zip, name);
  if (!member)
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s: its storage %s is missing in the archive",
                            shown, place);
  int64_t bytes = storage_bytes(f->tensor->storage);
  if (bytes < 0 || bytes > member->bytes)
    return cr__weights_fail(
        w, CR_EFORMAT,
        "tensor %s: its storage claims %lld elements of %d bytes, but %s holds %lld bytes", shown,
        (long long)f->tensor->storage->elements, f->tensor->storage->element->bits / 8, place,
        (long long)member->bytes);
  int32_t *store = &stores[member - zip->members];
  if (!*store) {
    int32_t number = cr__weights_add_store(w, &(cr__store){.position = member->position,
                                                           .packed = member->packed,
                                                           .bytes = member->bytes,
                                                           .deflated = member->deflated,
                                                           .crc = member->crc});
    if (number < 0) return number;
    *store = number + 1;
  }
  return add_tensor(w, f, *store - 1);
}

static int add_zip_tensors(cr_weights *w, const cr__zip *zip, const char *folder, const walker *k) {
  int32_t *stores = calloc((size_t)zip->count + 1, sizeof *stores);
  if (!stores) return no_memory(w);
  int rc = CR_OK;
  for (int64_t i = 0; i < k->count && rc >= 0; i++)
    rc = add_zip_tensor(w, zip, folder, &k->list[i], stores);
  free(stores);
  return rc;
}

static int read_archive(cr_weights *w, const cr__zip *zip, cr__arena *arena) {
  char folder[MAX_NAME_BYTES];
  const cr__zip_member *member = find_pickle(zip, folder, sizeof folder);
  if (!member)
    return cr__weights_fail(w, CR_EFORMAT,
                            "this is a zip archive, but not one of torch.save: it has no data.pkl");
  CR_TRY(check_byteorder(w, zip, folder));
  const uint8_t *data = w->map->data + member->position;
  if (member->deflated) {
    uint8_t *unpacked = cr__arena_alloc(arena, (size_t)member->bytes + 1);
    if (!unpacked) return CR_ENOMEM;
    CR_TRY(cr__inflate(w->path, data, member->packed, unpacked, member->bytes, member->crc));
    data = unpacked;
  }
  cr__pickle pickle = {.path = w->path, .arena = arena};
  cr__value *root = NULL;
  int64_t used = 0;
  CR_TRY(cr__pickle_read(&pickle, &root, data, member->bytes, &used));
  walker k = {.w = w};
  int rc = flatten(&k, root);
  if (rc >= 0) rc = add_zip_tensors(w, zip, folder, &k);
  walker_free(&k);
  return rc;
}

int cr__torch_zip_read(cr_weights *w) {
  w->format = "torch-zip";
  cr__zip zip;
  CR_TRY(cr__zip_read(&zip, w->path, w->map->data, w->map->size));
  if (zip.behind) cr__weights_warn(w, "%lld bytes behind the archive", (long long)zip.behind);
  cr__arena arena = {.limit = cr__weights_allowance(w)};
  int rc = cr__npz_is(&zip) ? cr__npz_read(w, &zip) : read_archive(w, &zip, &arena);
  cr__arena_free(&arena);
  cr__zip_free(&zip);
  return rc;
}

/* ---- the legacy stream: magic, protocol, system, object, keys, then the storages ---- */

typedef struct legacy_storage {
  const cr__pickle_storage *storage;
  int32_t store; /* -1: its data was not reached yet */
} legacy_storage;

static int by_key(const void *a, const void *b) {
  return strcmp(((const legacy_storage *)a)->storage->key,
                ((const legacy_storage *)b)->storage->key);
}

static const cr__value *dict_find(const cr__value *dict, const char *key) {
  for (int64_t i = 0; dict->kind == CR__DICT && i + 1 < dict->count; i += 2)
    if (dict->items[i]->kind == CR__STRING && dict->items[i]->bytes == strlen(key) &&
        memcmp(dict->items[i]->text, key, strlen(key)) == 0)
      return dict->items[i + 1];
  return NULL;
}

/* Lists the storages that the pickle names, once each, sorted by key. */
static int list_storages(const cr_weights *w, const cr__value *named, legacy_storage **out,
                         int64_t *count) {
  legacy_storage *list = malloc(((size_t)named->count + 1) * sizeof *list);
  if (!list) return no_memory(w);
  for (int64_t i = 0; i < named->count; i++)
    list[i] = (legacy_storage){&named->items[i]->storage, -1};
  qsort(list, (size_t)named->count, sizeof *list, by_key);
  *count = 0;
  for (int64_t i = 0; i < named->count; i++) {
    if (*count && by_key(&list[*count - 1], &list[i]) == 0) {
      const cr__pickle_storage *a = list[*count - 1].storage, *b = list[i].storage;
      if (a->element->bits == b->element->bits && a->elements == b->elements) continue;
      free(list);
      return cr__weights_fail(w, CR_EFORMAT, "damaged pickle: storage %s has two sizes", a->key);
    }
    list[(*count)++] = list[i];
  }
  *out = list;
  return CR_OK;
}

static legacy_storage *find_storage(legacy_storage *list, int64_t count, const char *key) {
  cr__pickle_storage wanted = {.key = key};
  legacy_storage item = {&wanted, -1};
  return count ? bsearch(&item, list, (size_t)count, sizeof item, by_key) : NULL;
}

/* Locates the data: for each key, a u64 with the number of elements, then the elements. */
static int place_storages(cr_weights *w, const cr__value *keys, int64_t at, legacy_storage *list,
                          int64_t count) {
  for (int64_t i = 0; i < keys->count; i++) {
    const cr__value *key = keys->items[i];
    char text[256];
    if (key->kind != CR__STRING || key->bytes >= sizeof text)
      return cr__weights_fail(w, CR_EFORMAT,
                              "damaged legacy file: the key of a storage is invalid");
    snprintf(text, sizeof text, "%.*s", (int)key->bytes, key->text);
    legacy_storage *s = find_storage(list, count, text);
    if (!s || s->store >= 0)
      return cr__weights_fail(w, CR_EFORMAT,
                              "damaged legacy file: storage %s is not used, or occurs twice",
                              cr_printable(text, strlen(text)));
    if (!cr__weights_within(w, at, 8))
      return cr__weights_fail(w, CR_EFORMAT, "the file is truncated before storage %s",
                              cr_printable(text, strlen(text)));
    uint64_t elements = cr__le64(w->map->data + at);
    int64_t bytes = storage_bytes(s->storage);
    if (bytes < 0 || elements != (uint64_t)s->storage->elements)
      return cr__weights_fail(w, CR_EFORMAT,
                              "damaged legacy file: storage %s has %llu elements, but "
                              "the pickle says %lld",
                              cr_printable(text, strlen(text)), (unsigned long long)elements,
                              (long long)s->storage->elements);
    cr__store block = {.position = at + 8, .packed = bytes, .bytes = bytes};
    if (!cr__weights_within(w, at + 8, bytes))
      return cr__weights_fail(w, CR_EFORMAT,
                              "storage %s needs %lld bytes, but the file ends before: "
                              "it is truncated",
                              cr_printable(text, strlen(text)), (long long)bytes);
    s->store = cr__weights_add_store(w, &block);
    if (s->store < 0) return s->store;
    at += 8 + bytes;
  }
  if (at < w->map->size)
    cr__weights_warn(w, "%lld bytes behind the last storage", (long long)(w->map->size - at));
  return CR_OK;
}

static int add_legacy_tensors(cr_weights *w, const walker *k, const cr__value *named,
                              const cr__value *keys, int64_t at) {
  legacy_storage *list = NULL;
  int64_t count = 0;
  CR_TRY(list_storages(w, named, &list, &count));
  int rc = place_storages(w, keys, at, list, count);
  for (int64_t i = 0; i < k->count && rc >= 0; i++) {
    const found *f = &k->list[i];
    if (f->tensor->trouble) {
      rc = add_trouble(w, f);
      continue;
    }
    const legacy_storage *s = find_storage(list, count, f->tensor->storage->key);
    rc = s && s->store >= 0
             ? add_tensor(w, f, s->store)
             : cr__weights_fail(w, CR_EFORMAT, "tensor %s: its storage is missing in the file",
                                cr_printable(f->name, strlen(f->name)));
  }
  free(list);
  return rc;
}

/* The end of the first pickle in every protocol: a LONG1 of ten bytes and STOP. */
static const char magic[] = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
enum { MAGIC_BYTES = sizeof magic - 1 };

static int read_stream(cr_weights *w, cr__arena *arena) {
  enum { MAGIC, PROTOCOL, SYSTEM, OBJECT, KEYS, PARTS };
  cr__value *parts[PARTS];
  cr__pickle pickle = {.path = w->path, .arena = arena};
  cr__value *named = NULL;
  int64_t at = 0, used = 0;
  for (int i = 0; i < PARTS; i++) {
    CR_TRY(cr__pickle_read(&pickle, &parts[i], w->map->data + at, w->map->size - at, &used));
    if (i == OBJECT) named = pickle.storages;
    at += used;
    if ((i == MAGIC && (used < MAGIC_BYTES ||
                        memcmp(w->map->data + used - MAGIC_BYTES, magic, MAGIC_BYTES) != 0)) ||
        (i == PROTOCOL && (parts[i]->kind != CR__INTEGER || parts[i]->integer != LEGACY_PROTOCOL)))
      return cr__weights_fail(w, CR_EFORMAT, "this is a pickle, but not one of torch.save");
  }
  const cr__value *little = dict_find(parts[SYSTEM], "little_endian");
  if (!little || little->kind != CR__FLAG || !little->integer)
    return cr__weights_fail(w, CR_EUNSUPPORTED,
                            "its numbers are big-endian: save it again on a little-endian machine");
  if (parts[KEYS]->kind != CR__LIST)
    return cr__weights_fail(w, CR_EFORMAT, "damaged legacy file: the list of storages is missing");
  walker k = {.w = w};
  int rc = flatten(&k, parts[OBJECT]);
  if (rc >= 0) rc = add_legacy_tensors(w, &k, named, parts[KEYS], at);
  walker_free(&k);
  return rc;
}

int cr__torch_legacy_read(cr_weights *w) {
  w->format = "torch-legacy";
  cr__arena arena = {.limit = cr__weights_allowance(w)};
  int rc = read_stream(w, &arena);
  cr__arena_free(&arena);
  return rc;
}
