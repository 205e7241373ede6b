/* The opcodes of a pickle that are literals, and the reading of operands. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"
#include "weights/pickle.h"

enum { MAX_NUMBER_TEXT = 64 };

#define damaged cr__pickle_damaged

void cr__pickle_message(const cr__pickle_bytes *b, const char *what) {
  cr__fail(CR_EFORMAT, "%s: damaged pickle: %s at byte %lld", b->pickle->path, what,
           (long long)(b->p - b->start));
}

int cr__pickle_no_memory(const cr__pickle *pickle) {
  if (pickle->arena->exhausted)
    return cr__fail(CR_EFORMAT, "%s: its pickle needs more memory than a file of its size may take",
                    pickle->path);
  return cr__fail(CR_ENOMEM, "%s: out of memory for the pickle", pickle->path);
}

cr__value *cr__value_new(cr__arena *arena, enum cr__value_kind kind) {
  static const cr__value *const none;
  size_t head = offsetof(cr__value, integer), body = sizeof none->integer;
  if (kind == CR__STRING || kind == CR__LIST || kind == CR__TUPLE || kind == CR__DICT)
    body = sizeof none->items + sizeof none->count + sizeof none->capacity;
  if (kind == CR__GLOBAL) body = sizeof none->global;
  if (kind == CR__STORAGE) body = sizeof none->storage;
  if (kind == CR__TENSOR) body = sizeof none->tensor;
  cr__value *value = cr__arena_alloc(arena, head + body);
  if (value) value->kind = kind;
  return value;
}

bool cr__value_push(cr__arena *arena, cr__value *list, cr__value *item) {
  if (list->count == list->capacity) {
    int64_t capacity = list->capacity ? list->capacity * 2 : 4;
    cr__value **items = cr__arena_alloc(arena, (size_t)capacity * sizeof(void *));
    if (!items) return false;
    if (list->count) memcpy(items, list->items, (size_t)list->count * sizeof(void *));
    list->items = items;
    list->capacity = capacity;
  }
  list->items[list->count++] = item;
  return true;
}

/* ---- operands ---- */

int cr__pickle_take(cr__pickle_bytes *b, uint64_t bytes, const uint8_t **out) {
  if (bytes > (uint64_t)(b->end - b->p)) return damaged(b, "it is truncated");
  *out = b->p;
  b->p += bytes;
  return CR_OK;
}

int cr__pickle_number(cr__pickle_bytes *b, int width, uint64_t *out) {
  const uint8_t *p = NULL;
  CR_TRY(cr__pickle_take(b, (uint64_t)width, &p));
  *out = 0;
  for (int i = 0; i < width; i++) *out |= (uint64_t)p[i] << 8 * i;
  return CR_OK;
}

int cr__pickle_line(cr__pickle_bytes *b, const char **text, size_t *bytes) {
  const uint8_t *close = memchr(b->p, '\n', (size_t)(b->end - b->p));
  if (!close) return damaged(b, "a line has no end");
  *text = (const char *)b->p;
  *bytes = (size_t)(close - b->p);
  b->p = close + 1;
  return CR_OK;
}

/* ---- values ---- */

static int whole(const cr__pickle_bytes *b, cr__value **out, enum cr__value_kind kind,
                 int64_t integer) {
  *out = cr__value_new(b->pickle->arena, kind);
  if (!*out) return cr__pickle_no_memory(b->pickle);
  (*out)->integer = integer;
  return CR_OK;
}

static int real(const cr__pickle_bytes *b, cr__value **out, double number) {
  *out = cr__value_new(b->pickle->arena, CR__REAL);
  if (!*out) return cr__pickle_no_memory(b->pickle);
  (*out)->real = number;
  return CR_OK;
}

static int string(const cr__pickle_bytes *b, cr__value **out, const char *text, size_t bytes) {
  *out = cr__value_new(b->pickle->arena, CR__STRING);
  if (!*out) return cr__pickle_no_memory(b->pickle);
  (*out)->text = text;
  (*out)->bytes = bytes;
  return CR_OK;
}

static int counted_string(cr__pickle_bytes *b, cr__value **out, int width) {
  uint64_t bytes = 0;
  const uint8_t *text = NULL;
  CR_TRY(cr__pickle_number(b, width, &bytes));
  CR_TRY(cr__pickle_take(b, bytes, &text));
  return string(b, out, (const char *)text, bytes);
}

static int line_string(cr__pickle_bytes *b, cr__value **out) {
  const char *text = NULL;
  size_t bytes = 0;
  CR_TRY(cr__pickle_line(b, &text, &bytes));
  return string(b, out, text, bytes);
}

