/* Indexed access on the CPU: gather, scatter and nonzero.
 *
 * The index, the operand of the index's shape and the indexed operand are walked together, in lines
 * along the innermost dimension that remains after merging adjacent ones. */
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/view.h"

/* Operands: 0 the indexed tensor, with a stride of 0 along `dim`; 1 the index; 2 the other
 * tensor. */
enum { INDEXED, INDEX, OTHER, OPERANDS };

typedef struct {
  int32_t rank; /* >= 1 */
  int64_t shape[CR_MAX_RANK];
  int64_t stride[OPERANDS][CR_MAX_RANK]; /* in bytes */
  char *data[OPERANDS];
  int64_t lines;      /* lines of the walk */
  int64_t size;       /* bytes of an element */
  int64_t step, rows; /* of `dim`: its stride in bytes, its size */
  bool wide;          /* the index is i64, not i32 */
} walk;

static walk walk_of(const cr_tensor *indexed, int32_t dim, const cr_tensor *index,
                    const cr_tensor *other) {
  const cr_tensor *xs[OPERANDS] = {indexed, index, other};
  walk w = {.lines = 1,
            .size = cr_dtype_size(other->dtype),
            .rows = indexed->shape[dim],
            .wide = index->dtype == CR_I64};
  w.step = indexed->stride[dim] * w.size;
  for (int32_t i = 0; i < OPERANDS; i++) w.data[i] = cr__ptr(xs[i]);
  for (int32_t k = 0; k < index->rank; k++) {
    if (index->shape[k] == 1) continue;
    int64_t stride[OPERANDS];
    bool merges = w.rank > 0;
    for (int32_t i = 0; i < OPERANDS; i++) {
      stride[i] = i == INDEXED && k == dim ? 0 : xs[i]->stride[k] * cr_dtype_size(xs[i]->dtype);
      merges = merges && w.stride[i][w.rank - 1] == stride[i] * index->shape[k];
    }
    int32_t at = merges ? w.rank - 1 : w.rank++;
    w.shape[at] = merges ? w.shape[at] * index->shape[k] : index->shape[k];
    for (int32_t i = 0; i < OPERANDS; i++) w.stride[i][at] = stride[i];
  }
  if (w.rank == 0) w.shape[w.rank++] = 1;
  for (int32_t k = 0; k < w.rank - 1; k++) w.lines *= w.shape[k];
  return w;
}

static void line_of(const walk *w, int64_t line, char *p[OPERANDS]) {
  memcpy(p, w->data, sizeof w->data);
  for (int32_t k = w->rank - 2; k >= 0; k--) {
    for (int32_t i = 0; i < OPERANDS; i++) p[i] += line % w->shape[k] * w->stride[i][k];
    line /= w->shape[k];
  }
}

/* Returns the offset in bytes of the row that an index element refers to. */
static inline int64_t row_at(const walk *w, const char *index) {
  int64_t number = w->wide ? *(const int64_t *)index : *(const int32_t *)index;
  return (number < 0 ? number + w->rows : number - 1) * w->step;
}

static void move_elements(char *to, int64_t to_step, const char *from, int64_t from_step, int64_t n,
                          int64_t size) {
  if (to_step == size && from_step == size) {
    memcpy(to, from, (size_t)(n * size));
    return;
  }
  for (int64_t i = 0; i < n; i++) memcpy(to + i * to_step, from + i * from_step, (size_t)size);
}

/* Moves elements one by one, each with its own index. */
#define MOVE_EACH(BYTES, TYPE)                                                                     \
  case BYTES:                                                                                      \
    for (int64_t i = 0; i < n; i++) {                                                              \
      TYPE *there = (TYPE *)(p[INDEXED] + i * own + row_at(w, p[INDEX] + i * next));               \
      TYPE *here = (TYPE *)(p[OTHER] + i * other);                                                 \
      if (scatters)                                                                                \
        *there = *here;                                                                            \
      else                                                                                         \
        *here = *there;                                                                            \
    }                                                                                              \
    break;

static void move_line(const walk *w, char *p[OPERANDS], bool scatters) {
  int32_t last = w->rank - 1;
  int64_t n = w->shape[last], own = w->stride[INDEXED][last], next = w->stride[INDEX][last];
  int64_t other = w->stride[OTHER][last];
  if (next == 0) {
    char *row = p[INDEXED] + row_at(w, p[INDEX]);
    if (scatters)
      move_elements(row, own, p[OTHER], other, n, w->size);
    else
      move_elements(p[OTHER], other, row, own, n, w->size);
    return;
  }
  switch (w->size) { CR__ELEMENT_SIZES(MOVE_EACH) }
}

