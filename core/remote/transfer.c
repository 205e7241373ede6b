/* HTTP requests with libcurl.
 *
 * One thread runs all requests in one multi handle. It starts with the first request and ends with
 * the last; connections stay open in between. A request is a job: its result goes to the ring of
 * completions like those of other threads.
 *
 * Invariants: `lock` guards the list of requests that wait for the thread, and the flag whether the
 * thread runs. Only the thread uses the multi handle. A transfer has two owners, the caller and the
 * thread (until its job has ended), and the second one to release it frees it. A request that is
 * closed while it runs ends at the thread's next turn. No message contains keys or URLs. */
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/internal.h"

struct cr_transfer {
  cr_transfer *next; /* in the list of waiting requests, then in the thread's list */
  CURL *easy;
  struct curl_slist *headers;
  int64_t job;
  atomic_int owners;
  atomic_bool closed;
  int body_fd; /* the file that has the request's body */
  int64_t body_offset, body_bytes, body_sent;
  int out_fd;
  int64_t out_offset, limit;
  int32_t out_status;
  bool discarded; /* the response's status is not the file's, so its body is discarded */
  int32_t wrong;  /* CR_E* of a callback, whose message is in `sentence` */
  atomic_llong received;
  cr__text head, answer;
  char sentence[160];
  char error[CURL_ERROR_SIZE]; /* libcurl's message */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static cr_transfer *waiting;
static bool thread_runs, thread_made, stopping;
static pthread_t thread;
static CURLM *multi;
static const char *certificates; /* NULL: libcurl's default */

static void release_transfer(cr_transfer *t) {
  if (atomic_fetch_sub(&t->owners, 1) > 1) return;
  if (t->easy) curl_easy_cleanup(t->easy);
  curl_slist_free_all(t->headers);
  if (t->body_fd >= 0) close(t->body_fd);
  if (t->out_fd >= 0) close(t->out_fd);
  cr__text_free(&t->head);
  cr__text_free(&t->answer);
  free(t);
}

/* ---- callbacks on the thread ---------------------------------------------------------------- */

static size_t take_header(char *bytes, size_t size, size_t n, void *arg) {
  cr_transfer *t = arg;
  /* If a request gets several responses (100 Continue), the last one counts. */
  if (size * n > 5 && memcmp(bytes, "HTTP/", 5) == 0) t->head.size = 0;
  cr__text_add(&t->head, bytes, size * n);
  return t->head.failed || t->head.size > (1 << 20) ? 0 : size * n;
}

static bool to_file(cr_transfer *t, const char *bytes, size_t n) {
  while (n > 0) {
    ssize_t written = pwrite(t->out_fd, bytes, n, (off_t)t->out_offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      t->wrong = CR_EIO;
      snprintf(t->sentence, sizeof t->sentence, "the file cannot be written: %s", strerror(errno));
      return false;
    }
    bytes += written;
    n -= (size_t)written;
    t->out_offset += written;
  }
  return true;
}

static size_t take_body(char *bytes, size_t size, size_t n, void *arg) {
  cr_transfer *t = arg;
  size_t count = size * n;
  long status = 0;
  if (t->out_fd >= 0) curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
  bool fits = t->out_fd >= 0 && status == t->out_status;
  if (fits) {
    if (!to_file(t, bytes, count)) return 0;
  } else if (t->out_fd >= 0 && status >= 200 && status < 300) {
    t->discarded = true;
    return 0;
  } else if ((int64_t)(t->answer.size + count) > t->limit) {
    t->wrong = CR_EFORMAT;
    snprintf(t->sentence, sizeof t->sentence, "the response has more than %lld bytes",
             (long long)t->limit);
    return 0;
  } else {
    cr__text_add(&t->answer, bytes, count);
    if (t->answer.failed) return 0;
  }
  if (fits || t->out_fd < 0) atomic_fetch_add(&t->received, (long long)count);
  return count;
}

static size_t give_body(char *bytes, size_t size, size_t n, void *arg) {
  cr_transfer *t = arg;
  int64_t left = t->body_bytes - t->body_sent, count = (int64_t)(size * n);
  if (count > left) count = left;
  if (count == 0) return 0;
  ssize_t got;
  do got = pread(t->body_fd, bytes, (size_t)count, (off_t)(t->body_offset + t->body_sent));
  while (got < 0 && errno == EINTR);
  if (got <= 0) {
    t->wrong = CR_EIO;
    snprintf(t->sentence, sizeof t->sentence, "the file cannot be read: %s",
             got < 0 ? strerror(errno) : "it was truncated");
    return CURL_READFUNC_ABORT;
  }
  t->body_sent += got;
  return (size_t)got;
}

/* A request that is sent again on another connection starts from its beginning. */
static int rewind_body(void *arg, curl_off_t offset, int origin) {
  cr_transfer *t = arg;
  if (origin != SEEK_SET || offset < 0 || offset > t->body_bytes) return CURL_SEEKFUNC_FAIL;
  t->body_sent = offset;
  return CURL_SEEKFUNC_OK;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void finish(cr_transfer *t, CURLcode code) {
  long status = 0;
  curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
  curl_multi_remove_handle(multi, t->easy);
  if (code != CURLE_OK && !t->error[0])
    snprintf(t->error, sizeof t->error, "%s", curl_easy_strerror(code));
  if (t->wrong)
    cr__job_finish(t->job, t->wrong, t->sentence);
  else if (code == CURLE_OK || t->discarded)
    cr__job_finish(t->job, (int32_t)status, "");
  else
    cr__job_finish(t->job, 0, "");
  release_transfer(t);
}

/* Moves waiting requests to the thread's list, and removes closed ones from it. */
static void take_waiting(cr_transfer **carried) {
  pthread_mutex_lock(&lock);
  cr_transfer *t = waiting;
  waiting = NULL;
  bool all = stopping;
  pthread_mutex_unlock(&lock);
  while (t) {
    cr_transfer *next = t->next;
    curl_multi_add_handle(multi, t->easy);
    t->next = *carried;
    *carried = t;
    t = next;
  }
  while (*carried) {
    t = *carried;
    if (!all && !atomic_load(&t->closed)) {
      carried = &t->next;
      continue;
    }
    *carried = t->next;
    t->wrong = CR_EINTERRUPT;
    snprintf(t->sentence, sizeof t->sentence, "the request was cancelled");
    finish(t, CURLE_OK);
  }
}

static void take_finished(cr_transfer **carried) {
  int left;
  const CURLMsg *message;
  while ((message = curl_multi_info_read(multi, &left))) {
    if (message->msg != CURLMSG_DONE) continue;
    CURLcode code = message->data.result;
    for (cr_transfer **at = carried; *at; at = &(*at)->next) {
      cr_transfer *t = *at;
      if (t->easy != message->easy_handle) continue;
      *at = t->next;
      finish(t, code);
      break;
    }
  }
}

static void *carry(void *unused) {
  cr_transfer *carried = NULL;
  for (;;) {
    int running;
    take_waiting(&carried);
    curl_multi_perform(multi, &running);
    take_finished(&carried);
    pthread_mutex_lock(&lock);
    bool ends = !carried && !waiting;
    if (ends) thread_runs = false;
    pthread_mutex_unlock(&lock);
    if (ends) return unused;
    curl_multi_poll(multi, NULL, 0, 1000, NULL);
  }
}

/* Runs before the process ends, since no thread may use OpenSSL while it cleans up. */
static void stop(void) {
  pthread_mutex_lock(&lock);
  stopping = true;
  bool made = thread_made;
  pthread_mutex_unlock(&lock);
  if (!made) return;
  curl_multi_wakeup(multi);
  pthread_join(thread, NULL);
}

/* Finds the distribution's CA certificates, since our tarball runs on any distribution. */
static const char *find_certificates(void) {
  static const char *const places[] = {"/etc/ssl/certs/ca-certificates.crt",
                                       "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
                                       "/etc/ssl/cert.pem"};
  const char *own = getenv("SSL_CERT_FILE");
  if (own && *own) return own;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++)
    if (access(places[i], R_OK) == 0) return places[i];
  return NULL;
}

static void begin(void) {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0) return;
  multi = curl_multi_init();
  certificates = find_certificates();
  atexit(stop);
}

