/* safetensors: a u64 with the length of the header, the header (JSON), and the data.
 *
 * Reading maps the file and copies nothing. As the format demands, the tensors' byte ranges must
 * follow one another without gaps or overlaps and fill the file to its last byte. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "weights/weights.h"

enum { PREFIX_BYTES = 8, MAX_HEADER_BYTES = 100 * 1000 * 1000, MAX_TEXT_DIMS = 64 };

typedef struct range {
  int64_t begin, end;
  const char *name;
} range;

static int bad_header(const cr_weights *w, const cr__json *json) {
  return cr__weights_fail(
      w, CR_EFORMAT, "the safetensors header is not valid JSON: %s at byte %lld",
      json->error ? json->error : "an error", (long long)(json->p - json->start) + PREFIX_BYTES);
}

/* Copies {"key": "text", ...} to the metadata. */
static int read_metadata(cr_weights *w, cr__json *json, cr__arena *scratch) {
  if (w->metadata.size)
    return cr__weights_fail(w, CR_EFORMAT, "the safetensors header has __metadata__ twice");
  if (cr__json_peek(json) == 'n') { /* null */
    cr__text_puts(&w->metadata, "{}");
    return cr__json_skip(json) ? CR_OK : bad_header(w, json);
  }
  if (!cr__json_take(json, '{')) return bad_header(w, json);
  cr__text_puts(&w->metadata, "{");
  bool first = true;
  for (bool comma = false; cr__json_more(json, '}', &first); comma = true) {
    char *key, *value;
    size_t key_bytes, value_bytes;
    if (!cr__json_string(json, scratch, &key, &key_bytes) || !cr__json_take(json, ':'))
      return bad_header(w, json);
    if (cr__json_peek(json) != '"')
      return cr__weights_fail(w, CR_EFORMAT, "the value of %s in __metadata__ is not a string",
                              cr_printable(key, key_bytes));
    if (!cr__json_string(json, scratch, &value, &value_bytes)) return bad_header(w, json);
    if (comma) cr__text_puts(&w->metadata, ",");
    cr__text_json_string(&w->metadata, key, key_bytes);
    cr__text_puts(&w->metadata, ":");
    cr__text_json_string(&w->metadata, value, value_bytes);
  }
  cr__text_puts(&w->metadata, "}");
  return json->error ? bad_header(w, json) : CR_OK;
}

typedef struct description {
  const cr__element *element;
  int64_t rank, shape[MAX_TEXT_DIMS];
  int64_t begin, end;
  bool has_dtype, has_shape, has_offsets;
} description;

static int read_sizes(cr_weights *w, cr__json *json, const char *name, int64_t *sizes, int64_t most,
                      int64_t *count) {
  if (!cr__json_take(json, '[')) return bad_header(w, json);
  bool first = true;
  *count = 0;
  while (cr__json_more(json, ']', &first)) {
    if (*count == most)
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s: a list in the header is too long",
                              cr_printable(name, strlen(name)));
    if (!cr__json_size(json, &sizes[(*count)++])) return bad_header(w, json);
  }
  return json->error ? bad_header(w, json) : CR_OK;
}

static int read_description(cr_weights *w, cr__json *json, cr__arena *scratch, const char *name,
                            description *d) {
  const char *shown = cr_printable(name, strlen(name));
  if (!cr__json_take(json, '{')) return bad_header(w, json);
  bool first = true;
  while (cr__json_more(json, '}', &first)) {
    char *key, *text;
    size_t n;
    bool *seen = NULL;
    if (!cr__json_string(json, scratch, &key, &n) || !cr__json_take(json, ':'))
      return bad_header(w, json);
    if (strcmp(key, "dtype") == 0) seen = &d->has_dtype;
    if (strcmp(key, "shape") == 0) seen = &d->has_shape;
    if (strcmp(key, "data_offsets") == 0) seen = &d->has_offsets;
    if (!seen)
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s: unknown key %s in the header", shown,
                              cr_printable(key, n));
    if (*seen)
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s: %s occurs twice in the header", shown,
                              key);
    *seen = true;
    if (seen == &d->has_shape) {
      CR_TRY(read_sizes(w, json, name, d->shape, MAX_TEXT_DIMS, &d->rank));
    } else if (seen == &d->has_offsets) {
      int64_t offsets[2], count;
      CR_TRY(read_sizes(w, json, name, offsets, 2, &count));
      if (count != 2)
        return cr__weights_fail(w, CR_EFORMAT, "tensor %s: data_offsets needs two numbers", shown);
      d->begin = offsets[0];
      d->end = offsets[1];
    } else {
      if (!cr__json_string(json, scratch, &text, &n)) return bad_header(w, json);
      d->element = cr__element_named(CR__SAFETENSORS, text, n);
      if (!d->element)
        return cr__weights_fail(w, CR_EFORMAT, "tensor %s has the unknown dtype %s", shown,
                                cr_printable(text, n));
    }
  }
  if (json->error) return bad_header(w, json);
  const char *lacks = !d->has_dtype ? "dtype" : !d->has_shape ? "shape" : "data_offsets";
  if (!d->has_dtype || !d->has_shape || !d->has_offsets)
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s: %s is missing in the header", shown, lacks);
  return CR_OK;
}