int cr__cpu_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index) {
  walk w = walk_of(x, dim, index, out);
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(cr_numel(out)))
  for (int64_t line = 0; line < w.lines; line++) {
    char *p[OPERANDS];
    line_of(&w, line, p);
    move_line(&w, p, false);
  }
  return CR_OK;
}

/* ROW(dtype, its C type, sum of the elements *a and b) */
#define SUMS(ROW)                                                                                  \
  ROW(CR_F32, float, *a + b)                                                                       \
  ROW(CR_F64, double, *a + b)                                                                      \
  ROW(CR_U8, uint8_t, *a + b)                                                                      \
  ROW(CR_I8, int8_t, *a + b)                                                                       \
  ROW(CR_I16, int16_t, *a + b)                                                                     \
  ROW(CR_I32, int32_t, (uint32_t)*a + (uint32_t)b)                                                 \
  ROW(CR_I64, int64_t, (uint64_t)*a + (uint64_t)b)                                                 \
  ROW(CR_BOOL, uint8_t, *a != 0 || b != 0)

#define ADD_EACH(DTYPE, TYPE, SUM)                                                                 \
  case DTYPE:                                                                                      \
    for (int64_t i = 0; i < n; i++) {                                                              \
      TYPE *a = (TYPE *)(to + i * to_step);                                                        \
      const TYPE b = *(const TYPE *)(from + i * from_step);                                        \
      *a = (TYPE)(SUM);                                                                            \
    }                                                                                              \
    break;

/* Adds n elements at `from` to those at `to`, each with its own step. Integers wrap around. */
static void add_elements(int32_t dtype, char *to, int64_t to_step, char *from, int64_t from_step,
                         int64_t n) {
  switch (dtype) {
    SUMS(ADD_EACH)
  default:
    for (int64_t i = 0; i < n; i++) {
      float a, b;
      cr__to_f32(&a, to + i * to_step, dtype, 1);
      cr__to_f32(&b, from + i * from_step, dtype, 1);
      a += b;
      cr__from_f32(to + i * to_step, &a, dtype, 1);
    }
  }
}

/* Runs in order on one thread, since several index elements may refer to one row. */
int cr__cpu_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x,
                    int32_t add) {
  walk w = walk_of(t, dim, index, x);
  int32_t last = w.rank - 1;
  for (int64_t line = 0; line < w.lines; line++) {
    char *p[OPERANDS];
    line_of(&w, line, p);
    if (!add) {
      move_line(&w, p, true);
      continue;
    }
    bool whole = w.stride[INDEX][last] == 0; /* the whole line goes to one row */
    for (int64_t i = 0; i < (whole ? 1 : w.shape[last]); i++)
      add_elements(t->dtype,
                   p[INDEXED] + i * w.stride[INDEXED][last] +
                       row_at(&w, p[INDEX] + i * w.stride[INDEX][last]),
                   w.stride[INDEXED][last], p[OTHER] + i * w.stride[OTHER][last],
                   w.stride[OTHER][last], whole ? w.shape[last] : 1);
  }
  return CR_OK;
}

int cr__cpu_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat) {
  cr__view v = cr__view_of(x, x->rank, x->shape);
  int64_t total = cr_numel(x), count = 0, buffer[CR__CHUNK];
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    const int64_t *p = cr__load_i64(&v, start, n, buffer);
    for (int64_t i = 0; i < n; i++) count += p[i] != 0;
  }
  if (count > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "nonzero: %s has too many elements that are not 0",
                    cr__shape(x));
  int32_t shape[] = {(int32_t)count, x->rank};
  CR_TRY(cr__out("nonzero", out, flat ? 1 : 2, shape, CR_I64, CR_CPU));
  int64_t *to = cr__ptr(out);
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    const int64_t *p = cr__load_i64(&v, start, n, buffer);
    for (int64_t i = 0; i < n; i++) {
      int64_t rest = start + i;
      if (!p[i]) continue;
      if (flat) {
        *to++ = rest + 1;
        continue;
      }
      for (int32_t k = x->rank - 1; k >= 0; rest /= x->shape[k--]) to[k] = rest % x->shape[k] + 1;
      to += x->rank;
    }
  }
  return CR_OK;
}
