/* SHA-256 of files. libcrypto is loaded on first use, so that no other program start pays for it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/internal.h"

enum { DIGEST_BYTES = 32, CHUNK_BYTES = 1 << 20 };

static struct {
  void *(*context_new)(void);
  void (*context_free)(void *);
  const void *(*sha256)(void);
  int (*begin)(void *, const void *, void *);
  int (*update)(void *, const void *, size_t);
  int (*end)(void *, unsigned char *, unsigned int *);
  bool loaded;
} crypto;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
  void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcrypto.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) return;
  /* ISO C has no cast from object to function pointers; POSIX asks for this form. */
  *(void **)&crypto.context_new = dlsym(library, "EVP_MD_CTX_new");
  *(void **)&crypto.context_free = dlsym(library, "EVP_MD_CTX_free");
  *(void **)&crypto.sha256 = dlsym(library, "EVP_sha256");
  *(void **)&crypto.begin = dlsym(library, "EVP_DigestInit_ex");
  *(void **)&crypto.update = dlsym(library, "EVP_DigestUpdate");
  *(void **)&crypto.end = dlsym(library, "EVP_DigestFinal_ex");
  crypto.loaded = crypto.context_new && crypto.context_free && crypto.sha256 && crypto.begin &&
                  crypto.update && crypto.end;
}

static int digest(int fd, const char *path, void *context, void *chunk, char *hex) {
  ssize_t n;
  while ((n = read(fd, chunk, CHUNK_BYTES)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return cr__fail_errno(CR_EIO, "%s", path);
    crypto.update(context, chunk, (size_t)n);
  }
  unsigned char bytes[64];
  unsigned int count = 0;
  if (!crypto.end(context, bytes, &count) || count != DIGEST_BYTES)
    return cr__fail(CR_EIO, "%s: libcrypto could not compute the checksum", path);
  for (int i = 0; i < DIGEST_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
  return CR_OK;
}

CR_EXPORT int cr_sha256_file(const char *path, char *hex) {
  pthread_once(&once, load);
  if (!crypto.loaded)
    return cr__fail(CR_EUNSUPPORTED, "%s: libcrypto.so.3 is missing (apt install libssl3)", path);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return cr__fail_errno(CR_EIO, "%s", path);
  void *context = crypto.context_new(), *chunk = malloc(CHUNK_BYTES);
  int rc;
  if (!context || !chunk || !crypto.begin(context, crypto.sha256(), NULL))
    rc = cr__fail(CR_ENOMEM, "%s: out of memory", path);
  else
    rc = digest(fd, path, context, chunk, hex);
  crypto.context_free(context);
  free(chunk);
  close(fd);
  return rc;
}
