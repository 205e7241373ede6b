/* Sums, means, extrema and variances over any set of dimensions, on the CPU.
 *
 * Floats are reduced in double and integers in int64 (their mean and variance in double). The loop
 * order depends on x's densest dimension. If it is reduced, results are computed one after another,
 * each over its own elements. If it is kept, a block of results is updated together, and the loop
 * over reduced indices is outside. Partial results of threads are combined in the order of their
 * indices, so a result depends only on the shape, not on timing. */
#include <math.h>
#include <stdlib.h>

#include "base/backend.h"
#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/view.h"

enum { BLOCK = 512 };

/* The state of a reduction. For VAR a shift (the first element) is subtracted, so that a large mean
 * does not cancel the variance. index < 0: no element has been seen. */
typedef struct {
  double first, second, shift;
  int64_t index;
} state_f64;

typedef struct {
  int64_t first;
  int64_t index;
} state_i64;

/* Whether `v` replaces `best`. The first nan is never replaced. */
static inline bool better(int32_t op, double v, double best) {
  if (best != best) return false;
  if (v != v) return true;
  return op == CR_AMAX || op == CR_ARGMAX ? v > best : v < best;
}

static inline void update_f64(int32_t op, state_f64 *s, double v, int64_t index) {
  if (op == CR_SUM || op == CR_MEAN) {
    s->first += v;
  } else if (op == CR_VAR) {
    double d = v - s->shift;
    s->first += d;
    s->second += d * d;
  } else if (s->index < 0 || better(op, v, s->first)) {
    s->first = v;
    s->index = index;
  }
}

static inline void update_i64(int32_t op, state_i64 *s, int64_t v, int64_t index) {
  if (op == CR_SUM) {
    s->first = (int64_t)((uint64_t)s->first + (uint64_t)v);
  } else if (s->index < 0 || (op == CR_AMAX || op == CR_ARGMAX ? v > s->first : v < s->first)) {
    s->first = v;
    s->index = index;
  }
}

/* Adds consecutive elements of one result. */
CR_CLONES static void row_f64(int32_t op, state_f64 *s, const double *x, int64_t n, int64_t index) {
  double a = 0, b = 0, shift = s->shift;
  if (op == CR_SUM || op == CR_MEAN) {
#pragma omp simd reduction(+ : a)
    for (int64_t i = 0; i < n; i++) a += x[i];
    s->first += a;
  } else if (op == CR_VAR) {
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < n; i++) {
      double d = x[i] - shift;
      a += d;
      b += d * d;
    }
    s->first += a;
    s->second += b;
  } else {
    for (int64_t i = 0; i < n; i++) update_f64(op, s, x[i], index + i);
  }
}

static void row_i64(int32_t op, state_i64 *s, const int64_t *x, int64_t n, int64_t index) {
  for (int64_t i = 0; i < n; i++) update_i64(op, s, x[i], index + i);
}

static void join_f64(int32_t op, state_f64 *s, const state_f64 *later) {
  if (op == CR_SUM || op == CR_MEAN || op == CR_VAR) {
    s->first += later->first;
    s->second += later->second;
  } else if (later->index >= 0) {
    update_f64(op, s, later->first, later->index);
  }
}

static void join_i64(int32_t op, state_i64 *s, const state_i64 *later) {
  if (op == CR_SUM || later->index >= 0) update_i64(op, s, later->first, later->index);
}

/* The dimensions of x in two groups, each as a view. */
typedef struct {
  int32_t op;
  cr__view kept, reduced; /* both begin at x's first element */
  int64_t results, count; /* number of elements of each */
} plan;

static int64_t offset_of(const cr__view *v, int64_t linear) {
  int64_t offset = 0;
  for (int32_t k = v->rank - 1; k >= 0; k--) {
    offset += linear % v->shape[k] * v->stride[k];
    linear /= v->shape[k];
  }
  return offset;
}

static double element(const plan *p, int64_t kept) {
  cr__view v = p->reduced;
  double buffer;
  v.base += offset_of(&p->kept, kept) * v.size;
  return *cr__load_f64(&v, 0, 1, &buffer);
}

