/* Ctrl-C: a flag that every operation checks on entry, a watchdog for operations that run too long
 * to check it, and the list of files to delete when the process is killed by an interruption.
 *
 * Invariants: the signal handler touches only lock-free atomics, a semaphore and the loop's
 * wake-up, all of which are async-signal-safe. The watchdog compares the number of clears with the
 * number at the time of the signal, so only a clear after the signal cancels it. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/internal.h"

static atomic_int interrupted;
static atomic_uint clears;

static sem_t signalled;
static atomic_int last_signal;
static atomic_uint clears_at_signal;
static atomic_int grace;
static atomic_bool watching;

static pthread_mutex_t cleanup_lock = PTHREAD_MUTEX_INITIALIZER;
static char **cleanup_paths;
static size_t cleanup_count, cleanup_room;

static _Atomic(const char *) message;

CR_EXPORT void cr_interrupt(void) {
  atomic_store(&interrupted, 1);
  cr__loop_wake();
}

CR_EXPORT int cr_interrupted(void) { return atomic_load(&interrupted); }

CR_EXPORT void cr_interrupt_clear(void) {
  atomic_store(&interrupted, 0);
  atomic_fetch_add(&clears, 1);
}

int cr__check_interrupt(const char *name) {
  if (!atomic_load_explicit(&interrupted, memory_order_relaxed)) return 0;
  cr__fail(CR_EINTERRUPT, "%s: interrupted", name);
  return 1;
}

CR_EXPORT void cr__interrupt_message(const char *line) { atomic_store(&message, line); }

CR_EXPORT int cr_cleanup_add(const char *path) {
  /* Store the absolute path, since the process may change its folder before the file is deleted. */
  char *copy = NULL;
  if (path[0] != '/') {
    char *folder = getcwd(NULL, 0);
    size_t room = folder ? strlen(folder) + strlen(path) + 2 : 0;
    if (folder && (copy = malloc(room))) {
      strcpy(copy, folder);
      strcat(copy, "/");
      strcat(copy, path);
    }
    free(folder);
  } else {
    copy = strdup(path);
  }
  if (!copy) return cr__fail(CR_ENOMEM, "cleanup: out of memory while registering %s", path);
  pthread_mutex_lock(&cleanup_lock);
  if (cleanup_count == cleanup_room) {
    size_t room = cleanup_room ? 2 * cleanup_room : 8;
    char **grown = realloc(cleanup_paths, room * sizeof *grown);
    if (!grown) {
      pthread_mutex_unlock(&cleanup_lock);
      free(copy);
      return cr__fail(CR_ENOMEM, "cleanup: out of memory while registering %s", path);
    }
    cleanup_paths = grown;
    cleanup_room = room;
  }
  cleanup_paths[cleanup_count++] = copy;
  pthread_mutex_unlock(&cleanup_lock);
  return CR_OK;
}

/* Whether `noted`, which is absolute, is `path`, which may be relative to the folder that was
 * current when it was added. */
static bool same_path(const char *noted, const char *path) {
  size_t a = strlen(noted), b = strlen(path);
  if (path[0] == '/') return strcmp(noted, path) == 0;
  return a > b && noted[a - b - 1] == '/' && strcmp(noted + a - b, path) == 0;
}

CR_EXPORT int cr_cleanup_remove(const char *path) {
  int found = 0;
  pthread_mutex_lock(&cleanup_lock);
  for (size_t i = cleanup_count; i-- > 0 && !found;) {
    if (!same_path(cleanup_paths[i], path)) continue;
    free(cleanup_paths[i]);
    cleanup_paths[i] = cleanup_paths[--cleanup_count];
    found = 1;
  }
  pthread_mutex_unlock(&cleanup_lock);
  return found;
}

static void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
  nanosleep(&t, NULL);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

CR_EXPORT void cr__cleanup_files(void) {
  /* If a thread died while it held the lock, the process must still end. */
  bool locked = false;
  for (int i = 0; i < 50 && !locked; i++)
    if (!(locked = pthread_mutex_trylock(&cleanup_lock) == 0)) sleep_ms(2);
  if (!locked) return;
  for (size_t i = 0; i < cleanup_count; i++) unlink(cleanup_paths[i]);
  pthread_mutex_unlock(&cleanup_lock);
}

static void end_process(int number) {
  cr__cleanup_files();
  const char *line = atomic_load(&message);
  if (line && write(STDERR_FILENO, line, strlen(line)) < 0) line = NULL;
  _exit(128 + number);
}

static void *watch(void *unused) {
  (void)unused;
  for (;;) {
    while (sem_wait(&signalled) != 0) {
    }
    unsigned seen = atomic_load(&clears_at_signal);
    int ms = atomic_load(&grace);
    if (ms <= 0) continue;
    /* Measured with the clock, since a sleep of 20 ms may take many times that on a busy
     * machine. */
    double end = seconds() + 1e-3 * ms;
    while (seconds() < end && atomic_load(&clears) == seen) sleep_ms(ms < 20 ? ms : 20);
    if (atomic_load(&clears) == seen) end_process(atomic_load(&last_signal));
  }
  return NULL;
}

static void on_signal(int number) {
  int kept = errno;
  atomic_store(&last_signal, number);
  atomic_store(&clears_at_signal, atomic_load(&clears));
  cr_interrupt();
  if (atomic_load(&watching)) sem_post(&signalled);
  errno = kept;
}

CR_EXPORT int cr_interrupt_install(int32_t grace_ms) {
  atomic_store(&grace, grace_ms);
  if (grace_ms > 0 && !atomic_load(&watching)) {
    if (sem_init(&signalled, 0, 0) != 0)
      return cr__fail_errno(CR_EIO, "interrupt: cannot create a semaphore");
    /* The watchdog's thread must not receive the signals itself. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
      errno = rc;
      return cr__fail_errno(CR_EIO, "interrupt: cannot start the watchdog thread");
    }
    pthread_detach(thread);
    atomic_store(&watching, true);
  }
  /* Without SA_RESTART, so that a blocking read returns and the program notices the signal. */
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGINT, &action, NULL) != 0 || sigaction(SIGTERM, &action, NULL) != 0)
    return cr__fail_errno(CR_EIO, "interrupt: cannot catch signals");
  return CR_OK;
}
