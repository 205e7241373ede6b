/* Copying, converting, filling, concatenating and padding on the CPU.
 *
 * Copies between equal dtypes move bytes without interpreting them; converting copies use the
 * chunks of view.h. */
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/view.h"

enum { TILE = 32, RUN = 8192 };

/* ---- moving bytes ---- */

/* A rectangle of rows x columns elements, with the strides of both sides in elements. */
typedef struct {
  int64_t rows, to_row, from_row;
  int64_t columns, to_column, from_column;
} rectangle;

#define MOVE(BYTES, TYPE)                                                                          \
  case BYTES:                                                                                      \
    for (int64_t c0 = 0; c0 < r->columns; c0 += TILE) {                                            \
      int64_t c1 = c0 + TILE < r->columns ? c0 + TILE : r->columns;                                \
      for (int64_t i = 0; i < r->rows; i++) {                                                      \
        TYPE *p = (TYPE *)to + i * r->to_row;                                                      \
        const TYPE *q = (const TYPE *)from + i * r->from_row;                                      \
        for (int64_t c = c0; c < c1; c++) p[c * r->to_column] = q[c * r->from_column];             \
      }                                                                                            \
    }                                                                                              \
    break;

/* Tiles of columns in the outer loop, rows in the inner one: in a transposition each cache line of
 * both sides is then fully used while it is cached. */
static void move_rectangle(char *to, const char *from, int32_t size, const rectangle *r) {
  if (r->to_column == 1 && r->from_column == 1) {
    for (int64_t i = 0; i < r->rows; i++) {
      memcpy(to + i * r->to_row * size, from + i * r->from_row * size, (size_t)(r->columns * size));
    }
    return;
  }
  if (r->to_column == 1 && r->from_column == 0 && size == 4) { /* a fill or a broadcast */
    for (int64_t i = 0; i < r->rows; i++) {
      uint32_t *p = (uint32_t *)to + i * r->to_row, v = ((const uint32_t *)from)[i * r->from_row];
      for (int64_t c = 0; c < r->columns; c++) p[c] = v;
    }
    return;
  }
  switch (size) { CR__ELEMENT_SIZES(MOVE) }
}

/* Copies x, broadcast to out's shape, to `out`. The dtypes are equal. */
static void copy_bytes(const cr_tensor *out, const cr_tensor *x) {
  int32_t size = cr_dtype_size(out->dtype), rank = 0;
  int64_t shape[CR_MAX_RANK + 1], to[CR_MAX_RANK + 1], from[CR_MAX_RANK + 1];
  int64_t total = cr_numel(out);
  if (total == 0) return;
  for (int32_t k = 0; k < out->rank; k++) { /* merge dimensions that are adjacent on both sides */
    int32_t own = k - (out->rank - x->rank);
    int64_t step = own < 0 || x->shape[own] == 1 ? 0 : x->stride[own];
    if (out->shape[k] == 1) continue;
    if (rank > 0 && to[rank - 1] == out->stride[k] * out->shape[k] &&
        from[rank - 1] == step * out->shape[k]) {
      shape[rank - 1] *= out->shape[k];
      to[rank - 1] = out->stride[k];
      from[rank - 1] = step;
    } else {
      shape[rank] = out->shape[k];
      to[rank] = out->stride[k];
      from[rank++] = step;
    }
  }
  if (rank == 0) shape[0] = to[0] = from[0] = 1, rank = 1;
  /* The rectangle's columns are the last dimension; its rows are the dimension along which x is
   * dense. */
  int32_t columns = rank - 1, rows = -1;
  for (int32_t k = 0; k < rank - 1; k++) {
    if (from[k] == 1 || rows < 0 || (from[rows] != 1 && k == rank - 2)) rows = k;
  }
  if (rows < 0) { /* a single dimension gets one row */
    rows = rank;
    shape[rows] = 1;
    to[rows] = from[rows] = 0;
  }
  /* Tiles are tall, except in a transposition. */
  bool transposes = from[rows] == 1 && from[columns] != 1;
  int64_t height = transposes || shape[columns] >= RUN / TILE ? TILE : RUN / shape[columns];
  int64_t row_tiles = (shape[rows] + height - 1) / height;
  int64_t column_runs = (shape[columns] + RUN - 1) / RUN;
  int64_t tasks = total / shape[rows] / shape[columns] * row_tiles * column_runs;
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t task = 0; task < tasks; task++) {
    int64_t c0 = task % column_runs * RUN, rest = task / column_runs;
    int64_t r0 = rest % row_tiles * height;
    rest /= row_tiles;
    int64_t at_to = c0 * to[columns] + r0 * to[rows];
    int64_t at_from = c0 * from[columns] + r0 * from[rows];
    for (int32_t k = rank - 1; k >= 0; k--) {
      if (k == rows || k == columns) continue;
      at_to += rest % shape[k] * to[k];
      at_from += rest % shape[k] * from[k];
      rest /= shape[k];
    }
    rectangle r = {.rows = shape[rows] - r0 < height ? shape[rows] - r0 : height,
                   .to_row = to[rows],
                   .from_row = from[rows],
                   .columns = shape[columns] - c0 < RUN ? shape[columns] - c0 : RUN,
                   .to_column = to[columns],
                   .from_column = from[columns]};
    move_rectangle((char *)cr__ptr(out) + at_to * size, (char *)cr__ptr(x) + at_from * size, size,
                   &r);
  }
}

