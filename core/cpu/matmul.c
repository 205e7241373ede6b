/* Matrix products on the CPU: oneDNN for f32, and for bf16 if the processor supports it; a loop for
 * f64.
 *
 * oneDNN accepts matrices whose rows or columns are dense, with any stride between them, so
 * transposed views and slices need no copy; other tensors are made dense first. Leading dimensions
 * are merged: into the rows if b is a single matrix, else into one batch dimension for the library.
 * What cannot be merged is a loop here. */
#include <string.h>

#include "base/vmath.h"
#include "cpu/dnnl.h"
#include "cpu/operands.h"

/* ---- f64 ---- */

/* c [m n] = a [m k] b [k n], dense. Four rows share each row of b. */
CR_CLONES static void product_f64(double *c, const double *a, const double *b, int64_t m, int64_t k,
                                  int64_t n) {
  memset(c, 0, (size_t)(m * n) * sizeof *c);
  for (int64_t i = 0; i < m; i += 4) {
    int64_t rows = m - i < 4 ? m - i : 4;
    for (int64_t l = 0; l < k; l++) {
      const double *row = b + l * n;
      for (int64_t r = i; r < i + rows; r++) {
        double f = a[r * k + l];
        for (int64_t j = 0; j < n; j++) c[r * n + j] += f * row[j];
      }
    }
  }
}