static int add_tensor(cr_weights *w, int64_t data, const char *name, const description *d) {
  const char *shown = cr_printable(name, strlen(name));
  if (d->begin > d->end || !cr__weights_within(w, data, d->end))
    return cr__weights_fail(
        w, CR_EFORMAT, "tensor %s claims bytes %lld to %lld, but the file holds only %lld", shown,
        (long long)d->begin, (long long)d->end, (long long)(w->map->size - data));
  cr__store store = {
      .position = data + d->begin, .packed = d->end - d->begin, .bytes = d->end - d->begin};
  int32_t number = cr__weights_add_store(w, &store);
  if (number < 0) return number;
  CR_TRY(cr__weights_add(
      w, name, &(cr__layout){.element = d->element, .rank = d->rank, .shape = d->shape}, number));
  int64_t needed = w->entries[w->count - 1].bytes;
  if (needed != store.bytes)
    return cr__weights_fail(w, CR_EFORMAT, "tensor %s has %lld bytes, but its shape needs %lld",
                            shown, (long long)store.bytes, (long long)needed);
  return CR_OK;
}

static int by_position(const void *a, const void *b) {
  const range *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end;
}

/* Checks that the byte ranges tile the rest of the file. */
static int check_tiling(cr_weights *w, int64_t data) {
  range *ranges = malloc((size_t)(w->count ? w->count : 1) * sizeof *ranges);
  if (!ranges) return cr__weights_fail(w, CR_ENOMEM, "out of memory for the directory");
  for (int64_t i = 0; i < w->count; i++) {
    const cr__store *store = &w->stores[w->entries[i].store];
    ranges[i] = (range){store->position, store->position + store->bytes, w->entries[i].name};
  }
  qsort(ranges, (size_t)w->count, sizeof *ranges, by_position);
  int64_t end = data;
  int rc = CR_OK;
  for (int64_t i = 0; i < w->count && rc == CR_OK; i++) {
    if (ranges[i].begin != end)
      rc = cr__weights_fail(
          w, CR_EFORMAT, "tensor %s %s", cr_printable(ranges[i].name, strlen(ranges[i].name)),
          ranges[i].begin < end ? "overlaps the one before it" : "leaves a gap before it");
    end = ranges[i].end;
  }
  if (rc == CR_OK && end != w->map->size)
    rc = cr__weights_fail(w, CR_EFORMAT, "%lld bytes follow the last tensor",
                          (long long)(w->map->size - end));
  free(ranges);
  return rc;
}

static int read_header(cr_weights *w, cr__json *json, cr__arena *scratch, int64_t data) {
  if (!cr__json_take(json, '{')) return bad_header(w, json);
  bool first = true;
  while (cr__json_more(json, '}', &first)) {
    char *name;
    size_t n;
    if (!cr__json_string(json, &w->arena, &name, &n) || !cr__json_take(json, ':'))
      return bad_header(w, json);
    if (strcmp(name, "__metadata__") == 0) {
      CR_TRY(read_metadata(w, json, scratch));
      continue;
    }
    if (strlen(name) != n)
      return cr__weights_fail(w, CR_EFORMAT, "tensor %s: the name holds a zero byte",
                              cr_printable(name, n));
    description d = {0};
    CR_TRY(read_description(w, json, scratch, name, &d));
    CR_TRY(add_tensor(w, data, name, &d));
  }
  if (!cr__json_end(json)) return bad_header(w, json);
  return check_tiling(w, data);
}

int cr__safetensors_read(cr_weights *w) {
  w->format = "safetensors";
  uint64_t header = cr__le64(w->map->data);
  if (header > MAX_HEADER_BYTES)
    return cr__weights_fail(w, CR_EFORMAT,
                            "its safetensors header claims %" PRIu64 " bytes; 100 MB is the most",
                            header);
  if (header > (uint64_t)(w->map->size - PREFIX_BYTES))
    return cr__weights_fail(w, CR_EFORMAT,
                            "its safetensors header claims %" PRIu64
                            " bytes, but the file holds only %lld: it is truncated",
                            header, (long long)w->map->size);
  cr__json json;
  cr__json_begin(&json, (const char *)w->map->data + PREFIX_BYTES, (size_t)header);
  cr__arena scratch = {.limit = cr__weights_allowance(w)};
  int rc = read_header(w, &json, &scratch, PREFIX_BYTES + (int64_t)header);
  cr__arena_free(&scratch);
  return rc;
}

/* ---- writing ---- */

/* The order of the data: larger elements first, so that all are aligned. */
static const int8_t element_sizes[] = {8, 4, 2, 1};

