/* A small JSON reader for headers of untrusted files.
 *
 * Invariants: it never reads past `end`, and nesting is bounded. An integer that does not fit is an
 * error. After the first error every call fails: `error` says what is wrong, and `p` is the
 * position. */
#ifndef CR_JSON_H
#define CR_JSON_H

#include "base/buffer.h"

typedef struct cr__json {
  const char *start, *p, *end;
  const char *error;
} cr__json;

void cr__json_begin(cr__json *json, const char *text, size_t n);
/* Returns the next character that is not white space, without taking it; 0 at the end. */
char cr__json_peek(cr__json *json);
/* Takes `c`, which must be the next character. */
bool cr__json_take(cr__json *json, char c);
/* Iterates over the members of an array or object, with *first true at the start. Returns true,
 * with the comma taken, if another member follows; false, with `close` taken, at the end or after
 * an error. */
bool cr__json_more(cr__json *json, char close, bool *first);
/* Takes a string and unescapes it: *n bytes and a NUL. */
bool cr__json_string(cr__json *json, cr__arena *arena, char **out, size_t *n);
/* Takes an integer from 0 to INT64_MAX. */
bool cr__json_size(cr__json *json, int64_t *out);
/* Skips any value. */
bool cr__json_skip(cr__json *json);
/* Returns true if only white space is left. */
bool cr__json_end(cr__json *json);

#endif