static void products_f64(double *c, const double *a, const double *b, int64_t m, int64_t k,
                         int64_t n) {
  enum { ROWS = 16 };
  int64_t blocks = (m + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(cr_threads()) if (m * k * n > 100000)
  for (int64_t i = 0; i < blocks; i++) {
    int64_t first = i * ROWS, rows = m - first < ROWS ? m - first : ROWS;
    product_f64(c + first * n, a + first * k, b, rows, k, n);
  }
}

/* ---- f32, bf16 ---- */

typedef struct matrix { /* rows x columns at p; the next matrix of the batch is `batch` elements
                           further */
  void *p;
  int64_t rows, columns, row_step, column_step, batch;
} matrix;

/* Normalizes the strides of a matrix, and returns whether the library accepts them: one must be 1,
 * the other at least the dense size. */
static bool normalize_steps(matrix *m) {
  if (m->columns == 1 &&
      (m->row_step == 1 || m->rows == 1)) { /* a vector may be a row or a column */
    m->column_step = 1;
    if (m->rows == 1) m->row_step = 1;
  }
  if (m->rows == 1 && m->column_step == 1) m->row_step = m->columns;
  if (m->columns == 1 && m->row_step >= 1) m->column_step = 1;
  if (m->column_step == 1 && m->row_step >= m->columns) return true;
  if (m->rows == 1 && m->column_step > 1) m->row_step = 1;
  return m->row_step == 1 && m->column_step >= m->rows;
}

static bool matrix_layout(const cr__dnnl *d, dnnl_memory_desc_t *layout, const matrix *m,
                          int64_t batch, dnnl_data_type_t type) {
  if (batch == 1) {
    dnnl_dims_t size = {m->rows, m->columns}, step = {m->row_step, m->column_step};
    return !d->memory_desc_init_by_strides(layout, 2, size, type, step);
  }
  dnnl_dims_t size = {m->batch ? batch : 1, m->rows, m->columns};
  dnnl_dims_t step = {m->batch ? m->batch : m->rows * m->columns, m->row_step, m->column_step};
  return !d->memory_desc_init_by_strides(layout, 3, size, type, step);
}

static void put_long(cr__key *key, int64_t x) {
  cr__key_put(key, (int32_t)x);
  cr__key_put(key, (int32_t)(x >> 32));
}

static void put_matrix(cr__key *key, const matrix *m) {
  put_long(key, m->rows);
  put_long(key, m->columns);
  put_long(key, m->row_step);
  put_long(key, m->column_step);
  put_long(key, m->batch);
}

/* c = act(a b + bias) + residual for `batch` matrices; a batch stride of 0 repeats one matrix. bias
 * has one element per column; the residual has c's layout. */
static int product(const char *name, int32_t dtype, const matrix *c, const matrix *a,
                   const matrix *b, int64_t batch, void *bias, void *residual, int32_t act) {
  const cr__dnnl *d = cr__dnnl_get(name);
  if (d == NULL) return cr__last_code();
  cr__fused fused = {.act = act};
  if (residual) fused.residual = residual == c->p ? CR_RESIDUAL_IN_PLACE : CR_RESIDUAL_SEPARATE;
  cr__key key;
  cr__key_begin(&key, CR_KEY_MATMUL);
  cr__key_put(&key, dtype);
  put_long(&key, batch);
  put_matrix(&key, a);
  put_matrix(&key, b);
  put_long(&key, c->row_step);
  cr__key_put(&key, act);
  cr__key_put(&key, fused.residual);
  cr__key_put(&key, bias != NULL);
  cr__primitive *p = cr__primitive_find(&key);
  if (p == NULL) {
    dnnl_memory_desc_t ma, mb, mc, mbias;
    matrix row = {.rows = 1, .columns = c->columns, .row_step = c->columns, .column_step = 1};
    dnnl_matmul_desc_t desc;
    dnnl_data_type_t type = cr__dnnl_type(dtype);
    if (!matrix_layout(d, &ma, a, batch, type) || !matrix_layout(d, &mb, b, batch, type) ||
        !matrix_layout(d, &mc, c, batch, type) || !matrix_layout(d, &mbias, &row, batch, type) ||
        d->matmul_desc_init(&desc, &ma, &mb, bias ? &mbias : NULL, &mc))
      return cr__fail(CR_EUNSUPPORTED,
                      "%s: oneDNN does not support a product of %lld x %lld x %lld", name,
                      (long long)a->rows, (long long)a->columns, (long long)b->columns);
    cr__primitive_arg args[4] = {
        {DNNL_ARG_SRC, &ma}, {DNNL_ARG_WEIGHTS, &mb}, {DNNL_ARG_DST, &mc}, {DNNL_ARG_BIAS, &mbias}};
    p = cr__primitive_add(name, &key, &desc, fused, &mc, bias ? 4 : 3, args);
    if (p == NULL) return cr__last_code();
  }
  void *data[CR_PRIMITIVE_ARGS] = {a->p, b->p, c->p};
  int n = 3;
  if (bias) data[n++] = bias;
  if (fused.residual == CR_RESIDUAL_SEPARATE) data[n++] = residual;
  return cr__primitive_run(name, p, data);
}

/* Returns the last two dimensions of t. */
static matrix matrix_of(const cr_tensor *t) {
  int32_t r = t->rank;
  matrix m = {.p = cr__ptr(t),
              .rows = t->shape[r - 2],
              .columns = t->shape[r - 1],
              .row_step = t->stride[r - 2],
              .column_step = t->stride[r - 1]};
  return m;
}

/* ---- matmul ---- */

/* The leading dimensions of a product, outermost first, with their strides in a, b and c. */
typedef struct leading {
  int32_t n;
  int64_t size[CR_MAX_RANK], a[CR_MAX_RANK], b[CR_MAX_RANK], c[CR_MAX_RANK];
} leading;

static int64_t leading_step(const cr_tensor *t, int32_t i, int32_t rank) {
  int32_t k = i - (rank - t->rank);
  return k < 0 || t->shape[k] == 1 ? 0 : t->stride[k];
}

/* Merges adjacent dimensions where the strides allow it. */
static leading leading_of(const cr_tensor *c, const cr_tensor *a, const cr_tensor *b) {
  leading l = {0};
  for (int32_t i = 0; i < c->rank - 2; i++) {
    if (c->shape[i] == 1) continue;
    int64_t size = c->shape[i], sa = leading_step(a, i, c->rank), sb = leading_step(b, i, c->rank),
            sc = c->stride[i];
    int32_t last = l.n - 1;
    if (last >= 0 && l.a[last] == sa * size && l.b[last] == sb * size && l.c[last] == sc * size) {
      l.size[last] *= size;
      l.a[last] = sa, l.b[last] = sb, l.c[last] = sc;
      continue;
    }
    l.size[l.n] = size;
    l.a[l.n] = sa, l.b[l.n] = sb, l.c[l.n] = sc;
    l.n++;
  }
  return l;
}

/* Returns the offset of the i-th combination of indices of the first n leading dimensions. */
static int64_t step_at(const leading *l, const int64_t *step, int32_t n, int64_t i) {
  int64_t at = 0;
  for (int32_t k = n - 1; k >= 0; k--) {
    at += i % l->size[k] * step[k];
    i /= l->size[k];
  }
  return at;
}

static int64_t combinations(const leading *l, int32_t n) {
  int64_t count = 1;
  for (int32_t k = 0; k < n; k++) count *= l->size[k];
  return count;
}

static int matmul_f64(cr_tensor *out, const cr_tensor *a, const cr_tensor *b) {
  leading l = leading_of(out, a, b);
  matrix ma = matrix_of(a), mb = matrix_of(b);
  double *c = cr__ptr(out);
  int64_t count = combinations(&l, l.n);
  for (int64_t i = 0; i < count; i++)
    products_f64(c + step_at(&l, l.c, l.n, i), (double *)ma.p + step_at(&l, l.a, l.n, i),
                 (double *)mb.p + step_at(&l, l.b, l.n, i), ma.rows, ma.columns, mb.columns);
  return CR_OK;
}

static void *moved(void *p, int64_t elements, int32_t dtype) {
  return (char *)p + elements * cr_dtype_size(dtype);
}

static int matmul_dnnl(cr_tensor *out, const cr_tensor *a, const cr_tensor *b) {
  leading l = leading_of(out, a, b);
  matrix ma = matrix_of(a), mb = matrix_of(b), mc = matrix_of(out);
  normalize_steps(&ma), normalize_steps(&mb), normalize_steps(&mc);
  int64_t batch = 1;
  int32_t n = l.n;
  if (n > 0 && l.b[n - 1] == 0 && ma.column_step == 1 && l.a[n - 1] == ma.rows * ma.row_step &&
      l.c[n - 1] == ma.rows * mc.row_step) { /* b is one matrix, so the batch becomes more rows */
    n--;
    ma.rows *= l.size[n];
    mc.rows *= l.size[n];
  } else if (n > 0) {
    n--;
    batch = l.size[n];
    ma.batch = l.a[n], mb.batch = l.b[n], mc.batch = l.c[n];
  }
  int64_t count = combinations(&l, n);
  void *pa = ma.p, *pb = mb.p, *pc = mc.p;
  for (int64_t i = 0; i < count; i++) {
    ma.p = moved(pa, step_at(&l, l.a, n, i), out->dtype);
    mb.p = moved(pb, step_at(&l, l.b, n, i), out->dtype);
    mc.p = moved(pc, step_at(&l, l.c, n, i), out->dtype);
    CR_TRY(product("matmul", out->dtype, &mc, &ma, &mb, batch, NULL, NULL, CR_ACT_NONE));
  }
  return CR_OK;
}

/* Returns the dtype in which a product is computed: the operands' own where it is supported, else
 * f32. */
static int32_t product_dtype(const cr_tensor *a, const cr_tensor *b) {
  if (a->dtype == CR_F64) return CR_F64;
  return a->dtype == CR_BF16 && b->dtype == CR_BF16 && cr__dnnl_bf16() ? CR_BF16 : CR_F32;
}

/* Returns t itself if the library can read its matrices in place. */
static const cr_tensor *matrix_operand(cr__operands *op, const cr_tensor *t, int32_t dtype) {
  matrix m = matrix_of(t);
  if (t->dtype == dtype && dtype != CR_F64 && normalize_steps(&m)) return t;
  return cr__operand(op, t, dtype);
}

int cr__cpu_matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b) {
  int32_t dtype = product_dtype(a, b);
  cr__operands op = {0};
  a = matrix_operand(&op, a, dtype);
  b = matrix_operand(&op, b, dtype);
  cr_tensor *result = cr__result(&op, out, dtype);
  int rc = op.rc;
  if (rc >= 0 && a->shape[a->rank - 1] == 0)
    memset(cr__ptr(result), 0, (size_t)cr_numel(result) * (size_t)cr_dtype_size(dtype));
  else if (rc >= 0)
    rc = (dtype == CR_F64 ? matmul_f64 : matmul_dnnl)(result, a, b);
  return cr__operands_end(&op, out, rc);
}

