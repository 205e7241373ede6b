/* The event loop: one libuv loop, jobs on other threads, and the ring of their completions.
 *
 * Invariants: the thread that runs Lua starts jobs and drains the ring; other threads call only
 * cr__job_finish and the wake-up. The ring has room for every job that was started and not drained
 * yet, so finishing a job never allocates. The wake-up handle keeps the loop alive exactly while
 * jobs are pending. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/internal.h"

/* Called only by lua/cr/loop/, which declares it itself. */
int32_t cr__loop_handles(void);

static uv_loop_t loop;
static uv_async_t wake;
static bool loop_made;
static atomic_bool wake_ready;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cr_completion
    *ring; /* `room` slots; `count` of them are in use, from the oldest at `first` on */
static int64_t room, first, count;
static int64_t pending;
static int64_t last_job;

/* The wake-up needs no callback: Lua drains the ring after every turn of the loop. */
static void on_wake(uv_async_t *handle) { (void)handle; }

static void no_work(uv_work_t *request) { (void)request; }

/* libuv starts the threads of its pool with the first job, and aborts the process if it cannot. So
 * the pool is started here, after a check that its threads can be started. */
static int start_pool(void) {
  const char *size = getenv("UV_THREADPOOL_SIZE");
  int threads = size ? atoi(size) : 4;
  threads = threads < 1 ? 1 : threads > 1024 ? 1024 : threads;
  if (cr__threads_startable(threads) < threads) return UV_ENOMEM;
  static uv_work_t first;
  int rc = uv_queue_work(&loop, &first, no_work, NULL);
  if (rc == 0) uv_run(&loop, UV_RUN_DEFAULT);
  return rc;
}

CR_EXPORT void *cr_loop(void) {
  if (loop_made) return &loop;
  int rc = uv_loop_init(&loop);
  if (rc == 0 && (rc = start_pool()) != 0) uv_loop_close(&loop);
  if (rc == 0 && (rc = uv_async_init(&loop, &wake, on_wake)) != 0) uv_loop_close(&loop);
  if (rc != 0) {
    cr__fail(CR_EIO, "loop: cannot create the event loop: %s", uv_strerror(rc));
    return NULL;
  }
  uv_unref((uv_handle_t *)&wake);
  loop_made = true;
  atomic_store(&wake_ready, true);
  return &loop;
}

/* Async-signal-safe like uv_async_send, since the signal handler calls it. */
void cr__loop_wake(void) {
  if (atomic_load(&wake_ready)) uv_async_send(&wake);
}

static bool grow_ring(void) {
  int64_t grown_room = room ? 2 * room : 16;
  cr_completion *grown = malloc((size_t)grown_room * sizeof *grown);
  if (!grown) return false;
  for (int64_t i = 0; room && i < count; i++) grown[i] = ring[(first + i) % room];
  free(ring);
  ring = grown;
  room = grown_room;
  first = 0;
  return true;
}

CR_EXPORT int64_t cr__job_new(void) {
  if (!cr_loop()) return CR_EIO;
  pthread_mutex_lock(&lock);
  if (pending == room && !grow_ring()) {
    pthread_mutex_unlock(&lock);
    return cr__fail(CR_ENOMEM, "loop: no memory for another job");
  }
  int64_t job = ++last_job;
  bool was_idle = pending++ == 0;
  pthread_mutex_unlock(&lock);
  if (was_idle) uv_ref((uv_handle_t *)&wake);
  return job;
}

CR_EXPORT void cr__job_finish(int64_t job, int32_t status, const char *message) {
  pthread_mutex_lock(&lock);
  if (count < room) {
    cr_completion *c = &ring[(first + count++) % room];
    c->job = job;
    c->status = status;
    snprintf(c->message, sizeof c->message, "%s", message ? message : "");
  }
  pthread_mutex_unlock(&lock);
  cr__loop_wake();
}

typedef struct work_item {
  uv_work_t request;
  int64_t job;
  int (*work)(void *arg);
  void *arg;
} work_item;

static void do_work(uv_work_t *request) {
  work_item *item = request->data;
  int rc = item->work(item->arg);
  cr__job_finish(item->job, rc, rc < 0 ? cr_last_error() : "");
}

static void after_work(uv_work_t *request, int status) {
  work_item *item = request->data;
  if (status == UV_ECANCELED) cr__job_finish(item->job, CR_EINTERRUPT, "the job was cancelled");
  free(item);
}

CR_EXPORT int64_t cr__job_run(int (*work)(void *arg), void *arg) {
  work_item *item = malloc(sizeof *item);
  if (!item) return cr__fail(CR_ENOMEM, "loop: no memory for another job");
  int64_t job = cr__job_new();
  if (job < 0) {
    free(item);
    return job;
  }
  item->request.data = item;
  item->job = job;
  item->work = work;
  item->arg = arg;
  int rc = uv_queue_work(&loop, &item->request, do_work, after_work);
  if (rc == 0) return job;
  free(item);
  pthread_mutex_lock(&lock);
  bool idle = --pending == 0;
  pthread_mutex_unlock(&lock);
  if (idle) uv_unref((uv_handle_t *)&wake);
  return cr__fail(CR_EIO, "loop: cannot start a job: %s", uv_strerror(rc));
}

CR_EXPORT int cr_loop_drain(cr_completion *out, int32_t n) {
  pthread_mutex_lock(&lock);
  int taken = 0;
  while (taken < n && count > 0) {
    out[taken++] = ring[first];
    first = (first + 1) % room;
    count--;
  }
  pending -= taken;
  bool idle = taken > 0 && pending == 0;
  pthread_mutex_unlock(&lock);
  if (idle) uv_unref((uv_handle_t *)&wake);
  return taken;
}

CR_EXPORT int64_t cr_loop_pending(void) {
  pthread_mutex_lock(&lock);
  int64_t n = pending;
  pthread_mutex_unlock(&lock);
  return n;
}

static void count_handle(uv_handle_t *handle, void *arg) {
  if (handle != (uv_handle_t *)&wake && !uv_is_closing(handle)) ++*(int32_t *)arg;
}

/* Counts the open handles on the loop except the core's own, so luv's. Tests use it, because luv's
 * uv.walk fails on a loop with a handle that luv did not make. */
CR_EXPORT int32_t cr__loop_handles(void) {
  int32_t n = 0;
  if (cr_loop()) uv_walk(&loop, count_handle, &n);
  return n;
}
