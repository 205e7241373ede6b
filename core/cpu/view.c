/* Loading and storing chunks of tensors (view.h). */
#include "cpu/view.h"

#include <math.h>
#include <string.h>

#include "base/vmath.h"

cr__view cr__view_make(char *base, int32_t dtype, int32_t rank, const int64_t *shape,
                       const int64_t *stride) {
  cr__view v = {.base = base, .dtype = dtype, .size = cr_dtype_size(dtype), .rank = 0};
  for (int32_t k = 0; k < rank; k++) {
    if (shape[k] == 1) continue;
    int32_t last = v.rank - 1;
    if (v.rank > 0 && v.stride[last] == stride[k] * shape[k]) {
      v.shape[last] *= shape[k];
      v.stride[last] = stride[k];
    } else {
      v.shape[v.rank] = shape[k];
      v.stride[v.rank++] = stride[k];
    }
  }
  if (v.rank == 0) {
    v.rank = 1;
    v.shape[0] = 1;
    v.stride[0] = 1;
  }
  v.dense = v.rank == 1 && v.stride[0] == 1;
  return v;
}

cr__view cr__view_of(const cr_tensor *t, int32_t rank, const int32_t *shape) {
  int64_t sizes[CR_MAX_RANK], strides[CR_MAX_RANK];
  for (int32_t k = 0; k < rank; k++) {
    int32_t own = k - (rank - t->rank);
    sizes[k] = shape[k];
    strides[k] = own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
  }
  return cr__view_make(cr__ptr(t), t->dtype, rank, sizes, strides);
}

/* ---- 16-bit floats ---- */

/* Those with a stride are gathered into a dense piece, which is converted with vector
 * instructions. */
enum { PIECE = 256 };
static void load_halves_f32(float *out, const char *x, int32_t dtype, int64_t stride, int64_t n) {
  if (stride == 1) {
    cr__to_f32(out, x, dtype, n);
    return;
  }
  uint16_t piece[PIECE];
  const uint16_t *p = (const uint16_t *)x;
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t m = n - i < PIECE ? n - i : PIECE;
    for (int64_t j = 0; j < m; j++) piece[j] = p[(i + j) * stride];
    cr__to_f32(out + i, piece, dtype, m);
  }
}

static void store_halves_f32(char *out, const float *x, int32_t dtype, int64_t stride, int64_t n) {
  if (stride == 1) {
    cr__from_f32(out, x, dtype, n);
    return;
  }
  uint16_t piece[PIECE];
  uint16_t *p = (uint16_t *)out;
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t m = n - i < PIECE ? n - i : PIECE;
    cr__from_f32(piece, x + i, dtype, m);
    for (int64_t j = 0; j < m; j++) p[(i + j) * stride] = piece[j];
  }
}

float cr__round_to_odd(double d) {
  float f = (float)d;
  if ((double)f == d || f != f) return f;
  uint32_t bits = cr__to_bits(f);
  if (fabs((double)f) > fabs(d)) bits--;
  return cr__from_bits(bits | 1u);
}

/* ---- conversions of one element ---- */

static int64_t saturate(double v, double low, double high, int64_t lowest, int64_t highest) {
  if (v != v) return 0;
  if (v <= low) return lowest;
  return v >= high ? highest : (int64_t)v;
}

static int64_t to_i64(double v) {
  return saturate(v, -9223372036854775808.0, 9223372036854775808.0, INT64_MIN, INT64_MAX);
}

/* X_to_SUFFIX(e): an element of type X in the type of SUFFIX. They are macros, since the vectorizer
 * treats inline functions differently. A nan becomes the default one: LuaJIT, which reads numbers
 * as f64, takes some others for tags. */
#define float_to_f32(e) e
#define double_to_f32(e) e
#define float_to_f64(e) e != e ? NAN : e
#define double_to_f64(e) e
#define float_to_i64(e) to_i64((double)e)
#define double_to_i64(e) to_i64(e)

/* X_from_SUFFIX(e): the way back. Integers wrap around. Floats saturate; for integers of 8 and 16
 * bits with selects, so that the loop over an image's u8 vectorizes (a nan fails both tests). */
#define SELECT(e, LOW, HIGH)                                                                       \
  ((int32_t)(e > (LOW) ? (e < (HIGH) ? e : (HIGH)) : (e <= (LOW) ? (LOW) : 0)))
#define small_from_f32(e, LOW, HIGH) SELECT(e, LOW, HIGH)
#define small_from_f64(e, LOW, HIGH) SELECT(e, LOW, HIGH)
#define small_from_i64(e, LOW, HIGH) e
#define i32_from_f32(e) saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX)
#define i32_from_f64(e) saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX)
#define i32_from_i64(e) e
#define i64_from_f32(e) to_i64(e)
#define i64_from_f64(e) to_i64(e)
#define i64_from_i64(e) e

