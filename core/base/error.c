/* Error messages: each thread has one sentence, which a failing call writes and cr_last_error()
 * returns. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/internal.h"

enum { MESSAGE_BYTES = 1000, SHAPE_BUFFERS = 8, SHAPE_BYTES = 96 };

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local int last_code;

CR_EXPORT const char *cr_last_error(void) { return message; }

CR_EXPORT int cr__last_code(void) { return last_code; }

CR_EXPORT const char *cr_version(void) { return "0.9.0"; }

/* The arguments may point into the old message, so the new one is built in another buffer. */
static int set_message(int code, const char *suffix, const char *format, va_list args) {
  char text[MESSAGE_BYTES];
  int n = vsnprintf(text, sizeof text, format, args);
  if (suffix && n >= 0 && n < (int)sizeof text)
    snprintf(text + n, sizeof text - (size_t)n, ": %s", suffix);
  memcpy(message, text, sizeof text);
  last_code = code;
  return code;
}

CR_EXPORT int cr__fail(int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  set_message(code, NULL, format, args);
  va_end(args);
  return code;
}

CR_EXPORT int cr__fail_errno(int code, const char *format, ...) {
  int number = errno;
  char buffer[128];
  const char *reason =
      strerror_r(number, buffer, sizeof buffer); /* GNU's version, which returns the text */
  va_list args;
  va_start(args, format);
  set_message(code, reason, format, args);
  va_end(args);
  return code;
}

static CR_ATOMIC(int64_t) failed_allocations;

CR_EXPORT void cr__allocation_failed(void) { failed_allocations++; }

CR_EXPORT int64_t cr__allocations_failed(void) { return failed_allocations; }

CR_EXPORT const char *cr__shape(const cr_tensor *t) {
  static _Thread_local char buffers[SHAPE_BUFFERS][SHAPE_BYTES];
  static _Thread_local unsigned next;
  char *text = buffers[next++ % SHAPE_BUFFERS];
  size_t used = 0;
  used += (size_t)snprintf(text, SHAPE_BYTES, "[");
  for (int32_t i = 0; i < t->rank && i < CR_MAX_RANK; i++)
    used += (size_t)snprintf(text + used, SHAPE_BYTES - used, i ? " %d" : "%d", t->shape[i]);
  snprintf(text + used, SHAPE_BYTES - used, "]");
  return text;
}

CR_EXPORT int cr__index_out_of_range(const char *name, const char *shape, int32_t dim, int32_t size,
                                     int64_t number) {
  return cr__fail(
      CR_EINVAL,
      "%s: index %lld is out of range: dimension %d of %s has the indices 1 to %d and -%d to -1",
      name, (long long)number, dim + 1, shape, size, size);
}
