/* Files that appear completely or not at all: they are written under a temporary dot name in the
 * folder of the final one, synced and renamed.
 *
 * Invariants: the temporary file is new (O_EXCL), registered with cr_cleanup_add, and locked by
 * flock as long as its process writes it. An existing file keeps its mode, a symbolic link stays a
 * link, and a target that is not a regular file is written to, not replaced. */
#include "base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_LINKS = 40, COPY_BYTES = 1 << 16 };

static const char *name_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* ---- resolving a path ---- */

/* Returns the number in "/dev/stdout" or "/dev/fd/5", or -1. The descriptor itself must be used:
 * opening such a name again would start at the beginning of a file that the process is writing to,
 * and fails for a socket. */
static int descriptor_of(const char *path) {
  static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
  if (strcmp(path, "/dev/stdout") == 0) return STDOUT_FILENO;
  if (strcmp(path, "/dev/stderr") == 0) return STDERR_FILENO;
  for (size_t i = 0; i < 2; i++) {
    size_t n = strlen(folders[i]);
    if (strncmp(path, folders[i], n) != 0 || !path[n]) continue;
    char *end;
    long number = strtol(path + n, &end, 10);
    if (!*end && number >= 0 && number <= INT_MAX) return (int)number;
  }
  return -1;
}

/* Follows the symbolic links of the path's last part. The result is malloc'ed and need not exist;
 * NULL with errno set on failure. */
static char *follow(const char *path) {
  char *now = strdup(path);
  for (int links = 0; now; links++) {
    char text[PATH_MAX];
    ssize_t n = readlink(now, text, sizeof text - 1);
    if (n < 0) return now;
    text[n] = 0;
    size_t folder = text[0] == '/' ? 0 : (size_t)(name_of(now) - now);
    char *next = links < MOST_LINKS ? malloc(folder + (size_t)n + 1) : NULL;
    if (next) {
      memcpy(next, now, folder);
      strcpy(next + folder, text);
    } else if (links >= MOST_LINKS) {
      errno = ELOOP;
    }
    free(now);
    now = next;
  }
  return NULL;
}

static int refuse(const cr__output *o) {
  if (errno == EINTR && cr_interrupted())
    return cr__fail(CR_EINTERRUPT, "%s: interrupted", o->path);
  return cr__fail_errno(CR_EIO, "%s: cannot be written", o->path);
}