/* ---- starting -------------------------------------------------------------------------------- */

static const char *text(const char *s) { return s ? s : ""; }

static bool add_headers(cr_transfer *t, const cr_transfer_options *o) {
  for (int32_t i = 0; i < o->header_count; i++) {
    struct curl_slist *longer = curl_slist_append(t->headers, o->headers[i]);
    if (!longer) return false;
    t->headers = longer;
  }
  return true;
}

static int open_files(cr_transfer *t, const cr_transfer_options *o) {
  if (*text(o->body_path)) {
    t->body_fd = open(o->body_path, O_RDONLY | O_CLOEXEC);
    if (t->body_fd < 0) return cr__fail_errno(CR_EIO, "%s", o->body_path);
  }
  if (*text(o->out_path)) {
    t->out_fd = open(o->out_path, O_WRONLY | O_CLOEXEC);
    if (t->out_fd < 0) return cr__fail_errno(CR_EIO, "%s", o->out_path);
  }
  return CR_OK;
}

/* libcurl copies the strings that it is given. */
static bool set_options(cr_transfer *t, const cr_transfer_options *o) {
  CURL *e = t->easy;
  CURLcode failed = 0;
#define SET(option, value) failed = failed ? failed : curl_easy_setopt(e, option, value)
  SET(CURLOPT_URL, text(o->url));
  SET(CURLOPT_PROTOCOLS_STR, "http,https");
  SET(CURLOPT_PATH_AS_IS, 1L); /* a key may contain "..", which is signed unchanged */
  SET(CURLOPT_NOSIGNAL, 1L);
  SET(CURLOPT_ERRORBUFFER, t->error);
  SET(CURLOPT_HTTPHEADER, t->headers);
  SET(CURLOPT_HEADERFUNCTION, take_header);
  SET(CURLOPT_HEADERDATA, t);
  SET(CURLOPT_WRITEFUNCTION, take_body);
  SET(CURLOPT_WRITEDATA, t);
  SET(CURLOPT_BUFFERSIZE, 256L << 10);
  SET(CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
  SET(CURLOPT_TCP_KEEPALIVE, 1L);
  SET(CURLOPT_EXPECT_100_TIMEOUT_MS, 200L); /* (omitting the header would invalidate signatures) */
  SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(o->connect_seconds * 1000));
  if (o->idle_seconds > 0) {
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_LOW_SPEED_TIME, (long)(o->idle_seconds + 0.999));
  }
  if (o->direct) SET(CURLOPT_NOPROXY, "*");
  if (certificates) SET(CURLOPT_CAINFO, certificates);
  if (*text(o->sign)) {
    SET(CURLOPT_AWS_SIGV4, o->sign);
    SET(CURLOPT_USERNAME, text(o->user));
    SET(CURLOPT_PASSWORD, text(o->secret));
  }
  if (o->body_bytes >= 0 && t->body_fd < 0) {
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)o->body_bytes);
    SET(CURLOPT_COPYPOSTFIELDS, o->body_bytes > 0 ? o->body : "");
  } else if (o->body_bytes >= 0) {
    SET(CURLOPT_UPLOAD, 1L);
    SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)o->body_bytes);
    SET(CURLOPT_READFUNCTION, give_body);
    SET(CURLOPT_READDATA, t);
    SET(CURLOPT_SEEKFUNCTION, rewind_body);
    SET(CURLOPT_SEEKDATA, t);
  } else if (strcmp(text(o->method), "HEAD") == 0) {
    SET(CURLOPT_NOBODY, 1L);
  }
  SET(CURLOPT_CUSTOMREQUEST, text(o->method));
