/* Small helpers of the file readers: memory that is freed in one go, and a growing text.
 *
 * Invariants: arena memory lives until cr__arena_free; a text that once failed to grow stays
 * `failed` and swallows what follows, so that callers check once, at the end. */
#ifndef CR_BUFFER_H
#define CR_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cr__arena {
  struct cr__arena_block *head;
  size_t used;
  size_t limit;   /* of `used`; 0: none */
  bool exhausted; /* something was refused for the limit */
} cr__arena;

/* 16-byte aligned, zeroed; NULL (message set) if there is no memory. */
void *cr__arena_alloc(cr__arena *arena, size_t bytes);
/* A copy of n bytes with a NUL behind it. */
char *cr__arena_string(cr__arena *arena, const char *text, size_t n);
void cr__arena_free(cr__arena *arena);

typedef struct cr__text {
  char *data; /* always NUL-terminated once something was appended */
  size_t size, capacity;
  bool failed;
} cr__text;

void cr__text_add(cr__text *text, const char *bytes, size_t n);
void cr__text_puts(cr__text *text, const char *string);
/* A JSON string with its quotes; bytes that are not UTF-8 are read as Latin-1. */
void cr__text_json_string(cr__text *text, const char *bytes, size_t n);
/* A JSON number that reads back exactly; null for what JSON cannot say (nan, infinities). */
void cr__text_json_number(cr__text *text, double value);
void cr__text_free(cr__text *text);

/* Length of the UTF-8 sequence at p (1..4), 0 if it is none (overlong forms and surrogates too). */
int cr__utf8_length(const char *p, const char *end);
bool cr__utf8_valid(const char *bytes, size_t n);

/* Little-endian numbers at any address. */
static inline uint16_t cr__le16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t cr__le32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint64_t cr__le64(const uint8_t *p) {
  return (uint64_t)cr__le32(p) | (uint64_t)cr__le32(p + 4) << 32;
}

#endif
