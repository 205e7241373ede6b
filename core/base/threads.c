/* The number of threads that CPU operations use (CR_THREADS, else the processors this process may
 * run on, and no more than can be started), and a memcpy on all of them. */
#include <omp.h>
#include <pthread.h>
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

static void *wait_for(void *gate) {
  pthread_mutex_lock(gate);
  pthread_mutex_unlock(gate);
  return NULL;
}

int32_t cr__threads_startable(int32_t n) {
  pthread_t *threads = malloc((size_t)n * sizeof *threads);
  if (!threads) return 0;
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&gate);
  int32_t started = 0;
  while (started < n && pthread_create(&threads[started], NULL, wait_for, &gate) == 0) started++;
  pthread_mutex_unlock(&gate);
  for (int32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
  pthread_mutex_destroy(&gate);
  free(threads);
  return started;
}

CR_EXPORT int32_t cr_set_threads(int32_t n) {
  count = n <= 0 ? available() : n > 1024 ? 1024 : n;
  if (count > 1) count = 1 + cr__threads_startable(count - 1);
  omp_set_num_threads(count);
  return count;
}

CR_EXPORT int32_t cr_threads(void) { return count ? count : cr_set_threads(0); }

/* One thread copies about 4 GB/s from a mapped file, since each page must be faulted in; a GPU can
 * take ten times as much. */
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
