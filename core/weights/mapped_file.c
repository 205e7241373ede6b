/* Mapping of files for the weights readers. */
#include "weights/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/internal.h"

int cr__mapped_open(cr__mapped **out, const char *path) {
  *out = NULL;
  /* Non-blocking, so that a named pipe does not hold us up before it is refused. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return cr__fail_errno(CR_EIO, "%s", path);
  struct stat st;
  if (fstat(fd, &st) != 0) {
    int rc = cr__fail_errno(CR_EIO, "%s", path);
    close(fd);
    return rc;
  }
  if (!S_ISREG(st.st_mode)) {
    close(fd);
    return cr__fail(CR_EIO, "%s: %s, not a file", path,
                    S_ISDIR(st.st_mode) ? "this is a folder" : "this is a device or pipe");
  }
  cr__mapped *map = calloc(1, sizeof *map);
  if (!map) {
    close(fd);
    return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  map->refs = 1;
  map->size = st.st_size;
  if (map->size > 0) {
    /* Writable but private: a careless write changes a page of ours instead of ending the process.
     * MAP_NORESERVE: such pages are rare, so a file larger than the memory may be mapped. */
    void *data =
        mmap(NULL, (size_t)map->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (data == MAP_FAILED) {
      int rc = cr__fail_errno(CR_EIO, "%s: cannot be mapped into memory", path);
      close(fd);
      free(map);
      return rc;
    }
    map->data = data;
  }
  close(fd);
  *out = map;
  return CR_OK;
}

void cr__mapped_retain(cr__mapped *map) { map->refs++; }

void cr__mapped_release(void *pointer) {
  cr__mapped *map = pointer;
  if (!map || --map->refs > 0) return;
  if (map->data) munmap(map->data, (size_t)map->size);
  free(map);
}
