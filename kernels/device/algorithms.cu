/* Remembered algorithms (algorithms.h): the store in memory and on disk, and the timing of
 * candidates.
 *
 * The file of a kind of card is text: a line that names the format, then one line for each choice:
 * a checksum of the rest, the key, the blob in hexadecimal, separated by tabs. A line with a wrong
 * checksum is ignored, so a truncated or damaged file costs a new search and nothing else.
 *
 * Invariants: a choice in memory is never dropped, and is newer than that of the file for the same
 * key. The file is replaced as a whole by renaming, and choices that other processes have added
 * since are merged in. After a failed write no other is tried. */
#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device/algorithms.h"
#include "device/switches.h"

/* ---- the store ---- */

typedef struct choice {
  struct choice *next; /* in its slot */
  uint64_t hash;
  int bytes;
  unsigned char *blob; /* behind the key, in the same block */
  char key[];
} choice;

typedef struct store {
  struct store *next;
  char name[300]; /* of the kind of card, and of its file */
  char *path;     /* NULL: choices are not kept on disk */
  choice **slots;
  size_t n, capacity;
  bool dirty;
  double written; /* when it was written last, in seconds */
} store;

static store *stores;
static const char format_line[] = "crescent algorithms 1\n";
enum { FILE_MOST = 16 << 20 }; /* a longer file was not written by this program */

static double now_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* FNV-1a. */
static uint64_t hash_bytes(const char *s, size_t n) {
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 1099511628211u;
  return h;
}

static choice *lookup(const store *s, const char *key, size_t length, uint64_t hash) {
  if (s->capacity == 0) return NULL;
  for (choice *c = s->slots[hash & (s->capacity - 1)]; c; c = c->next)
    if (c->hash == hash && strncmp(c->key, key, length) == 0 && c->key[length] == 0) return c;
  return NULL;
}

static bool grow(store *s) {
  size_t capacity = s->capacity ? 2 * s->capacity : 256;
  choice **slots = (choice **)calloc(capacity, sizeof *slots);
  if (!slots) return false;
  for (size_t i = 0; i < s->capacity; i++)
    for (choice *c = s->slots[i], *next; c; c = next) {
      next = c->next;
      c->next = slots[c->hash & (capacity - 1)];
      slots[c->hash & (capacity - 1)] = c;
    }
  free(s->slots);
  s->slots = slots;
  s->capacity = capacity;
  return true;
}

/* Adds a choice with memory for the blob; NULL if there is no memory, and then it is not
 * remembered. */
static choice *add(store *s, const char *key, size_t length, uint64_t hash, int bytes) {
  if (s->n >= s->capacity && !grow(s)) return NULL;
  choice *c = (choice *)malloc(sizeof *c + length + 1 + (size_t)bytes);
  if (!c) return NULL;
  c->hash = hash;
  c->bytes = bytes;
  memcpy(c->key, key, length);
  c->key[length] = 0;
  c->blob = (unsigned char *)c->key + length + 1;
  choice **slot = &s->slots[hash & (s->capacity - 1)];
  c->next = *slot;
  *slot = c;
  s->n++;
  return c;
}

/* ---- the store's file ---- */

