/* A library for LD_PRELOAD that lets one thing fail (tests/faults_test.lua), so that the rest can
 * be seen to cope.
 *
 * FAULT_PLACES=FILE  writes a number for every place that allocates: the chain of calls inside our
 * libraries and libav's that leads to malloc and its relatives, the same from run to run.
 * FAULT_PLACE=N      the first allocation of that place fails.
 * FAULT_CALL=NAME:N  the Nth such call (write, read, fsync or rename) on a path below FAULT_FOLDER
 * fails with FAULT_ERROR, an errno, or moves half of its bytes where that is 0. FAULT_COUNTS=FILE
 * writes how many calls of each name there were below FAULT_FOLDER. FAULT_DONE=FILE    gets the
 * calls that led to the fault once it has happened.
 * FAULT_SIGNAL=N     the signal N comes when a Lua file is loaded whose path ends in
 * FAULT_LOADS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <unwind.h>

enum { PROGRAM = 1, DEPTH = 12, MOST_PLACES = 1 << 16, MOST_MODULES = 1024, NAMES = 4 };

static const char *const ours[] = {
    "libcrescent.so", "crescent_media.so", "crescent_http.so", "libwslay", "libav", "libsw"};
static const char *const names[NAMES] = {"write", "read", "fsync", "rename"};

static _Thread_local int inside; /* what happens in here is not counted */
static int ready;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t places[MOST_PLACES];
static int place_count;
static uint64_t wanted_place;
static int recording, happened;

static const char *folder;
static long counts[NAMES], wanted_call;
static int wanted_name = -1, wanted_error;

/* ---- which library an address lies in ---- */

static struct module {
  uintptr_t first, end, base;
  uint64_t name; /* of one of ours, hashed; PROGRAM, 0 for others */
} modules[MOST_MODULES];
static int module_count;

static uint64_t hashed(uint64_t h, const void *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
  return h;
}

static int note_module(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  const char *slash = strrchr(info->dlpi_name, '/'), *name = slash ? slash + 1 : info->dlpi_name;
  uint64_t id = *name ? 0 : PROGRAM;
  for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
    if (strncmp(name, ours[i], strlen(ours[i])) == 0)
      id = hashed(14695981039346656037u, name, strlen(name));
  for (int i = 0; i < info->dlpi_phnum && module_count < MOST_MODULES; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
    uintptr_t first = info->dlpi_addr + p->p_vaddr;
    modules[module_count++] = (struct module){first, first + p->p_memsz, info->dlpi_addr, id};
  }
  return 0;
}

static const struct module *find_module(uintptr_t address) {
  for (int again = 0; again < 2; again++) {
    for (int i = 0; i < module_count; i++)
      if (address >= modules[i].first && address < modules[i].end) return &modules[i];
    if (again) break;
    module_count = 0;
    dl_iterate_phdr(note_module, NULL);
  }
  return NULL;
}

/* ---- allocations ---- */

static int new_place(uint64_t place) {
  for (uint64_t i = place;; i++) {
    uint64_t *p = &places[i % MOST_PLACES];
    if (*p == place) return 0;
    if (*p) continue;
    if (place_count < MOST_PLACES / 2) place_count++, *p = place;
    return 1;
  }
}

static void tell_done(void) {
  happened = 1;
  const char *path = getenv("FAULT_DONE");
  int fd = path ? open(path, O_WRONLY | O_CREAT, 0644) : -1;
  if (fd < 0) return;
  void *stack[2 * DEPTH];
  inside = 1;
  backtrace_symbols_fd(stack, backtrace(stack, 2 * DEPTH), fd);
  inside = 0;
  close(fd);
}

/* The places of a chain of calls, as far as it lies in our libraries. */
struct chain {
  uintptr_t caller;
  uint64_t place;
  int depth;
};

static _Unwind_Reason_Code add_call(struct _Unwind_Context *context, void *argument) {
  struct chain *chain = argument;
  uintptr_t at = _Unwind_GetIP(context);
  if (!chain->depth && chain->caller && at != chain->caller)
    return _URC_NO_REASON; /* still in here */
  const struct module *m = find_module(at);
  if (!chain->depth && m &&
      m->name == PROGRAM) { /* it hands on what others ask for (core/allocations.c) */
    chain->caller = 0;
    return _URC_NO_REASON;
  }
  if (!m || m->name <= PROGRAM || ++chain->depth > DEPTH) return _URC_END_OF_STACK;
  uintptr_t offset = at - m->base;
  chain->place = hashed(chain->place, &m->name, sizeof m->name);
  chain->place = hashed(chain->place, &offset, sizeof offset);
  return _URC_NO_REASON;
}

/* Whether this allocation is to fail. */
static int fails(uintptr_t caller) {
  if (!ready || inside || happened || (!recording && !wanted_place)) return 0;
  inside = 1;
  pthread_mutex_lock(&lock);
  int fail = 0;
  const struct module *m = find_module(caller);
  if (m && m->name) {
    struct chain chain = {caller, 14695981039346656037u, 0};
    _Unwind_Backtrace(add_call, &chain);
    uint64_t place = chain.place | 1;
    if (recording && chain.depth) new_place(place);
    fail = chain.depth && place == wanted_place && !happened;
    if (fail) tell_done();
  }
  pthread_mutex_unlock(&lock);
  inside = 0;
  return fail;
}

