/* Scans and sorts along the last dimension on the CPU. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/view.h"

static int64_t rows_of(const cr_tensor *x) { return cr_numel(x) / x->shape[x->rank - 1]; }

/* ---- cumulative sums and products ---- */

static inline double next_f64(double so_far, double x, int32_t product) {
  return product ? so_far * x : so_far + x;
}

/* Integers wrap around. */
static inline int64_t next_i64(int64_t so_far, int64_t x, int32_t product) {
  uint64_t a = (uint64_t)so_far, b = (uint64_t)x;
  return (int64_t)(product ? a * b : a + b);
}

#define TYPE double
#define F(NAME) NAME##_f64
#include "cpu/scan_typed.h"

#define TYPE int64_t
#define F(NAME) NAME##_i64
#include "cpu/scan_typed.h"

int cr__cpu_scan(cr_tensor *out, const cr_tensor *x, int32_t product) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, x->rank, x->shape);
  if (cr__is_float(x->dtype)) {
    scan_f64(&to, &from, rows_of(x), x->shape[x->rank - 1], product);
  } else {
    scan_i64(&to, &from, rows_of(x), x->shape[x->rank - 1], product);
  }
  return CR_OK;
}

/* ---- sorting ---- */

/* Keys compared as unsigned integers have the order of the elements. */
typedef struct {
  uint64_t key;
  int64_t index;
} entry;

#define SIGN_BIT (UINT64_C(1) << 63)

static uint64_t key_of_f64(double v) {
  if (v != v) return UINT64_MAX;
  if (v == 0) v = 0; /* makes -0 equal to 0 */
  uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits & SIGN_BIT ? ~bits : bits | SIGN_BIT;
}

/* The index decides between equal keys, so any sorting algorithm is stable. */
static int compare(const void *a, const void *b) {
  const entry *x = a, *y = b;
  if (x->key != y->key) return x->key < y->key ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

/* Fills the entries of a row and sorts them. */
static void sort_row(entry *e, const cr__view *from, int64_t at, int64_t n, bool floats,
                     bool descending) {
  for (int64_t first = 0; first < n; first += CR__CHUNK) {
    int64_t count = n - first < CR__CHUNK ? n - first : CR__CHUNK;
    if (floats) {
      double buffer[CR__CHUNK];
      const double *x = cr__load_f64(from, at + first, count, buffer);
      for (int64_t i = 0; i < count; i++) e[first + i].key = key_of_f64(x[i]);
    } else {
      int64_t buffer[CR__CHUNK];
      const int64_t *x = cr__load_i64(from, at + first, count, buffer);
      for (int64_t i = 0; i < count; i++) e[first + i].key = (uint64_t)x[i] ^ SIGN_BIT;
    }
  }
  for (int64_t i = 0; i < n; i++) {
    e[i].index = i;
    if (descending) e[i].key = ~e[i].key;
  }
  qsort(e, (size_t)n, sizeof *e, compare);
}

/* Writes the elements of a row of x in the order of the first n entries, and their indices. */
static void write_row(const cr__view *to, int64_t to_at, const cr__view *places,
                      const cr__view *from, int64_t at, const entry *e, int64_t n, bool floats) {
  for (int64_t i = 0; i < n; i++) {
    int64_t place = e[i].index + 1;
    if (floats) {
      double buffer;
      cr__store_f64(to, to_at + i, 1, cr__load_f64(from, at + e[i].index, 1, &buffer));
    } else {
      int64_t buffer;
      cr__store_i64(to, to_at + i, 1, cr__load_i64(from, at + e[i].index, 1, &buffer));
    }
    cr__store_i64(places, to_at + i, 1, &place);
  }
}

int cr__cpu_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view places = cr__view_of(index, index->rank, index->shape);
  cr__view from = cr__view_of(x, x->rank, x->shape);
  bool floats = cr__is_float(x->dtype);
  int64_t n = x->shape[x->rank - 1], rows = rows_of(x);
  int threads = cr__threads_for(rows * n);
  if (threads > rows) threads = (int)rows;
  entry *entries = malloc((size_t)threads * (size_t)n * sizeof *entries);
  if (!entries) return cr__fail(CR_ENOMEM, "sort: out of memory for %lld elements", (long long)n);
#pragma omp parallel num_threads(threads)
  {
    entry *mine = entries + (size_t)omp_get_thread_num() * (size_t)n;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      sort_row(mine, &from, r * n, n, floats, largest);
      write_row(&to, r * k, &places, &from, r * n, mine, k, floats);
    }
  }
  free(entries);
  return CR_OK;
}

int cr__cpu_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending) {
  return cr__cpu_topk(out, index, x, x->shape[x->rank - 1], descending);
}
