/* The arena, the growing string and the UTF-8 functions that the file readers of core/ share. */
#include "base/buffer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

enum { BLOCK_BYTES = 64 * 1024, SHOWN_BYTES = 120, SHOWN_BUFFERS = 8 };

struct cr__arena_block {
  struct cr__arena_block *next;
  size_t used, size;
  _Alignas(16) char data[];
};

void *cr__arena_alloc(cr__arena *arena, size_t bytes) {
  if (bytes > SIZE_MAX / 2) {
    cr__fail(CR_ENOMEM, "out of memory: %zu bytes for a file's directory", bytes);
    return NULL;
  }
  bytes = (bytes + 15) & ~(size_t)15;
  struct cr__arena_block *block = arena->head;
  if (!block || block->size - block->used < bytes) {
    size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
    if (arena->limit && (size > arena->limit || arena->used > arena->limit - size)) {
      arena->exhausted = true;
      cr__fail(CR_EFORMAT, "its directory needs more memory than a file of its size may take");
      return NULL;
    }
    block = calloc(1, sizeof *block + size);
    if (!block) {
      cr__fail(CR_ENOMEM, "out of memory: %zu bytes for a file's directory", size);
      return NULL;
    }
    block->size = size;
    arena->used += size;
    /* A large block is linked behind the head, so that the head's free space stays in use. */
    if (arena->head && bytes > BLOCK_BYTES) {
      block->next = arena->head->next;
      arena->head->next = block;
    } else {
      block->next = arena->head;
      arena->head = block;
    }
  }
  void *result = block->data + block->used;
  block->used += bytes;
  return result;
}

char *cr__arena_string(cr__arena *arena, const char *text, size_t n) {
  if (n == SIZE_MAX) return NULL;
  char *copy = cr__arena_alloc(arena, n + 1);
  if (copy && n) memcpy(copy, text, n);
  return copy;
}

void cr__arena_free(cr__arena *arena) {
  while (arena->head) {
    struct cr__arena_block *next = arena->head->next;
    free(arena->head);
    arena->head = next;
  }
  arena->used = 0;
}

CR_EXPORT void cr__text_add(cr__text *text, const char *bytes, size_t n) {
  if (text->failed) return;
  if (n >= SIZE_MAX / 4 - text->size) {
    text->failed = true;
    return;
  }
  if (text->size + n + 1 > text->capacity) {
    size_t capacity = text->capacity ? text->capacity : 256;
    while (capacity < text->size + n + 1) capacity *= 2;
    char *data = realloc(text->data, capacity);
    if (!data) {
      text->failed = true;
      return;
    }
    text->data = data;
    text->capacity = capacity;
  }
  if (n) memcpy(text->data + text->size, bytes, n);
  text->size += n;
  text->data[text->size] = 0;
}

void cr__text_puts(cr__text *text, const char *string) {
  cr__text_add(text, string, strlen(string));
}

void cr__text_json_string(cr__text *text, const char *bytes, size_t n) {
  bool utf8 = cr__utf8_valid(bytes, n);
  cr__text_add(text, "\"", 1);
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)bytes[i];
    char escaped[8];
    if (c == '"' || c == '\\') {
      escaped[0] = '\\';
      escaped[1] = (char)c;
      cr__text_add(text, escaped, 2);
    } else if (c == '\n') {
      cr__text_add(text, "\\n", 2);
    } else if (c == '\t') {
      cr__text_add(text, "\\t", 2);
    } else if (c < 0x20 || c == 0x7f || (c > 0x7f && !utf8)) {
      snprintf(escaped, sizeof escaped, "\\u%04x", c);
      cr__text_add(text, escaped, 6);
    } else {
      cr__text_add(text, bytes + i, 1);
    }
  }
  cr__text_add(text, "\"", 1);
}

void cr__text_json_number(cr__text *text, double value) {
  char number[40];
  if (!isfinite(value)) {
    cr__text_add(text, "null", 4);
    return;
  }
  for (int digits = 15; digits <= 17; digits++) {
    snprintf(number, sizeof number, "%.*g", digits, value);
    if (strtod(number, NULL) == value) break;
  }
  cr__text_puts(text, number);
}

CR_EXPORT void cr__text_free(cr__text *text) {
  free(text->data);
  memset(text, 0, sizeof *text);
}

int cr__utf8_length(const char *p, const char *end) {
  const unsigned char *s = (const unsigned char *)p;
  ptrdiff_t left = end - p;
  if (left < 1) return 0;
  if (s[0] < 0x80) return 1;
  int n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
          : (s[0] & 0xf0) == 0xe0       ? 3
          : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                        : 0;
  if (!n || left < n) return 0;
  for (int i = 1; i < n; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  if (s[0] == 0xe0 && s[1] < 0xa0) return 0;
  if (s[0] == 0xed && s[1] >= 0xa0) return 0;
  if (s[0] == 0xf0 && s[1] < 0x90) return 0;
  if (s[0] == 0xf4 && s[1] >= 0x90) return 0;
  return n;
}

bool cr__utf8_valid(const char *bytes, size_t n) {
  const char *end = bytes + n;
  while (bytes < end) {
    int length = cr__utf8_length(bytes, end);
    if (!length) return false;
    bytes += length;
  }
  return true;
}

/* A control character of terminals, or one that changes the direction of text or ends a line:
 * U+0000 to U+001F, U+007F to U+009F, and Unicode's directional marks and line separators. */
static bool obeyed(uint32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || (c >= 0x200e && c <= 0x200f) ||
         (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* The code point of a sequence that cr__utf8_length measured. */
static uint32_t utf8_code(const char *p, int length) {
  const unsigned char *s = (const unsigned char *)p;
  uint32_t c = length == 1 ? s[0] : s[0] & (0x7fu >> length);
  for (int i = 1; i < length; i++) c = c << 6 | (s[i] & 0x3fu);
  return c;
}

CR_EXPORT const char *cr_printable(const char *bytes, size_t n) {
  static _Thread_local char buffers[SHOWN_BUFFERS][SHOWN_BYTES + 4];
  static _Thread_local unsigned next;
  char *out = buffers[next++ % SHOWN_BUFFERS], escape[12];
  size_t used = 0;
  const char *end = bytes + n;
  while (bytes < end) {
    int length = cr__utf8_length(bytes, end);
    uint32_t code = length ? utf8_code(bytes, length) : (unsigned char)*bytes;
    const char *shown = bytes;
    size_t size = (size_t)length;
    if (!length || obeyed(code)) {
      if (code == '\n' || code == '\t')
        snprintf(escape, sizeof escape, "\\%c", code == '\n' ? 'n' : 't');
      else
        snprintf(escape, sizeof escape, code < 256 ? "\\x%02x" : "\\u%04x", code);
      shown = escape;
      size = strlen(escape);
    }
    if (used + size > SHOWN_BYTES) {
      memcpy(out + used, "...", 3);
      used += 3;
      break;
    }
    memcpy(out + used, shown, size);
    used += size;
    bytes += length ? length : 1;
  }
  out[used] = 0;
  return out;
}