static int hex_digit(char c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Adds the choice of one line (without its newline) unless its key is known. */
static void read_line(store *s, const char *line, size_t length) {
  enum { SUM = 16 };
  if (length < SUM + 4 || line[SUM] != '\t') return;
  uint64_t sum = 0;
  for (int i = 0; i < SUM; i++) {
    int digit = hex_digit(line[i]);
    if (digit < 0) return;
    sum = sum << 4 | (uint64_t)digit;
  }
  const char *key = line + SUM + 1, *end = line + length;
  if (hash_bytes(key, (size_t)(end - key)) != sum) return;
  const char *tab = (const char *)memchr(key, '\t', (size_t)(end - key));
  if (!tab) return;
  size_t key_length = (size_t)(tab - key), digits = (size_t)(end - tab - 1);
  if (key_length == 0 || key_length > CRK_ALGORITHM_KEY || digits == 0 || digits % 2 ||
      digits / 2 > CRK_ALGORITHM_BYTES)
    return;
  unsigned char blob[CRK_ALGORITHM_BYTES];
  for (size_t i = 0; i < digits / 2; i++) {
    int high = hex_digit(tab[1 + 2 * i]), low = hex_digit(tab[2 + 2 * i]);
    if (high < 0 || low < 0) return;
    blob[i] = (unsigned char)(high << 4 | low);
  }
  uint64_t hash = hash_bytes(key, key_length);
  if (lookup(s, key, key_length, hash)) return;
  choice *c = add(s, key, key_length, hash, (int)(digits / 2));
  if (c) memcpy(c->blob, blob, digits / 2);
}

/* Adds the choices of the file whose keys are not in memory. */
static void read_file(store *s) {
  FILE *f = s->path ? fopen(s->path, "re") : NULL;
  if (!f) return;
  struct stat info;
  char *text = NULL;
  if (fstat(fileno(f), &info) == 0 && S_ISREG(info.st_mode) && info.st_size <= FILE_MOST)
    text = (char *)malloc((size_t)info.st_size + 1);
  size_t n = text ? fread(text, 1, (size_t)info.st_size, f) : 0;
  fclose(f);
  size_t head = sizeof format_line - 1;
  if (n >= head && memcmp(text, format_line, head) == 0)
    for (const char *line = text + head, *end; line < text + n; line = end + 1) {
      end = (const char *)memchr(line, '\n', (size_t)(text + n - line));
      if (!end) break; /* truncated */
      read_line(s, line, (size_t)(end - line));
    }
  free(text);
}

static bool write_line(FILE *f, const choice *c) {
  static const char digits[] = "0123456789abcdef";
  char line[CRK_ALGORITHM_KEY + 2 + 2 * CRK_ALGORITHM_BYTES];
  size_t n = strlen(c->key);
  memcpy(line, c->key, n);
  line[n++] = '\t';
  for (int i = 0; i < c->bytes; i++) {
    line[n++] = digits[c->blob[i] >> 4];
    line[n++] = digits[c->blob[i] & 15];
  }
  return fprintf(f, "%016llx\t%.*s\n", (unsigned long long)hash_bytes(line, n), (int)n, line) > 0;
}

static void make_folders(char *path) {
  for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
    *p = 0;
    mkdir(path, 0777);
    *p = '/';
  }
}

static void write_file(store *s) {
  s->dirty = false;
  s->written = now_seconds();
  if (!s->path) return;
  read_file(s);
  make_folders(s->path);
  char *text = NULL;
  size_t bytes = 0;
  FILE *f = open_memstream(&text, &bytes);
  bool ok = f && fputs(format_line, f) >= 0;
  for (size_t i = 0; ok && i < s->capacity; i++)
    for (const choice *c = s->slots[i]; ok && c; c = c->next) ok = write_line(f, c);
  if (f && fclose(f) != 0) ok = false;
  if (!ok || cr_file_write(s->path, text, (int64_t)bytes) < 0) {
    free(s->path);
    s->path = NULL;
  }
  free(text);
}

/* The path of a file in the cache, malloc'ed; NULL if there is no folder for it. */
static char *cache_path(const char *name) {
  const char *cache = crk_switch_text(CRK_SWITCH_CACHE), *xdg = getenv("XDG_CACHE_HOME"),
             *home = getenv("HOME");
  char path[4096];
  int n;
  if (cache)
    n = *cache ? snprintf(path, sizeof path, "%s/%s", cache, name) : 0;
  else if (xdg && *xdg == '/')
    n = snprintf(path, sizeof path, "%s/crescent/%s", xdg, name);
  else if (home && *home)
    n = snprintf(path, sizeof path, "%s/.cache/crescent/%s", home, name);
  else
    n = 0;
  return n > 0 && n < (int)sizeof path ? strdup(path) : NULL;
}

/* Cards of one name and size share a store. */
static store *store_of(const crk_device *d) {
  char name[300];
  snprintf(name, sizeof name, "algorithms-%s-%d", d->name, d->multiprocessors);
  for (char *p = name; *p; p++)
    if (!((*p >= '0' && *p <= '9') || ((*p | 32) >= 'a' && (*p | 32) <= 'z'))) *p = '-';
  for (store *s = stores; s; s = s->next)
    if (strcmp(s->name, name) == 0) return s;
  store *s = (store *)calloc(1, sizeof *s);
  if (!s) return NULL;
  memcpy(s->name, name, sizeof s->name);
  s->path = cache_path(name);
  read_file(s);
  s->next = stores;
  stores = s;
  return s;
}

static void write_if_due(store *s, double pause) {
  if (s->dirty && now_seconds() - s->written >= pause) write_file(s);
}

/* Writes the last second's choices when the process ends. */
__attribute__((destructor)) static void write_all(void) {
  for (store *s = stores; s; s = s->next) write_if_due(s, 0);
}

int crk_algorithm_find(crk_device *d, const char *key, void *blob, int bytes) {
  store *s = store_of(d);
  if (!s) return 0;
  write_if_due(s, 1);
  size_t length = strlen(key);
  const choice *c = lookup(s, key, length, hash_bytes(key, length));
  if (!c || c->bytes != bytes) return 0;
  memcpy(blob, c->blob, (size_t)bytes);
  return 1;
}

