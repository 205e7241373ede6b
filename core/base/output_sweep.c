/* Deletes temporary files of processes that died (SIGKILL, a power failure), when the next process
 * writes to their folder.
 *
 * Invariant: a file is deleted only while its lock is held. Its writer holds that lock as long as
 * it lives, so no file of a live process is deleted, on this machine, another one or in another
 * container. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/output.h"

enum { REMEMBERED = 16 };

/* The folders that this process has swept: once is enough. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
  dev_t device;
  ino_t inode;
} swept[REMEMBERED];
static unsigned swept_count;

static bool swept_before(const struct stat *folder) {
  pthread_mutex_lock(&lock);
  unsigned there = swept_count < REMEMBERED ? swept_count : REMEMBERED;
  bool found = false;
  for (unsigned i = 0; i < there; i++)
    found = found || (swept[i].device == folder->st_dev && swept[i].inode == folder->st_ino);
  if (!found) {
    swept[swept_count % REMEMBERED].device = folder->st_dev;
    swept[swept_count++ % REMEMBERED].inode = folder->st_ino;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

/* ".NAME.tmp-PID-N" */
static bool is_temporary(const char *name) {
  const char *mark = NULL;
  for (const char *p = name; (p = strstr(p, CR__TEMP_MARK)); p++) mark = p;
  if (name[0] != '.' || !mark) return false;
  mark += strlen(CR__TEMP_MARK);
  size_t process = strspn(mark, "0123456789"), number = 0;
  if (process && mark[process] == '-') number = strspn(mark + process + 1, "0123456789");
  return number && !mark[process + 1 + number];
}

static void sweep_file(int folder, const char *name) {
  int fd = openat(folder, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return;
  struct stat info;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
    unlinkat(folder, name, 0);
  close(fd);
}

void cr__output_sweep(const char *path) {
  const char *slash = strrchr(path, '/');
  char *name = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
  DIR *folder = name ? opendir(name) : NULL;
  free(name);
  if (!folder) return;
  struct stat info;
  if (fstat(dirfd(folder), &info) == 0 && !swept_before(&info))
    for (struct dirent *entry; (entry = readdir(folder));)
      if (is_temporary(entry->d_name)) sweep_file(dirfd(folder), entry->d_name);
  closedir(folder);
}