/* ---- all other dtypes ---- */

/* ROW(dtype, its C type, value of the element e in TYPE) */
#define LOADS(ROW)                                                                                 \
  ROW(CR_F32, float, F(float_to)(e))                                                               \
  ROW(CR_F64, double, F(double_to)(e))                                                             \
  ROW(CR_U8, uint8_t, e)                                                                           \
  ROW(CR_I8, int8_t, e)                                                                            \
  ROW(CR_I16, int16_t, e)                                                                          \
  ROW(CR_I32, int32_t, e)                                                                          \
  ROW(CR_I64, int64_t, e)                                                                          \
  ROW(CR_BOOL, uint8_t, e != 0)

/* ROW(dtype, its C type, value of the element e of TYPE in it) */
#define STORES(ROW)                                                                                \
  ROW(CR_F32, float, e)                                                                            \
  ROW(CR_F64, double, e)                                                                           \
  ROW(CR_U8, uint8_t, F(small_from)(e, 0, 255))                                                    \
  ROW(CR_I8, int8_t, F(small_from)(e, -128, 127))                                                  \
  ROW(CR_I16, int16_t, F(small_from)(e, -32768, 32767))                                            \
  ROW(CR_I32, int32_t, F(i32_from)(e))                                                             \
  ROW(CR_I64, int64_t, F(i64_from)(e))                                                             \
  ROW(CR_BOOL, uint8_t, e != 0)

/* The cases of a switch over the dtype, for n elements `stride` apart. */
#define LOAD_CASE(ELEMENT_DTYPE, ELEMENT, VALUE)                                                   \
  case ELEMENT_DTYPE:                                                                              \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd") LOAD_EACH(ELEMENT, i, VALUE)                                             \
    } else {                                                                                       \
      LOAD_EACH(ELEMENT, (i * stride), VALUE)                                                      \
    }                                                                                              \
    break;
#define LOAD_EACH(ELEMENT, AT, VALUE)                                                              \
  for (int64_t i = 0; i < n; i++) {                                                                \
    ELEMENT e = ((const ELEMENT *)x)[AT];                                                          \
    out[i] = (TYPE)(VALUE);                                                                        \
  }
#define STORE_CASE(ELEMENT_DTYPE, ELEMENT, VALUE)                                                  \
  case ELEMENT_DTYPE:                                                                              \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd") STORE_EACH(ELEMENT, i, VALUE)                                            \
    } else {                                                                                       \
      STORE_EACH(ELEMENT, (i * stride), VALUE)                                                     \
    }                                                                                              \
    break;
#define STORE_EACH(ELEMENT, AT, VALUE)                                                             \
  for (int64_t i = 0; i < n; i++) {                                                                \
    TYPE e = x[i];                                                                                 \
    ((ELEMENT *)out)[AT] = (ELEMENT)(VALUE);                                                       \
  }

/* ---- a walk over a view, in runs of its last dimension ---- */

/* Sets the index of element `start`. Returns its offset. */
static inline int64_t first_run(const cr__view *v, int64_t start, int64_t *index) {
  int64_t offset = 0;
  for (int32_t k = v->rank - 1; k >= 0; k--) {
    index[k] = start % v->shape[k];
    start /= v->shape[k];
    offset += index[k] * v->stride[k];
  }
  return offset;
}

/* Returns the number of elements in the current run, of which at most n are left. */
static inline int64_t run_length(const cr__view *v, const int64_t *index, int64_t n) {
  int64_t count = v->shape[v->rank - 1] - index[v->rank - 1];
  return count > n ? n : count;
}

/* Moves the index to the next run. Returns its offset. */
static inline int64_t next_run(const cr__view *v, int64_t *index, int64_t offset) {
  int32_t last = v->rank - 1;
  offset -= index[last] * v->stride[last];
  index[last] = 0;
  for (int32_t k = last - 1; k >= 0; k--) {
    offset += v->stride[k];
    if (++index[k] < v->shape[k]) break;
    offset -= index[k] * v->stride[k];
    index[k] = 0;
  }
  return offset;
}

/* ---- in each type ---- */

#define TYPE float
#define DTYPE CR_F32
#define F(NAME) NAME##_f32
#include "cpu/view_typed.h"

#define BY_WAY_OF_F32
#define TYPE double
#define DTYPE CR_F64
#define F(NAME) NAME##_f64
#include "cpu/view_typed.h"

#define TYPE int64_t
#define DTYPE CR_I64
#define F(NAME) NAME##_i64
#include "cpu/view_typed.h"

int cr__threads_for(int64_t n) {
  int64_t worth = n / 16384, most = cr_threads();
  if (worth > most) worth = most;
  return worth < 1 ? 1 : (int)worth;
}
