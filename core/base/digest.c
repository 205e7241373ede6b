/* Incremental SHA-256, MD5 and CRC-32, of memory and of files. libcrypto is loaded on first use, so
 * that it does not delay the start of programs that need no digest; libdeflate, whose CRC-32 is
 * several times faster than zlib's, is used if it exists. A thread of the loop may read a file: the
 * digest then has two owners, and the second one to release it frees it. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/internal.h"

enum { MOST_DIGEST_BYTES = 64, MOST_HEX = 64, CHUNK_BYTES = 1 << 20 };

struct cr_digest {
  void *context; /* libcrypto's; NULL for a CRC-32 */
  uint32_t crc;
  atomic_int owners;
};

static struct {
  void *(*context_new)(void);
  void (*context_free)(void *);
  const void *(*by_name)(const char *);
  int (*begin)(void *, const void *, void *);
  int (*update)(void *, const void *, size_t);
  int (*end)(void *, unsigned char *, unsigned int *);
  bool loaded;
} crypto;
static pthread_once_t once = PTHREAD_ONCE_INIT, crc_once = PTHREAD_ONCE_INIT;
static uint32_t (*crc32_of)(uint32_t, const void *, size_t);

static uint32_t zlib_crc32(uint32_t crc, const void *bytes, size_t n) {
  return (uint32_t)crc32_z(crc, bytes, n);
}

static void find_crc32(void) {
  void *library = dlopen("libdeflate.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library) *(void **)&crc32_of = dlsym(library, "libdeflate_crc32");
  if (!crc32_of) crc32_of = zlib_crc32;
}

static void load(void) {
  void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcrypto.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) return;
  /* ISO C has no cast from an object pointer to a function pointer; POSIX recommends this form. */
  *(void **)&crypto.context_new = dlsym(library, "EVP_MD_CTX_new");
  *(void **)&crypto.context_free = dlsym(library, "EVP_MD_CTX_free");
  *(void **)&crypto.by_name = dlsym(library, "EVP_get_digestbyname");
  *(void **)&crypto.begin = dlsym(library, "EVP_DigestInit_ex");
  *(void **)&crypto.update = dlsym(library, "EVP_DigestUpdate");
  *(void **)&crypto.end = dlsym(library, "EVP_DigestFinal_ex");
  crypto.loaded = crypto.context_new && crypto.context_free && crypto.by_name && crypto.begin &&
                  crypto.update && crypto.end;
}

static int open_crc32(cr_digest **out) {
  pthread_once(&crc_once, find_crc32);
  cr_digest *d = calloc(1, sizeof *d);
  if (!d) return cr__fail(CR_ENOMEM, "digest: out of memory");
  atomic_init(&d->owners, 1);
  *out = d;
  return CR_OK;
}

CR_EXPORT int cr_digest_open(cr_digest **out, const char *algorithm) {
  *out = NULL;
  if (strcmp(algorithm, "CRC32") == 0) return open_crc32(out);
  pthread_once(&once, load);
  if (!crypto.loaded)
    return cr__fail(CR_EUNSUPPORTED, "libcrypto.so.3 is missing (apt install libssl3)");
  const void *kind = crypto.by_name(algorithm);
  if (!kind) return cr__fail(CR_EINVAL, "digest: there is no %s", algorithm);
  cr_digest *d = calloc(1, sizeof *d);
  if (d) atomic_init(&d->owners, 1);
  if (!d || !(d->context = crypto.context_new()) || !crypto.begin(d->context, kind, NULL)) {
    cr_digest_close(d);
    return cr__fail(CR_ENOMEM, "digest: out of memory");
  }
  *out = d;
  return CR_OK;
}

CR_EXPORT int cr_digest_add(cr_digest *d, const void *bytes, int64_t n) {
  if (!d->context) {
    d->crc = crc32_of(d->crc, bytes, (size_t)n);
    return CR_OK;
  }
  if (crypto.update(d->context, bytes, (size_t)n)) return CR_OK;
  return cr__fail(CR_EIO, "digest: libcrypto could not add bytes");
}

static int64_t add_from(cr_digest *d, int fd, const char *path, int64_t offset, int64_t bytes,
                        void *chunk) {
  int64_t done = 0;
  while (done < bytes) {
    int64_t wanted = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
    ssize_t n = pread(fd, chunk, (size_t)wanted, (off_t)(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return cr__fail_errno(CR_EIO, "%s", path);
    if (n == 0) break;
    CR_TRY(cr_digest_add(d, chunk, n));
    done += n;
  }
  return done;
}

CR_EXPORT int64_t cr_digest_add_file(cr_digest *d, const char *path, int64_t offset, int64_t n) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return cr__fail_errno(CR_EIO, "%s", path);
  void *chunk = malloc(CHUNK_BYTES);
  int64_t done = chunk ? add_from(d, fd, path, offset, n, chunk)
                       : cr__fail(CR_ENOMEM, "%s: out of memory", path);
  free(chunk);
  close(fd);
  return done;
}

CR_EXPORT int cr_digest_end(cr_digest *d, char *hex) {
  unsigned char bytes[MOST_DIGEST_BYTES];
  unsigned int count = 0;
  if (!d->context) {
    snprintf(hex, 9, "%08x", d->crc);
    return CR_OK;
  }
  if (!crypto.end(d->context, bytes, &count) || 2 * count > MOST_HEX)
    return cr__fail(CR_EIO, "digest: libcrypto could not compute the checksum");
  for (unsigned int i = 0; i < count; i++) snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
  return CR_OK;
}

CR_EXPORT void cr_digest_close(cr_digest *d) {
  if (!d || atomic_fetch_sub(&d->owners, 1) > 1) return;
  if (d->context) crypto.context_free(d->context);
  free(d);
}

typedef struct file_part {
  cr_digest *digest;
  int64_t offset, bytes;
  char path[];
} file_part;

static int add_part(void *arg) {
  file_part *part = arg;
  int64_t done = cr_digest_add_file(part->digest, part->path, part->offset, part->bytes);
  cr_digest_close(part->digest);
  free(part);
  return done < 0 ? (int)done : CR_OK;
}

CR_EXPORT int64_t cr_digest_start_file(cr_digest *d, const char *path, int64_t offset, int64_t n) {
  size_t length = strlen(path) + 1;
  file_part *part = malloc(sizeof *part + length);
  if (!part) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  *part = (file_part){.digest = d, .offset = offset, .bytes = n};
  memcpy(part->path, path, length);
  atomic_fetch_add(&d->owners, 1);
  int64_t job = cr__job_run(add_part, part);
  if (job < 0) {
    cr_digest_close(d);
    free(part);
  }
  return job;
}

CR_EXPORT int cr_sha256_file(const char *path, char *hex) {
  cr_digest *d;
  int rc = cr_digest_open(&d, "SHA256");
  if (!d) {
    char reason[256];
    snprintf(reason, sizeof reason, "%s", cr_last_error());
    return cr__fail(rc, "%s: %s", path, reason);
  }
  int64_t added = cr_digest_add_file(d, path, 0, INT64_MAX);
  rc = added < 0 ? (int)added : cr_digest_end(d, hex);
  cr_digest_close(d);
  return rc;
}