/* ---- converting ---- */

int cr__cpu_copy(cr_tensor *out, const cr_tensor *x) {
  if (out->dtype == x->dtype) {
    copy_bytes(out, x);
    return CR_OK;
  }
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, out->rank, out->shape);
  bool whole = !cr__is_float(out->dtype) && !cr__is_float(x->dtype);
  bool wide = out->dtype == CR_F64 || x->dtype == CR_F64;
  int64_t total = cr_numel(out);
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    if (whole || x->dtype == CR_I64) { /* f64 cannot represent every i64 */
      int64_t buffer[CR__CHUNK];
      cr__store_i64(&to, start, n, cr__load_i64(&from, start, n, buffer));
    } else if (wide) {
      double buffer[CR__CHUNK];
      cr__store_f64(&to, start, n, cr__load_f64(&from, start, n, buffer));
    } else {
      float buffer[CR__CHUNK];
      cr__store_f32(&to, start, n, cr__load_f32(&from, start, n, buffer));
    }
  }
  return CR_OK;
}

int cr__cpu_fill(cr_tensor *t, double value) {
  cr__view to = cr__view_of(t, t->rank, t->shape);
  int64_t total = cr_numel(t);
  if (total == 0) return CR_OK;
  /* One element is converted and then copied. */
  cr__store_f64(&to, 0, 1, &value);
  int32_t one[CR_MAX_RANK];
  for (int32_t k = 0; k < t->rank; k++) one[k] = 1;
  uint64_t element = 0;
  memcpy(&element, cr__ptr(t), (size_t)to.size);
  if (element == 0 && to.dense) {
    memset(cr__ptr(t), 0, (size_t)(total * to.size));
    return CR_OK;
  }
  cr_storage s = {.refs = 1, .device = CR_CPU, .data = &element, .bytes = sizeof element};
  cr_tensor x = {.storage = &s, .dtype = t->dtype, .rank = t->rank};
  memcpy(x.shape, one, sizeof one);
  copy_bytes(t, &x);
  return CR_OK;
}

int cr__cpu_arange(cr_tensor *out, double start_value, double step) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  int64_t total = cr_numel(out);
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    double buffer[CR__CHUNK];
    for (int64_t i = 0; i < n; i++) buffer[i] = start_value + (double)(start + i) * step;
    cr__store_f64(&to, start, n, buffer);
  }
  return CR_OK;
}

/* ---- concatenation and padding ---- */

int cr__cpu_cat(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim) {
  int32_t at = 0;
  for (int32_t k = 0; k < n; k++) {
    cr_tensor t = cr__part(out, dim, at, xs[k]->shape[dim]);
    copy_bytes(&t, xs[k]);
    at += xs[k]->shape[dim];
  }
  return CR_OK;
}

int cr__cpu_pad(cr_tensor *out, const cr_tensor *x, const int32_t *before, double value) {
  CR_TRY(cr__cpu_fill(out, value));
  cr_tensor inside = cr__inside(out, x, before);
  copy_bytes(&inside, x);
  return CR_OK;
}