static int write_header(cr__output *output, int32_t n, const char *const *names,
                        const cr_tensor *const *tensors, const char *metadata) {
  int64_t *begin = malloc(((size_t)n + 1) * sizeof *begin);
  if (!begin) {
    cr__output_abandon(output);
    return cr__fail(CR_ENOMEM, "%s: out of memory", output->path);
  }
  int64_t at = 0;
  for (size_t k = 0; k < sizeof element_sizes; k++)
    for (int32_t i = 0; i < n; i++)
      if (cr_dtype_size(tensors[i]->dtype) == element_sizes[k]) {
        begin[i] = at;
        at += cr_numel(tensors[i]) * element_sizes[k];
      }
  cr__text header = {0};
  char number[64];
  cr__text_puts(&header, "{");
  if (metadata) {
    cr__text_puts(&header, "\"__metadata__\":");
    cr__text_puts(&header, metadata);
  }
  for (int32_t i = 0; i < n; i++) {
    const cr_tensor *t = tensors[i];
    if (i || metadata) cr__text_puts(&header, ",");
    cr__text_json_string(&header, names[i], strlen(names[i]));
    cr__text_puts(&header, ":{\"dtype\":\"");
    cr__text_puts(&header, cr__element_of(t->dtype)->names[CR__SAFETENSORS]);
    cr__text_puts(&header, "\",\"shape\":[");
    for (int32_t k = 0; k < t->rank; k++) {
      snprintf(number, sizeof number, "%s%d", k ? "," : "", t->shape[k]);
      cr__text_puts(&header, number);
    }
    int64_t end = begin[i] + cr_numel(t) * cr_dtype_size(t->dtype);
    snprintf(number, sizeof number, "],\"data_offsets\":[%lld,%lld]}", (long long)begin[i],
             (long long)end);
    cr__text_puts(&header, number);
  }
  cr__text_puts(&header, "}");
  while (!header.failed && header.size % 8) cr__text_puts(&header, " ");
  free(begin);
  int rc = CR_OK;
  if (header.failed) {
    cr__output_abandon(output);
    rc = cr__fail(CR_ENOMEM, "%s: out of memory", output->path);
  } else {
    uint8_t prefix[PREFIX_BYTES];
    for (int k = 0; k < PREFIX_BYTES; k++) prefix[k] = (uint8_t)((uint64_t)header.size >> 8 * k);
    rc = cr__output_write(output, prefix, sizeof prefix);
    if (rc >= 0) rc = cr__output_write(output, header.data, header.size);
  }
  cr__text_free(&header);
  return rc;
}

/* Whether the text is an object of strings, {"key": "string", ...}. */
static bool metadata_valid(const char *text) {
  cr__json json;
  cr__json_begin(&json, text, strlen(text));
  cr__arena scratch = {0};
  char *string;
  size_t n;
  bool first = true, ok = cr__json_take(&json, '{');
  while (ok && cr__json_more(&json, '}', &first))
    ok = cr__json_string(&json, &scratch, &string, &n) && cr__json_take(&json, ':') &&
         cr__json_string(&json, &scratch, &string, &n);
  ok = ok && cr__json_end(&json);
  cr__arena_free(&scratch);
  return ok;
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_names(const char *path, int32_t n, const char *const *names) {
  const char **sorted = malloc(((size_t)n + 1) * sizeof *sorted);
  if (!sorted) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  int rc = CR_OK;
  for (int32_t i = 0; i < n && rc == CR_OK; i++) {
    sorted[i] = names[i];
    if (!names[i] || !cr__utf8_valid(names[i], strlen(names[i])))
      rc = cr__fail(CR_EINVAL, "%s: the name of tensor %d is not UTF-8", path, i + 1);
    else if (strcmp(names[i], "__metadata__") == 0)
      rc = cr__fail(CR_EINVAL, "%s: a tensor cannot be named __metadata__", path);
  }
  if (rc == CR_OK) {
    qsort(sorted, (size_t)n, sizeof *sorted, by_text);
    for (int32_t i = 1; i < n && rc == CR_OK; i++)
      if (strcmp(sorted[i - 1], sorted[i]) == 0)
        rc = cr__fail(CR_EINVAL, "%s: two tensors are named %s", path,
                      cr_printable(sorted[i], strlen(sorted[i])));
  }
  free(sorted);
  return rc;
}

CR_EXPORT int cr_safetensors_save(const char *path, int32_t n, const char *const *names,
                                  const cr_tensor *const *tensors, const char *metadata_json) {
  if (!path || n < 0) return cr__fail(CR_EINVAL, "safetensors_save: a path is needed");
  CR_TRY(check_names(path, n, names));
  for (int32_t i = 0; i < n; i++) CR_TRY(cr__alive("safetensors_save", tensors[i]));
  if (metadata_json && !metadata_valid(metadata_json))
    return cr__fail(CR_EINVAL, "%s: the metadata must be a JSON object of strings", path);
  cr__output output;
  CR_TRY(cr__output_open(&output, path));
  CR_TRY(write_header(&output, n, names, tensors, metadata_json));
  for (size_t k = 0; k < sizeof element_sizes; k++)
    for (int32_t i = 0; i < n; i++)
      if (cr_dtype_size(tensors[i]->dtype) == element_sizes[k])
        CR_TRY(cr__output_tensor(&output, tensors[i]));
  return cr__output_finish(&output);
}