#undef SET
  return failed == 0;
}

static int prepare(cr_transfer *t, const cr_transfer_options *o) {
  CR_TRY(open_files(t, o));
  t->easy = curl_easy_init();
  if (!t->easy || !add_headers(t, o) || !set_options(t, o))
    return cr__fail(CR_EINVAL, "transfer: libcurl does not accept this request");
  t->job = cr__job_new();
  return t->job < 0 ? (int)t->job : CR_OK;
}

/* Hands a transfer to the thread, and starts the thread if it does not run. */
static int hand_over(cr_transfer *t) {
  pthread_mutex_lock(&lock);
  int problem = 0;
  if (!thread_runs) {
    if (thread_made) pthread_join(thread, NULL);
    problem = pthread_create(&thread, NULL, carry, NULL);
    thread_made = thread_runs = problem == 0;
  }
  if (problem == 0) {
    t->next = waiting;
    waiting = t;
  }
  pthread_mutex_unlock(&lock);
  return problem;
}

CR_EXPORT int64_t cr_transfer_start(cr_transfer **out, const cr_transfer_options *o) {
  *out = NULL;
  pthread_once(&once, begin);
  if (!multi) return cr__fail(CR_EIO, "transfer: libcurl cannot be started");
  cr_transfer *t = calloc(1, sizeof *t);
  if (!t) return cr__fail(CR_ENOMEM, "transfer: out of memory");
  atomic_init(&t->owners, 2);
  t->body_fd = t->out_fd = -1;
  t->body_offset = o->body_offset;
  t->body_bytes = o->body_bytes;
  t->out_offset = o->out_offset;
  t->out_status = o->out_status;
  t->limit = o->limit;
  int rc = prepare(t, o);
  if (rc < 0) {
    atomic_store(&t->owners, 1); /* the thread does not get it */
    release_transfer(t);
    return rc;
  }
  int64_t job = t->job;
  *out = t;
  int problem = hand_over(t);
  if (problem == 0) {
    curl_multi_wakeup(multi);
  } else {
    char sentence[128];
    snprintf(sentence, sizeof sentence, "the thread cannot be started: %s", strerror(problem));
    cr__job_finish(job, CR_EIO, sentence);
    release_transfer(t);
  }
  return job;
}

CR_EXPORT int64_t cr_transfer_received(const cr_transfer *t) { return atomic_load(&t->received); }

CR_EXPORT const char *cr_transfer_problem(const cr_transfer *t) { return t->error; }

static const char *text_of(const cr__text *held, int64_t *bytes) {
  *bytes = (int64_t)held->size;
  return held->data ? held->data : "";
}

CR_EXPORT const char *cr_transfer_headers(const cr_transfer *t, int64_t *bytes) {
  return text_of(&t->head, bytes);
}

CR_EXPORT const char *cr_transfer_body(const cr_transfer *t, int64_t *bytes) {
  return text_of(&t->answer, bytes);
}

CR_EXPORT void cr_transfer_close(cr_transfer *t) {
  if (!t) return;
  atomic_store(&t->closed, true);
  curl_multi_wakeup(multi);
  release_transfer(t);
}
