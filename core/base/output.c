/* Files that appear whole or not at all: written under a temporary dot name, then renamed. */
#include "base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

CR_EXPORT char *cr__temp_name(const char *path) {
  static _Atomic unsigned counter;
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  size_t size = strlen(path) + 64;
  char *temp = malloc(size);
  if (temp)
    snprintf(temp, size, "%.*s.%s.tmp-%ld-%u", (int)(name - path), path, name, (long)getpid(),
             counter++);
  return temp;
}

int cr__output_open(cr__output *output, const char *path) {
  output->path = path;
  output->fd = -1;
  output->temp = cr__temp_name(path);
  if (!output->temp) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  output->fd = open(output->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (output->fd < 0) {
    int rc = cr__fail_errno(CR_EIO, "%s: cannot be written", path);
    free(output->temp);
    output->temp = NULL;
    return rc;
  }
  cr_cleanup_add(output->temp);
  return CR_OK;
}

int cr__output_write(cr__output *output, const void *data, size_t bytes) {
  const char *p = data;
  while (bytes) {
    /* Linux writes at most 2 GiB at a time. */
    ssize_t n = write(output->fd, p, bytes < ((size_t)1 << 30) ? bytes : (size_t)1 << 30);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      int rc = cr__fail_errno(CR_EIO, "%s: writing failed", output->path);
      cr__output_abandon(output);
      return rc;
    }
    p += n;
    bytes -= (size_t)n;
  }
  return CR_OK;
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

int cr__output_finish(cr__output *output) {
  int fd = output->fd, rc = CR_OK;
  output->fd = -1;
  if (close(fd) != 0 || rename(output->temp, output->path) != 0) {
    rc = cr__fail_errno(CR_EIO, "%s: writing failed", output->path);
    unlink(output->temp);
  }
  cr_cleanup_remove(output->temp);
  free(output->temp);
  output->temp = NULL;
  return rc;
}

void cr__output_abandon(cr__output *output) {
  if (!output->temp) return;
  if (output->fd >= 0) close(output->fd);
  unlink(output->temp);
  cr_cleanup_remove(output->temp);
  free(output->temp);
  output->temp = NULL;
}
