/* How many threads CPU operations use: CR_THREADS, else the processors this process may run on. */
#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#include "internal.h"

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
