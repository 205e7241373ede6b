/* CTranslate2's model.bin: the version, the name of the specification, the revision, the variables
 * and the aliases.
 *
 * All numbers are little-endian. A string is a u16 length and that many bytes, the last of which is
 * a NUL. The variables are mapped; those at unaligned addresses are copied when they are taken. */
#include <string.h>

#include "weights/weights.h"

enum { MIN_VERSION = 3, MAX_VERSION = 6 };

/* Indexed by the dtype numbers of the file. */
static const int8_t dtypes[] = {CR_F32, CR_I8, CR_I16, CR_I32, CR_F16, CR_BF16};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

typedef struct cursor {
  cr_weights *w;
  int64_t at;
} cursor;

static int truncated(const cursor *c) {
  return cr__weights_fail(c->w, CR_EFORMAT,
                          "the CTranslate2 model is truncated: data is missing at byte %lld",
                          (long long)c->at);
}

static int take(cursor *c, int64_t bytes, const uint8_t **out) {
  if (!cr__weights_within(c->w, c->at, bytes)) return truncated(c);
  *out = c->w->map->data + c->at;
  c->at += bytes;
  return CR_OK;
}

static int take_u32(cursor *c, uint32_t *out) {
  const uint8_t *p = NULL;
  CR_TRY(take(c, 4, &p));
  *out = cr__le32(p);
  return CR_OK;
}

static int take_string(cursor *c, const char **out) {
  const uint8_t *p = NULL;
  CR_TRY(take(c, 2, &p));
  int64_t n = cr__le16(p);
  CR_TRY(take(c, n, &p));
  if (n == 0 || p[n - 1] != 0 || memchr(p, 0, (size_t)n - 1) ||
      !cr__utf8_valid((const char *)p, (size_t)n - 1))
    return cr__weights_fail(c->w, CR_EFORMAT, "damaged CTranslate2 model: bad string at byte %lld",
                            (long long)(c->at - n));
  *out = cr__arena_string(&c->w->arena, (const char *)p, (size_t)n - 1);
  return *out ? CR_OK : CR_ENOMEM;
}

static int read_variable(cursor *c) {
  const char *name;
  const uint8_t *p = NULL;
  CR_TRY(take_string(c, &name));
  const char *shown = cr_printable(name, strlen(name));
  CR_TRY(take(c, 1, &p));
  int64_t rank = *p, shape[UINT8_MAX] = {0};
  for (int64_t k = 0; k < rank; k++) {
    uint32_t size = 0;
    CR_TRY(take_u32(c, &size));
    shape[k] = size;
  }
  CR_TRY(take(c, 1, &p));
  if (*p >= DTYPES)
    return cr__weights_fail(c->w, CR_EFORMAT, "tensor %s has the unknown dtype %d", shown, *p);
  cr__layout layout = {.element = cr__element_of(dtypes[*p]), .rank = rank, .shape = shape};
  uint32_t bytes = 0;
  CR_TRY(take_u32(c, &bytes));
  if (!cr__weights_within(c->w, c->at, bytes))
    return cr__weights_fail(
        c->w, CR_EFORMAT, "tensor %s claims %u bytes, but the file ends before that", shown, bytes);
  cr__store store = {.position = c->at, .packed = bytes, .bytes = bytes};
  c->at += bytes;
  int32_t number = cr__weights_add_store(c->w, &store);
  if (number < 0) return number;
  CR_TRY(cr__weights_add(c->w, name, &layout, number));
  if (c->w->entries[c->w->count - 1].bytes != (int64_t)bytes)
    return cr__weights_fail(c->w, CR_EFORMAT, "tensor %s has %u bytes, but its shape needs %lld",
                            shown, bytes, (long long)c->w->entries[c->w->count - 1].bytes);
  return CR_OK;
}

static int read_aliases(cursor *c) {
  uint32_t count = 0;
  CR_TRY(take_u32(c, &count));
  CR_TRY(cr__weights_index(c->w)); /* a hash table of the variables, to look the aliases up */
  for (uint32_t i = 0; i < count; i++) {
    const char *alias, *name;
    CR_TRY(take_string(c, &alias));
    CR_TRY(take_string(c, &name));
    int64_t k = cr_weights_find(c->w, name);
    if (k < 0)
      return cr__weights_fail(c->w, CR_EFORMAT, "the alias %s names a tensor that is missing",
                              cr_printable(alias, strlen(alias)));
    CR_TRY(cr__weights_add_alias(c->w, alias, k));
  }
  return CR_OK;
}

int cr__ctranslate2_read(cr_weights *w) {
  w->format = "ctranslate2";
  cursor c = {w, 0};
  const char *specification;
  uint32_t version = 0, revision = 0, count = 0;
  CR_TRY(take_u32(&c, &version));
  if (version < MIN_VERSION || version > MAX_VERSION)
    return cr__weights_fail(
        w, CR_EUNSUPPORTED,
        "this is a CTranslate2 model of version %u, but only versions %d to %d are supported",
        version, MIN_VERSION, MAX_VERSION);
  CR_TRY(take_string(&c, &specification));
  CR_TRY(take_u32(&c, &revision));
  CR_TRY(take_u32(&c, &count));
  for (uint32_t i = 0; i < count; i++) CR_TRY(read_variable(&c));
  CR_TRY(read_aliases(&c));
  if (c.at != w->map->size)
    return cr__weights_fail(w, CR_EFORMAT, "%lld bytes follow the last tensor",
                            (long long)(w->map->size - c.at));
  cr__text_puts(&w->metadata, "{\"specification\":");
  cr__text_json_string(&w->metadata, specification, strlen(specification));
  cr__text_puts(&w->metadata, ",\"revision\":");
  cr__text_json_number(&w->metadata, revision);
  cr__text_puts(&w->metadata, "}");
  return CR_OK;
}
