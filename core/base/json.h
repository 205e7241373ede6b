/* A small JSON reader for headers in files that nobody has checked.
 *
 * Invariants: it never reads past `end`, nesting is bounded, numbers are taken only where they fit;
 * after the first error every call fails and `error` says what was wrong, `p` where. */
#ifndef CR_JSON_H
#define CR_JSON_H

#include "base/buffer.h"

typedef struct cr__json {
  const char *start, *p, *end;
  const char *error;
} cr__json;

void cr__json_begin(cr__json *json, const char *text, size_t n);
/* The next character that is no white space, or 0 at the end; it is not taken. */
char cr__json_peek(cr__json *json);
/* Takes `c`, which must be next. */
bool cr__json_take(cr__json *json, char c);
/* Between the members of an array or object: true and the comma taken if another member follows,
 * false and `close` taken at its end (or after an error). *first begins as true. */
bool cr__json_more(cr__json *json, char close, bool *first);
/* A string, unescaped; a NUL stands behind its *n bytes. */
bool cr__json_string(cr__json *json, cr__arena *arena, char **out, size_t *n);
/* A whole number from 0 to INT64_MAX. */
bool cr__json_size(cr__json *json, int64_t *out);
/* Any value, left out. */
bool cr__json_skip(cr__json *json);
/* True if nothing but white space is left. */
bool cr__json_end(cr__json *json);

#endif