/* ---- linear ---- */

static int linear_f64(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                      const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  int64_t k = weight->shape[1], n = weight->shape[0], m = cr_numel(out) / n;
  const double *px = cr__ptr(x), *pw = cr__ptr(weight), *pb = bias ? cr__ptr(bias) : NULL,
               *pr = residual ? cr__ptr(residual) : NULL;
  double *po = cr__ptr(out);
#pragma omp parallel for num_threads(cr_threads()) if (m * k * n > 100000)
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = pb ? pb[j] : 0;
      for (int64_t l = 0; l < k; l++) sum += px[i * k + l] * pw[j * k + l];
      po[i * n + j] = cr__act_f64(sum, act, 0) + (pr ? pr[i * n + j] : 0);
    }
  return CR_OK;
}

/* Describes x as one matrix [M K], which needs equal steps along the leading dimensions. */
static bool rows_of(const cr_tensor *x, matrix *m) {
  int32_t r = x->rank;
  *m = (matrix){.p = cr__ptr(x), .rows = 1, .columns = x->shape[r - 1], .column_step = 1};
  m->row_step = m->columns;
  if (m->columns > 1 && x->stride[r - 1] != 1) return false;
  for (int32_t i = r - 2; i >= 0; i--) {
    if (x->shape[i] == 1) continue;
    if (m->rows == 1)
      m->row_step = x->stride[i];
    else if (x->stride[i] != m->rows * m->row_step)
      return false;
    m->rows *= x->shape[i];
  }
  return m->row_step >= m->columns;
}