static int open_through(cr__output *o, int descriptor) {
  if (descriptor >= 0) {
    int flags = fcntl(descriptor, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY)
      errno = EBADF;
    else if (flags >= 0)
      o->through = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  } else {
    do { /* opening a pipe waits for its reader */
      o->through = open(o->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    } while (o->through < 0 && errno == EINTR && !cr_interrupted());
  }
  return o->through < 0 ? refuse(o) : CR_OK;
}

/* ---- the temporary file ---- */

/* Returns "DIR/.NAME.tmp-PID-N" in the folder of `path`, malloc'ed. A long name is truncated
 * between UTF-8 characters, so that the whole fits into NAME_MAX. */
static char *temp_name(const char *path) {
  static _Atomic unsigned counter;
  char mark[64];
  snprintf(mark, sizeof mark, CR__TEMP_MARK "%ld-%u", (long)getpid(), counter++);
  const char *name = name_of(path);
  size_t size = strlen(path) + sizeof mark + 2, length = strlen(name);
  size_t most = NAME_MAX - 1 - strlen(mark);
  if (length > most)
    for (length = most; length > 0 && (name[length] & 0xc0) == 0x80;) length--;
  char *temp = malloc(size);
  if (temp) snprintf(temp, size, "%.*s.%.*s%s", (int)(name - path), path, (int)length, name, mark);
  return temp;
}

/* Creates the file and locks it. Between the two, a sweep of another process may delete it as a
 * dead process's file, so the loop starts again if no link to it is left. */
static int create(cr__output *o, const char *beside) {
  for (;;) {
    struct stat info;
    o->temp = temp_name(beside);
    if (!o->temp) return cr__fail(CR_ENOMEM, "%s: out of memory", o->path);
    o->fd = open(o->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (o->fd >= 0) {
      while (flock(o->fd, LOCK_EX) != 0 &&
             errno == EINTR) { /* without flock nothing is swept either */
      }
      if (fstat(o->fd, &info) == 0 && info.st_nlink > 0) return cr_cleanup_add(o->temp);
      close(o->fd);
      o->fd = -1;
    } else if (errno != EEXIST) {
      int rc = refuse(o);
      free(o->temp);
      o->temp = NULL;
      return rc;
    }
    free(o->temp);
    o->temp = NULL;
  }
}

/* A script that calls os.exit runs no other cleanup. */
static void clean_at_exit(void) {
  static atomic_flag registered = ATOMIC_FLAG_INIT;
  if (!atomic_flag_test_and_set(&registered)) atexit(cr__cleanup_files);
}

static int open_beside(cr__output *o, const struct stat *existing) {
  char *target = follow(o->path);
  if (!target) return refuse(o);
  int rc = CR_OK;
  if (!*name_of(target)) {
    errno = EISDIR;
    rc = refuse(o);
  } else {
    cr__output_sweep(target);
    rc = create(o, target);
  }
  if (rc < 0) {
    free(target);
    return rc;
  }
  o->target = target;
  if (existing) { /* fails without the right to give files away */
    if (fchown(o->fd, existing->st_uid, existing->st_gid) != 0) errno = 0;
    if (fchmod(o->fd, existing->st_mode & 0777) != 0) return refuse(o);
  }
  return CR_OK;
}

static int open_any(cr__output *o) {
  struct stat info;
  int descriptor = descriptor_of(o->path);
  bool there = stat(o->path, &info) == 0;
  if (there && S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    return refuse(o);
  }
  if (descriptor < 0 && !(there && !S_ISREG(info.st_mode)))
    return open_beside(o, there ? &info : NULL);
  CR_TRY(open_through(o, descriptor));
  const char *folder = getenv("TMPDIR");
  char beside[PATH_MAX];
  snprintf(beside, sizeof beside, "%s/crescent", folder && *folder ? folder : "/tmp");
  cr__output_sweep(beside);
  return create(o, beside);
}

CR_EXPORT int cr__output_open(cr__output *output, const char *path) {
  *output = (cr__output){.path = path, .fd = -1, .through = -1};
  clean_at_exit();
  int rc = open_any(output);
  if (rc < 0) cr__output_abandon(output);
  return rc;
}

/* ---- writing ---- */

static int write_all(int fd, const char *data, size_t bytes) {
  while (bytes) {
    /* Linux writes at most 2 GiB at a time. */
    ssize_t n = write(fd, data, bytes < ((size_t)1 << 30) ? bytes : (size_t)1 << 30);
    if (n < 0 && errno == EINTR && !cr_interrupted()) continue;
    if (n < 0) return -1;
    data += n;
    bytes -= (size_t)n;
  }
  return 0;
}

CR_EXPORT int cr__output_write(cr__output *output, const void *data, size_t bytes) {
  if (write_all(output->fd, data, bytes) == 0) return CR_OK;
  int rc = refuse(output);
  cr__output_abandon(output);
  return rc;
}

int cr__output_tensor(cr__output *output, const cr_tensor *t) {
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(t, t->dtype, &temp);
  int rc;
  if (!dense) {
    cr__output_abandon(output);
    rc = CR_ENOMEM;
  } else {
    rc = cr__output_write(output, cr__ptr(dense),
                          (size_t)cr_numel(dense) * (size_t)cr_dtype_size(dense->dtype));
  }
  cr_free(&temp);
  return rc;
}

/* A file system that cannot sync counts as success. */
static int sync_file(int fd) {
  int rc;
  do rc = fsync(fd);
  while (rc != 0 && errno == EINTR);
  return rc != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS ? -1 : 0;
}

/* The rename is durable once the folder is synced. A folder that may not be read cannot be
 * synced. */
static int sync_folder(const char *path) {
  size_t length = (size_t)(name_of(path) - path);
  char *folder = length ? strndup(path, length) : strdup(".");
  if (!folder) return -1;
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  free(folder);
  if (fd < 0) return 0;
  int rc = sync_file(fd), number = errno;
  close(fd);
  errno = number;
  return rc;
}

static int put_in_place(const cr__output *o) {
  /* The lock is released last: until then no other process takes the file for a dead process's. */
  if (sync_file(o->fd) != 0 || rename(o->temp, o->target) != 0) return -1;
  return sync_folder(o->target);
}

static int copy_through(const cr__output *o) {
  char data[COPY_BYTES];
  off_t at = 0;
  for (;;) {
    ssize_t n = pread(o->fd, data, sizeof data, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return (int)n;
    if (write_all(o->through, data, (size_t)n) != 0) return -1;
    at += n;
  }
}

CR_EXPORT int cr__output_finish(cr__output *output) {
  int done = output->target ? put_in_place(output) : copy_through(output);
  int rc = done != 0 ? refuse(output) : CR_OK;
  cr__output_abandon(output); /* after the rename there is no temporary file to delete */
  return rc;
}

CR_EXPORT void cr__output_abandon(cr__output *output) {
  if (output->temp) {
    unlink(output->temp);
    cr_cleanup_remove(output->temp);
  }
  if (output->fd >= 0) close(output->fd);
  if (output->through >= 0) close(output->through);
  free(output->temp);
  free(output->target);
  output->temp = output->target = NULL;
  output->fd = output->through = -1;
}

/* ---- public functions ---- */

CR_EXPORT int cr_file_write(const char *path, const void *data, int64_t bytes) {
  cr__output output;
  CR_TRY(cr__output_open(&output, path));
  CR_TRY(cr__output_write(&output, data, (size_t)bytes));
  return cr__output_finish(&output);
}

CR_EXPORT int cr_file_same(const char *a, const char *b) {
  struct stat one, other;
  if (stat(a, &one) != 0 || stat(b, &other) != 0) return 0;
  return S_ISREG(one.st_mode) && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}