#define REAL(type, name, ...)                                                                      \
  static type (*real)(__VA_ARGS__);                                                                \
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)
#define CALLER ((uintptr_t)__builtin_return_address(0))

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

void *malloc(size_t n) {
  if (fails(CALLER)) return errno = ENOMEM, NULL;
  return __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
  if (fails(CALLER)) return errno = ENOMEM, NULL;
  return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
  if (fails(CALLER)) return errno = ENOMEM, NULL;
  return __libc_realloc(p, n);
}
void *aligned_alloc(size_t alignment, size_t n) {
  if (fails(CALLER)) return errno = ENOMEM, NULL;
  return __libc_memalign(alignment, n);
}
int posix_memalign(void **out, size_t alignment, size_t n) {
  if (fails(CALLER)) return errno = ENOMEM; /* glibc sets it here, too */
  void *p = __libc_memalign(alignment, n);
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}
char *strdup(const char *text) {
  if (fails(CALLER)) return errno = ENOMEM, NULL;
  size_t n = strlen(text) + 1;
  char *copy = __libc_malloc(n);
  return copy ? memcpy(copy, text, n) : NULL;
}

/* ---- files ---- */

static int below_folder(int fd, const char *path) {
  char link[64], real[PATH_MAX];
  if (!folder) return 0;
  if (!path) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, real, sizeof real - 1);
    if (n < 0) return 0;
    real[n] = 0;
    path = real;
  }
  return strncmp(path, folder, strlen(folder)) == 0;
}

/* 0: goes on; -1: fails, with errno; 1: half of it. */
static int fault_of(int name, int fd, const char *path) {
  if (!ready || inside || !below_folder(fd, path)) return 0;
  long n = __atomic_add_fetch(&counts[name], 1, __ATOMIC_SEQ_CST);
  if (name != wanted_name || n != wanted_call) return 0;
  tell_done();
  errno = wanted_error;
  return wanted_error ? -1 : 1;
}

static size_t part(int fault, size_t n) { return fault > 0 && n > 1 ? n / 2 : n; }

ssize_t write(int fd, const void *bytes, size_t n) {
  REAL(ssize_t, write, int, const void *, size_t);
  int fault = fault_of(0, fd, NULL);
  return fault < 0 ? -1 : real(fd, bytes, part(fault, n));
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
  REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
  int fault = fault_of(0, fd, NULL);
  return fault < 0 ? -1 : real(fd, bytes, part(fault, n), at);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }
ssize_t read(int fd, void *bytes, size_t n) {
  REAL(ssize_t, read, int, void *, size_t);
  int fault = fault_of(1, fd, NULL);
  return fault < 0 ? -1 : real(fd, bytes, part(fault, n));
}
ssize_t pread64(int fd, void *bytes, size_t n, off64_t at) {
  REAL(ssize_t, pread64, int, void *, size_t, off64_t);
  int fault = fault_of(1, fd, NULL);
  return fault < 0 ? -1 : real(fd, bytes, part(fault, n), at);
}
ssize_t pread(int fd, void *bytes, size_t n, off_t at) { return pread64(fd, bytes, n, at); }
int fsync(int fd) {
  REAL(int, fsync, int);
  return fault_of(2, fd, NULL) < 0 ? -1 : real(fd);
}
int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  return fault_of(3, -1, to) < 0 ? -1 : real(from, to);
}

/* ---- a signal ---- */

int luaL_loadfile(void *state, const char *path) {
  REAL(int, luaL_loadfile, void *, const char *);
  const char *number = getenv("FAULT_SIGNAL"), *end = getenv("FAULT_LOADS");
  size_t n = path ? strlen(path) : 0, m = end ? strlen(end) : n + 1;
  if (number && n >= m && strcmp(path + n - m, end) == 0) raise(atoi(number));
  return real(state, path);
}

/* ---- begin and end ---- */

__attribute__((constructor)) static void begin(void) {
  void *stack[2];
  backtrace(stack, 2); /* loads what it needs */
  recording = getenv("FAULT_PLACES") != NULL;
  if (getenv("FAULT_PLACE")) wanted_place = strtoull(getenv("FAULT_PLACE"), NULL, 16);
  folder = getenv("FAULT_FOLDER");
  const char *call = getenv("FAULT_CALL");
  for (int i = 0; call && i < NAMES; i++)
    if (strncmp(call, names[i], strlen(names[i])) == 0 && call[strlen(names[i])] == ':') {
      wanted_name = i;
      wanted_call = atol(call + strlen(names[i]) + 1);
    }
  if (getenv("FAULT_ERROR")) wanted_error = atoi(getenv("FAULT_ERROR"));
  ready = 1;
}

__attribute__((destructor)) static void end(void) {
  inside = 1;
  FILE *file = getenv("FAULT_PLACES") ? fopen(getenv("FAULT_PLACES"), "w") : NULL;
  for (int i = 0; file && i < MOST_PLACES; i++)
    if (places[i]) fprintf(file, "%016llx\n", (unsigned long long)places[i]);
  if (file) fclose(file);
  file = getenv("FAULT_COUNTS") ? fopen(getenv("FAULT_COUNTS"), "w") : NULL;
  for (int i = 0; file && i < NAMES; i++) fprintf(file, "%s %ld\n", names[i], counts[i]);
  if (file) fclose(file);
}