/* Reads 'text' with Python's escapes; only \\ and the quote matter in names. */
static int quoted_string(cr__pickle_bytes *b, cr__value **out) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(cr__pickle_line(b, &line, &bytes));
  if (bytes < 2 || (line[0] != '\'' && line[0] != '"') || line[bytes - 1] != line[0])
    return damaged(b, "an invalid string");
  char *text = cr__arena_alloc(b->pickle->arena, bytes);
  if (!text) return cr__pickle_no_memory(b->pickle);
  size_t n = 0;
  for (size_t i = 1; i + 1 < bytes; i++) {
    if (line[i] == '\\' && i + 2 < bytes && (line[i + 1] == '\\' || line[i + 1] == line[0])) i++;
    text[n++] = line[i];
  }
  return string(b, out, text, n);
}

static int fixed_integer(cr__pickle_bytes *b, cr__value **out, int width) {
  uint64_t value = 0;
  CR_TRY(cr__pickle_number(b, width, &value));
  return whole(b, out, CR__INTEGER, width == 4 ? (int32_t)(uint32_t)value : (int64_t)value);
}

/* Two's complement of any length; a value that does not fit into an int64 becomes a float. */
static int long_integer(cr__pickle_bytes *b, cr__value **out, int width) {
  uint64_t bytes = 0;
  const uint8_t *p = NULL;
  CR_TRY(cr__pickle_number(b, width, &bytes));
  CR_TRY(cr__pickle_take(b, bytes, &p));
  if (bytes <= 8) {
    uint64_t value = bytes && p[bytes - 1] & 0x80 ? UINT64_MAX : 0;
    for (uint64_t i = bytes; i-- > 0;) value = value << 8 | p[i];
    return whole(b, out, CR__INTEGER, (int64_t)value);
  }
  double value = p[bytes - 1] & 0x80 ? -1 : 0;
  for (uint64_t i = bytes; i-- > 0 && isfinite(value);) value = value * 256 + p[i];
  return real(b, out, value);
}

/* Protocol 0 writes numbers as lines of text: I (00 and 01 are booleans), L, F. */
static int text_number(cr__pickle_bytes *b, cr__value **out, uint8_t opcode) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(cr__pickle_line(b, &line, &bytes));
  if (opcode == 'I' && bytes == 2 && line[0] == '0' && (line[1] == '0' || line[1] == '1'))
    return whole(b, out, CR__FLAG, line[1] - '0');
  char text[MAX_NUMBER_TEXT], *stop;
  if (bytes && line[bytes - 1] == 'L' && opcode == 'L') bytes--;
  if (bytes == 0 || bytes >= sizeof text) return damaged(b, "an invalid number");
  memcpy(text, line, bytes);
  text[bytes] = 0;
  if (opcode == 'F') {
    double number = strtod(text, &stop);
    return *stop ? damaged(b, "an invalid number") : real(b, out, number);
  }
  long long integer = strtoll(text, &stop, 10);
  return *stop ? damaged(b, "an invalid number") : whole(b, out, CR__INTEGER, integer);
}

static int binary_float(cr__pickle_bytes *b, cr__value **out) {
  const uint8_t *p = NULL;
  CR_TRY(cr__pickle_take(b, 8, &p));
  uint64_t bits = 0;
  double number;
  for (int i = 0; i < 8; i++) bits = bits << 8 | p[i];
  memcpy(&number, &bits, sizeof number);
  return real(b, out, number);
}

int cr__pickle_literal(cr__pickle_bytes *b, uint8_t opcode, cr__value **out) {
  switch (opcode) {
  case 'N': /* NONE */
    return whole(b, out, CR__NONE, 0);
  case 0x88: /* NEWTRUE */
    return whole(b, out, CR__FLAG, 1);
  case 0x89: /* NEWFALSE */
    return whole(b, out, CR__FLAG, 0);
  case 'J': /* BININT */
    return fixed_integer(b, out, 4);
  case 'K': /* BININT1 */
    return fixed_integer(b, out, 1);
  case 'M': /* BININT2 */
    return fixed_integer(b, out, 2);
  case 0x8a: /* LONG1 */
    return long_integer(b, out, 1);
  case 0x8b: /* LONG4 */
    return long_integer(b, out, 4);
  case 'I': /* INT */
  case 'L': /* LONG */
  case 'F': /* FLOAT */
    return text_number(b, out, opcode);
  case 'G': /* BINFLOAT */
    return binary_float(b, out);
  case 'S': /* STRING */
    return quoted_string(b, out);
  case 'V': /* UNICODE */
    return line_string(b, out);
  case 'T': /* BINSTRING */
  case 'X': /* BINUNICODE */
  case 'B': /* BINBYTES */
    return counted_string(b, out, 4);
  case 'U':  /* SHORT_BINSTRING */
  case 'C':  /* SHORT_BINBYTES */
  case 0x8c: /* SHORT_BINUNICODE */
    return counted_string(b, out, 1);
  case 0x8d: /* BINUNICODE8 */
  case 0x8e: /* BINBYTES8 */
  case 0x96: /* BYTEARRAY8 */
    return counted_string(b, out, 8);
  default:
    return CR_OK;
  }
}