/* Writes n finished results from index `start` on. */
static void finish_f64(const plan *p, const cr__view *out, int64_t start, int64_t n,
                       const state_f64 *s) {
  double value[BLOCK];
  int64_t index[BLOCK];
  double count = (double)p->count;
  for (int64_t i = 0; i < n; i++) {
    value[i] = s[i].first;
    index[i] = s[i].index + 1;
    if (p->op == CR_MEAN) value[i] = s[i].first / count;
    if (p->op == CR_VAR) {
      double mean = s[i].first / count;
      value[i] = s[i].second / count - mean * mean;
      if (value[i] < 0) value[i] = 0; /* caused by rounding */
    }
  }
  if (p->op == CR_ARGMAX || p->op == CR_ARGMIN) {
    cr__store_i64(out, start, n, index);
  } else {
    cr__store_f64(out, start, n, value);
  }
}

static void finish_i64(const plan *p, const cr__view *out, int64_t start, int64_t n,
                       const state_i64 *s) {
  int64_t value[BLOCK];
  bool index = p->op == CR_ARGMAX || p->op == CR_ARGMIN;
  for (int64_t i = 0; i < n; i++) value[i] = index ? s[i].index + 1 : s[i].first;
  cr__store_i64(out, start, n, value);
}

static state_f64 start_f64(const plan *p, int64_t kept) {
  return (state_f64){.index = -1, .shift = p->op == CR_VAR ? element(p, kept) : 0};
}

static state_i64 start_i64(const plan *p, int64_t kept) {
  (void)p, (void)kept;
  return (state_i64){.index = -1};
}

#define TYPE double
#define F(NAME) NAME##_f64
#include "cpu/reduce_typed.h"

#define TYPE int64_t
#define F(NAME) NAME##_i64
#include "cpu/reduce_typed.h"

/* The operations that these functions support. */
static bool is_supported(int32_t op) {
  switch (op) {
  case CR_SUM:
  case CR_MEAN:
  case CR_VAR:
  case CR_AMAX:
  case CR_AMIN:
  case CR_ARGMAX:
  case CR_ARGMIN:
    return true;
  default:
    return false;
  }
}

int cr__cpu_reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask,
                   int32_t keep) {
  if (!is_supported(op)) return cr__backend_lacks(cr_reduce_name(op), CR_CPU);
  (void)keep; /* out already has its shape, and the order of elements does not depend on it */
  plan p = {.op = op, .results = 1, .count = 1};
  int64_t kept_shape[CR_MAX_RANK], kept_stride[CR_MAX_RANK];
  int64_t reduced_shape[CR_MAX_RANK], reduced_stride[CR_MAX_RANK];
  int64_t least = INT64_MAX;
  int32_t kept = 0, reduced = 0;
  bool densest_stays = false;
  for (int32_t k = 0; k < x->rank; k++) {
    bool stays = !(dim_mask >> k & 1u);
    if (stays) {
      kept_shape[kept] = x->shape[k];
      kept_stride[kept++] = x->stride[k];
      p.results *= x->shape[k];
    } else {
      reduced_shape[reduced] = x->shape[k];
      reduced_stride[reduced++] = x->stride[k];
      p.count *= x->shape[k];
    }
    if (x->shape[k] > 1 && x->stride[k] > 0 && x->stride[k] < least) {
      least = x->stride[k];
      densest_stays = stays;
    }
  }
  if (p.results == 0) return CR_OK;
  if (p.count == 0) return cr__cpu_fill(out, 0); /* ops/ allows only SUM of no elements */
  p.kept = cr__view_make(cr__ptr(x), x->dtype, kept, kept_shape, kept_stride);
  p.reduced = cr__view_make(cr__ptr(x), x->dtype, reduced, reduced_shape, reduced_stride);
  cr__view to = cr__view_of(out, out->rank, out->shape);
  bool whole = !cr__is_float(x->dtype) && op != CR_MEAN && op != CR_VAR;
  if (densest_stays) return whole ? by_columns_i64(&p, &to) : by_columns_f64(&p, &to);
  return whole ? by_rows_i64(&p, &to) : by_rows_f64(&p, &to);
}
