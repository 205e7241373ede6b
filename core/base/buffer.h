/* What the file readers share: an arena, whose memory is freed all at once, and a growing string.
 *
 * Invariants: an arena's memory lives until cr__arena_free. A string that once failed to grow stays
 * `failed` and ignores further bytes, so that callers check once, at the end. */
#ifndef CR_BUFFER_H
#define CR_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cr__arena {
  struct cr__arena_block *head;
  size_t used;
  size_t limit;   /* of `used`; 0: no limit */
  bool exhausted; /* an allocation was refused because of the limit */
} cr__arena;

/* Returns zeroed memory, aligned to 16 bytes; NULL with the message set if there is none. */
void *cr__arena_alloc(cr__arena *arena, size_t bytes);
/* Copies n bytes and appends a NUL. */
char *cr__arena_string(cr__arena *arena, const char *text, size_t n);
void cr__arena_free(cr__arena *arena);

typedef struct cr__text {
  char *data; /* NUL-terminated once something was appended */
  size_t size, capacity;
  bool failed;
} cr__text;

void cr__text_add(cr__text *text, const char *bytes, size_t n);
void cr__text_puts(cr__text *text, const char *string);
/* Appends a JSON string with its quotes. Bytes that are not UTF-8 are read as Latin-1. */
void cr__text_json_string(cr__text *text, const char *bytes, size_t n);
/* Appends a JSON number that reads back as the same value; null for nan and infinities, which JSON
 * cannot express. */
void cr__text_json_number(cr__text *text, double value);
void cr__text_free(cr__text *text);

/* Returns the length of the UTF-8 sequence at p, 1 to 4; 0 if it is invalid, which includes
 * overlong forms and surrogates. */
int cr__utf8_length(const char *p, const char *end);
bool cr__utf8_valid(const char *bytes, size_t n);

/* Little-endian integers at unaligned addresses. */
static inline uint16_t cr__le16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t cr__le32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint64_t cr__le64(const uint8_t *p) {
  return (uint64_t)cr__le32(p) | (uint64_t)cr__le32(p + 4) << 32;
}

#endif
