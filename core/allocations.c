/* Counts allocations that fail inside FFmpeg. FFmpeg hides some of these failures and goes on with
 * different frames. So the program overrides the two functions with which libavutil allocates
 * memory: they call the C library and count each failure, and the media library reads the count.
 *
 * In a sanitized build the sanitizer overrides these functions, and nothing is counted. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

static void count(const void *caller) {
  Dl_info info;
  if (dladdr(caller, &info) && strstr(info.dli_fname, "libavutil")) cr__allocation_failed();
}

/* Returns the function that would be called without this override: the C library's, or that of a
 * preloaded allocator. */
static void *next_symbol(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

CR_EXPORT int posix_memalign(void **out, size_t alignment, size_t bytes) {
  typedef int allocate(void **, size_t, size_t);
  static CR_ATOMIC(allocate *) real;
  if (!real) real = (allocate *)next_symbol("posix_memalign");
  int rc = real(out, alignment, bytes);
  if (rc == ENOMEM) count(__builtin_return_address(0));
  return rc;
}

CR_EXPORT void *realloc(void *old, size_t bytes) {
  typedef void *reallocate(void *, size_t);
  static CR_ATOMIC(reallocate *) real;
  if (!real) real = (reallocate *)next_symbol("realloc");
  void *new = real(old, bytes);
  if (!new &&bytes > 0) count(__builtin_return_address(0));
  return new;
}
#endif