static int linear_dnnl(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                       const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  matrix mx, mo, mw = matrix_of(weight);
  rows_of(x, &mx);
  rows_of(out, &mo);
  int64_t n = mw.rows;
  mw.rows = mw.columns, mw.columns = n; /* the transpose */
  int64_t step = mw.row_step;
  mw.row_step = mw.column_step, mw.column_step = step;
  normalize_steps(&mw);
  return product("linear", out->dtype, &mo, &mx, &mw, 1, bias ? cr__ptr(bias) : NULL,
                 residual ? cr__ptr(residual) : NULL, act);
}

int cr__cpu_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, const cr_tensor *residual, int32_t act) {
  int32_t dtype = product_dtype(x, weight);
  if (residual && residual->dtype != dtype && dtype == CR_BF16) dtype = CR_F32;
  cr__operands op = {0};
  matrix m;
  if (!(dtype != CR_F64 && x->dtype == dtype && rows_of(x, &m))) x = cr__operand(&op, x, dtype);
  weight = matrix_operand(&op, weight, dtype);
  bias = cr__operand(&op, bias, dtype);
  residual = cr__operand(&op, residual, dtype);
  cr_tensor *result = cr__result(&op, out, dtype);
  int rc = op.rc;
  if (rc >= 0 && weight->shape[1] == 0)
    rc = cr__fail(CR_EINVAL, "linear: the weight %s has no columns", cr__shape(weight));
  else if (rc >= 0)
    rc = (dtype == CR_F64 ? linear_f64 : linear_dnnl)(result, x, weight, bias, residual, act);
  return cr__operands_end(&op, out, rc);
}

/* ---- linear with GEGLU ---- */

/* Bytes of both halves per thread at a time, so that they stay in the L2 cache. */
enum { GEGLU_BYTES = 1 << 20, FEWEST_ROWS = 256 };

/* Returns rows first ... first + count - 1 of a dense [rows ...] as a view that retains nothing. */
static cr_tensor some_rows(const cr_tensor *t, int64_t first, int64_t count) {
  int64_t n = t->shape[t->rank - 1];
  cr_tensor view = *t;
  view.offset += first * n;
  view.rank = 2;
  view.shape[0] = (int32_t)count, view.shape[1] = (int32_t)n;
  view.stride[0] = n, view.stride[1] = 1;
  return view;
}

int cr__cpu_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                         const cr_tensor *bias) {
  cr__operands op = {0};
  x = cr__operand(&op, x, x->dtype);
  cr_tensor *result = cr__result(&op, out, out->dtype);
  if (op.rc < 0) return cr__operands_end(&op, out, op.rc);
  int64_t n = weight->shape[0], rows = cr_numel(result) / (n / 2);
  int64_t step = GEGLU_BYTES * cr_threads() / (n * cr_dtype_size(out->dtype));
  if (step < FEWEST_ROWS || step > rows) step = rows; /* each call reorders the weight */
  cr_tensor both = {0};
  int32_t shape[2] = {(int32_t)step, (int32_t)n};
  int rc = cr_empty(&both, 2, shape, out->dtype, CR_CPU);
  for (int64_t first = 0; rc >= 0 && first < rows; first += step) {
    int64_t count = rows - first < step ? rows - first : step;
    cr_tensor from = some_rows(x, first, count), wide = some_rows(&both, 0, count),
              to = some_rows(result, first, count);
    rc = cr__cpu_linear(&wide, &from, weight, bias, NULL, CR_ACT_NONE);
    if (rc >= 0) rc = cr__cpu_geglu(&to, &wide);
  }
  cr_free(&both);
  return cr__operands_end(&op, out, rc);
}
