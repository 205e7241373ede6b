/* Mapping files for the readers of weights. */
#include "weights/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/internal.h"

/* The mappings that the signal handler can name. One that found no free slot is not named in its
 * message. */
enum { SLOTS = 1024 };
static _Atomic(cr__mapped *) live[SLOTS];
static struct sigaction before;

static pthread_mutex_t changed_lock = PTHREAD_MUTEX_INITIALIZER;
static char *changed_path; /* of a mapping that was released */

static void say(const char *text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return; /* there is no way left to report it */
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
  (void)context;
  for (int i = 0; i < SLOTS; i++) {
    const cr__mapped *map = live[i];
    uintptr_t at = (uintptr_t)info->si_addr, first = map ? (uintptr_t)map->data : 0;
    if (!map || at < first || at - first >= (uintptr_t)map->size) continue;
    cr__cleanup_files();
    say("crescent: ");
    say(map->path);
    say(": the file was truncated, or could not be read any more, while it was in use\n");
    _exit(1);
  }
  /* The fault is not in a mapped file: it occurs again under the previous action. */
  sigaction(number, &before, NULL);
}

static void catch_bus_errors(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

static void enlist(cr__mapped *map) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, catch_bus_errors);
  for (int i = 0; i < SLOTS; i++) {
    cr__mapped *none = NULL;
    if (atomic_compare_exchange_strong(&live[i], &none, map)) return;
  }
}

/* Whether the contents of the mapped file have changed. Another file under the same name is not a
 * change. */
static bool has_changed(const cr__mapped *map) {
  struct stat now;
  const struct stat *then = &map->at_open;
  if (!map->absolute || stat(map->absolute, &now) != 0 || now.st_dev != then->st_dev ||
      now.st_ino != then->st_ino)
    return false;
  return now.st_size != then->st_size || now.st_mtim.tv_sec != then->st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != then->st_mtim.tv_nsec;
}

CR_EXPORT const char *cr_weights_changed(void) {
  static _Thread_local char path[4096];
  const char *found = NULL;
  pthread_mutex_lock(&changed_lock);
  if (changed_path) {
    snprintf(path, sizeof path, "%s", changed_path);
    free(changed_path);
    changed_path = NULL;
    found = path;
  }
  pthread_mutex_unlock(&changed_lock);
  for (int i = 0; i < SLOTS && !found; i++) {
    const cr__mapped *map = live[i];
    if (!map || !has_changed(map)) continue;
    snprintf(path, sizeof path, "%s", map->path);
    found = path;
  }
  return found;
}

int cr__mapped_open(cr__mapped **out, const char *path) {
  *out = NULL;
  /* Non-blocking, so that opening a named pipe does not wait for a writer before it is refused. */
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
  map->at_open = st;
  map->path = strdup(path);
  map->absolute = realpath(path, NULL);
  if (!map->path) {
    close(fd);
    free(map->absolute);
    free(map);
    return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  if (map->size > 0) {
    /* Writable but private: an accidental write changes a private page instead of ending the
     * process. Such pages are rare, so MAP_NORESERVE lets a file larger than the memory be
     * mapped. */
    void *data =
        mmap(NULL, (size_t)map->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (data == MAP_FAILED) {
      int rc = cr__fail_errno(CR_EIO, "%s: cannot be mapped into memory", path);
      close(fd);
      free(map->path);
      free(map->absolute);
      free(map);
      return rc;
    }
    map->data = data;
    enlist(map);
  }
  close(fd);
  *out = map;
  return CR_OK;
}

void cr__mapped_retain(cr__mapped *map) { map->refs++; }

void cr__mapped_release(void *pointer) {
  cr__mapped *map = pointer;
  if (!map || --map->refs > 0) return;
  if (has_changed(map)) {
    pthread_mutex_lock(&changed_lock);
    if (!changed_path) changed_path = strdup(map->path);
    pthread_mutex_unlock(&changed_lock);
  }
  for (int i = 0; i < SLOTS; i++) {
    cr__mapped *mine = map;
    if (atomic_compare_exchange_strong(&live[i], &mine, NULL)) break;
  }
  if (map->data) munmap(map->data, (size_t)map->size);
  free(map->path);
  free(map->absolute);
  free(map);
}
