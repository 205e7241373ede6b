/* How many threads CPU operations use: CR_THREADS, else the processors this process may run on; and
 * copying with all of them. */
#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

static int32_t count;

static int32_t available(void) {
  const char *text = getenv("CR_THREADS");
  if (text && *text) {
    char *end;
    long n = strtol(text, &end, 10);
    if (*end == 0 && n >= 1 && n <= 1024) return (int32_t)n;
  }
  cpu_set_t set;
  int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return n < 1 ? 1 : n;
}

CR_EXPORT int32_t cr_set_threads(int32_t n) {
  count = n <= 0 ? available() : n > 1024 ? 1024 : n;
  omp_set_num_threads(count);
  return count;
}

CR_EXPORT int32_t cr_threads(void) { return count ? count : cr_set_threads(0); }

/* A thread copies some 4 GB a second out of a mapped file, whose pages it must be given one by one;
 * a card takes ten times as much. */
CR_EXPORT void cr__copy_bytes(void *out, const void *x, int64_t bytes) {
  enum { CHUNK = 256 * 1024 };
  if (bytes <= 2 * CHUNK || cr_threads() == 1) {
    memcpy(out, x, (size_t)bytes);
    return;
  }
#pragma omp parallel for schedule(dynamic)
  for (int64_t at = 0; at < bytes; at += CHUNK)
    memcpy((char *)out + at, (const char *)x + at,
           (size_t)(bytes - at < CHUNK ? bytes - at : CHUNK));
}