void crk_algorithm_remember(crk_device *d, const char *key, const void *blob, int bytes) {
  store *s = store_of(d);
  size_t length = strlen(key);
  if (!s || length == 0 || length > CRK_ALGORITHM_KEY || bytes < 1 || bytes > CRK_ALGORITHM_BYTES)
    return;
  uint64_t hash = hash_bytes(key, length);
  choice *c = lookup(s, key, length, hash);
  if (c && c->bytes != bytes) {
    c->key[0] =
        '\t'; /* no key begins with a tab, so it is not found again, and its line is not read */
    c = NULL;
  }
  if (!c) c = add(s, key, length, hash, bytes);
  if (!c) return;
  memcpy(c->blob, blob, (size_t)bytes);
  s->dirty = true;
  write_if_due(s, 1);
}

/* ---- timing ---- */

/* Keeps the stream busy for `cycles`, so that the work queued behind it runs without gaps, and
 * short kernels are not measured by how fast they can be queued. One thread. */
__global__ void hold_kernel(long long cycles) {
  long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

typedef struct timing {
  const char *name;
  crk_device *d;
  cudaEvent_t before, after;
  crk_candidate run;
  void *arg;
} timing;

/* Milliseconds of one of `runs` runs of candidate i; FLT_MAX if it does not run; negative if the
 * card has failed. */
static float measure(const timing *t, int i, int runs) {
  hold_kernel<<<1, 1, 0, t->d->stream>>>(60000 + 20000LL * runs);
  cudaEventRecord(t->before, t->d->stream);
  bool ok = true;
  for (int k = 0; ok && k < runs; k++) ok = t->run(t->arg, i) >= 0;
  cudaEventRecord(t->after, t->d->stream);
  if (crk_check(t->name, t->d, cudaEventSynchronize(t->after)) < 0) return -1;
  cudaError_t error = cudaGetLastError();
  if (t->d->fault[0]) return -1;
  float ms = 0;
  if (!ok || error || cudaEventElapsedTime(&ms, t->before, t->after) != cudaSuccess) {
    cudaGetLastError();
    return FLT_MAX;
  }
  return ms / (float)runs;
}

static int runs_for(float ms) { return ms > 0.4f ? 1 : ms < 0.04f ? 10 : (int)(0.4f / ms); }

/* The rounds of a search; `ms` receives the times. The wall time of a first run, when the library
 * loads the kernel, does not count: other shapes need that kernel, too. */
static int rounds(const timing *t, int n, float *ms, double budget_ms) {
  double spent = 0;
  float best = FLT_MAX;
  for (int i = 0; i < n; i++) {
    ms[i] = FLT_MAX;
    if (best < FLT_MAX && spent > budget_ms) continue;
    if (t->run(t->arg, i) < 0) continue;
    double start = now_seconds();
    float once = measure(t, i, 1);
    if (once >= 0 && once < 1.3f * best) {
      int runs = runs_for(once);
      if (runs > 1) once = measure(t, i, runs);
    }
    if (once < 0) return CR_EDEVICE;
    ms[i] = once;
    if (once < best) best = once;
    spent += 1e3 * (now_seconds() - start);
  }
  for (int i = 0; i < n;
       i++) { /* measures those near the best once more, since clocks and neighbours vary */
    if (ms[i] > 1.06f * best || spent > budget_ms) continue;
    double start = now_seconds();
    float again = measure(t, i, runs_for(ms[i]));
    if (again < 0) return CR_EDEVICE;
    if (again < ms[i]) ms[i] = again;
    spent += 1e3 * (now_seconds() - start);
  }
  return CR_OK;
}

int crk_fastest(const char *name, crk_device *d, int n, crk_candidate run, void *arg,
                double budget_ms) {
  enum { MOST = 64 };
  float ms[MOST];
  timing t = {name, d, NULL, NULL, run, arg};
  if (n > MOST) n = MOST;
  CR_TRY(crk_may_wait(name, d));
  int rc = crk_check(name, d, cudaEventCreate(&t.before));
  if (rc >= 0) rc = crk_check(name, d, cudaEventCreate(&t.after));
  if (rc >= 0) rc = rounds(&t, n, ms, budget_ms);
  if (t.before) cudaEventDestroy(t.before);
  if (t.after) cudaEventDestroy(t.after);
  if (rc < 0) return rc;
  float best = FLT_MAX;
  for (int i = 0; i < n; i++)
    if (ms[i] < best) best = ms[i];
  for (int i = 0; i < n; i++)
    if (ms[i] < FLT_MAX && ms[i] <= 1.01f * best) return i;
  return cr__fail(CR_EUNSUPPORTED, "%s: none of %d algorithms works", name, n);
}

bool crk_libraries_wanted(void) { return crk_switch_value(CRK_SWITCH_LIBRARIES) != 0; }
