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

/* ---- runs: n elements with one stride ---- */

/* BODY for each of n elements i, of which the view's stands at `at`. */
#define RUN(BODY)                                                                                  \
  do {                                                                                             \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                        \
        const int64_t at = i;                                                                      \
        BODY                                                                                       \
      }                                                                                            \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) {                                                            \
        const int64_t at = i * stride;                                                             \
        BODY                                                                                       \
      }                                                                                            \
    }                                                                                              \
  } while (0)

/* 16-bit floats with a stride are gathered into a dense piece, which is converted with vector
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

static int64_t saturate(double v, double low, double high, int64_t lowest, int64_t highest) {
  if (v != v) return 0;
  if (v <= low) return lowest;
  return v >= high ? highest : (int64_t)v;
}

static int64_t to_i64(double v) {
  return saturate(v, -9223372036854775808.0, 9223372036854775808.0, INT64_MIN, INT64_MAX);
}

/* A half type as TO, by way of f32. */
#define DEFINE_LOAD_HALVES(SUFFIX, TO, OF_F32)                                                     \
  static void load_halves_##SUFFIX(TO *out, const char *x, int32_t dtype, int64_t stride,          \
                                   int64_t n) {                                                    \
    float piece[PIECE];                                                                            \
    for (int64_t i = 0; i < n; i += PIECE) {                                                       \
      int64_t m = n - i < PIECE ? n - i : PIECE;                                                   \
      load_halves_f32(piece, x + i * stride * 2, dtype, stride, m);                                \
      for (int64_t j = 0; j < m; j++) {                                                            \
        float e = piece[j];                                                                        \
        out[i + j] = OF_F32;                                                                       \
      }                                                                                            \
    }                                                                                              \
  }

/* run_to_SUFFIX: n elements of `dtype`, `stride` apart, as TO. The expressions are of the element
 * e; a whole number converts as C has it. */
#define LOAD_CASE(DTYPE, TO, FROM, EXPR)                                                           \
  case DTYPE:                                                                                      \
    RUN({                                                                                          \
      FROM e = ((const FROM *)x)[at];                                                              \
      out[i] = (TO)(EXPR);                                                                         \
    });                                                                                            \
    break;
#define DEFINE_LOAD(SUFFIX, TO, OF_F32, OF_F64)                                                    \
  CR_CLONES static void run_to_##SUFFIX(TO *out, const char *x, int32_t dtype, int64_t stride,     \
                                        int64_t n) {                                               \
    switch (dtype) {                                                                               \
      LOAD_CASE(CR_F32, TO, float, OF_F32)                                                         \
      LOAD_CASE(CR_F64, TO, double, OF_F64)                                                        \
      LOAD_CASE(CR_U8, TO, uint8_t, e)                                                             \
      LOAD_CASE(CR_I8, TO, int8_t, e)                                                              \
      LOAD_CASE(CR_I16, TO, int16_t, e)                                                            \
      LOAD_CASE(CR_I32, TO, int32_t, e)                                                            \
      LOAD_CASE(CR_I64, TO, int64_t, e)                                                            \
      LOAD_CASE(CR_BOOL, TO, uint8_t, e != 0)                                                      \
    default:                                                                                       \
      load_halves_##SUFFIX(out, x, dtype, stride, n);                                              \
      break;                                                                                       \
    }                                                                                              \
  }

/* A nan becomes the plain one: LuaJIT, which reads numbers as f64, takes some others for tags. */
DEFINE_LOAD_HALVES(f64, double, e != e ? NAN : e)
DEFINE_LOAD_HALVES(i64, int64_t, to_i64((double)e))
DEFINE_LOAD(f32, float, e, e)
DEFINE_LOAD(f64, double, e != e ? NAN : e, e)
DEFINE_LOAD(i64, int64_t, to_i64((double)e), to_i64(e))

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

#define DEFINE_STORE_HALVES(SUFFIX, FROM)                                                          \
  static void store_halves_##SUFFIX(char *out, const FROM *x, int32_t dtype, int64_t stride,       \
                                    int64_t n) {                                                   \
    float piece[PIECE];                                                                            \
    for (int64_t i = 0; i < n; i += PIECE) {                                                       \
      int64_t m = n - i < PIECE ? n - i : PIECE;                                                   \
      for (int64_t j = 0; j < m; j++) piece[j] = cr__round_to_odd((double)x[i + j]);               \
      store_halves_f32(out + i * stride * 2, piece, dtype, stride, m);                             \
    }                                                                                              \
  }

/* run_from_SUFFIX: the way back. NARROW(low, high) brings e into a type of 8 or 16 bits, TO_32 and
 * TO_64 into the wider whole numbers. */
#define STORE_CASE(DTYPE, TO, FROM, EXPR)                                                          \
  case DTYPE:                                                                                      \
    RUN({                                                                                          \
      FROM e = x[i];                                                                               \
      ((TO *)out)[at] = (TO)(EXPR);                                                                \
    });                                                                                            \
    break;
#define DEFINE_STORE(SUFFIX, FROM, NARROW, TO_32, TO_64)                                           \
  CR_CLONES static void run_from_##SUFFIX(char *out, const FROM *x, int32_t dtype, int64_t stride, \
                                          int64_t n) {                                             \
    switch (dtype) {                                                                               \
      STORE_CASE(CR_F32, float, FROM, e)                                                           \
      STORE_CASE(CR_F64, double, FROM, e)                                                          \
      STORE_CASE(CR_U8, uint8_t, FROM, NARROW(0, 255))                                             \
      STORE_CASE(CR_I8, int8_t, FROM, NARROW(-128, 127))                                           \
      STORE_CASE(CR_I16, int16_t, FROM, NARROW(-32768, 32767))                                     \
      STORE_CASE(CR_I32, int32_t, FROM, TO_32)                                                     \
      STORE_CASE(CR_I64, int64_t, FROM, TO_64)                                                     \
      STORE_CASE(CR_BOOL, uint8_t, FROM, e != 0)                                                   \
    default:                                                                                       \
      store_halves_##SUFFIX(out, x, dtype, stride, n);                                             \
      break;                                                                                       \
    }                                                                                              \
  }

/* Written as selects so that the loop over an image's u8 vectorises; a nan fails both tests. */
#define SMALL(LOW, HIGH)                                                                           \
  ((int32_t)(e > (LOW) ? (e < (HIGH) ? e : (HIGH)) : (e <= (LOW) ? (LOW) : 0)))
#define WRAP(LOW, HIGH) e

DEFINE_STORE_HALVES(f64, double)
DEFINE_STORE_HALVES(i64, int64_t)
DEFINE_STORE(f32, float, SMALL, saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX), to_i64(e))
DEFINE_STORE(f64, double, SMALL, saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX), to_i64(e))
DEFINE_STORE(i64, int64_t, WRAP, e, e)

/* ---- chunks: runs of the last dimension, one after another ---- */

/* Calls RUN(element address, stride, count, position in the chunk) for elements start .. */
#define EACH_RUN(v, start, n, RUN)                                                                 \
  do {                                                                                             \
    int32_t last = (v)->rank - 1;                                                                  \
    int64_t index[CR_MAX_RANK], rest = (start), offset = 0, done = 0;                              \
    for (int32_t k = last; k >= 0; k--) {                                                          \
      index[k] = rest % (v)->shape[k];                                                             \
      rest /= (v)->shape[k];                                                                       \
      offset += index[k] * (v)->stride[k];                                                         \
    }                                                                                              \
    while (done < (n)) {                                                                           \
      int64_t count = (v)->shape[last] - index[last];                                              \
      if (count > (n)-done) count = (n)-done;                                                      \
      RUN((v)->base + offset * (v)->size, (v)->stride[last], count, done);                         \
      done += count;                                                                               \
      offset -= index[last] * (v)->stride[last];                                                   \
      index[last] = 0;                                                                             \
      for (int32_t k = last - 1; k >= 0; k--) {                                                    \
        offset += (v)->stride[k];                                                                  \
        if (++index[k] < (v)->shape[k]) break;                                                     \
        offset -= index[k] * (v)->stride[k];                                                       \
        index[k] = 0;                                                                              \
      }                                                                                            \
    }                                                                                              \
  } while (0)

#define DEFINE_ACCESS(SUFFIX, TYPE, DTYPE)                                                         \
  const TYPE *cr__load_##SUFFIX(const cr__view *v, int64_t start, int64_t n, TYPE *buffer) {       \
    if (v->dense && v->dtype == (DTYPE)) return (const TYPE *)v->base + start;                     \
    if (n > 0) EACH_RUN(v, start, n, LOAD_##SUFFIX);                                               \
    return buffer;                                                                                 \
  }                                                                                                \
  TYPE *cr__target_##SUFFIX(const cr__view *v, int64_t start, TYPE *buffer) {                      \
    return v->dense && v->dtype == (DTYPE) ? (TYPE *)v->base + start : buffer;                     \
  }                                                                                                \
  void cr__store_##SUFFIX(const cr__view *v, int64_t start, int64_t n, const TYPE *x) {            \
    if (v->dense && v->dtype == (DTYPE) && (const TYPE *)v->base + start == x) return;             \
    if (n > 0) EACH_RUN(v, start, n, STORE_##SUFFIX);                                              \
  }

#define LOAD_f32(p, s, m, at) run_to_f32(buffer + (at), (p), v->dtype, (s), (m))
#define LOAD_f64(p, s, m, at) run_to_f64(buffer + (at), (p), v->dtype, (s), (m))
#define LOAD_i64(p, s, m, at) run_to_i64(buffer + (at), (p), v->dtype, (s), (m))
#define STORE_f32(p, s, m, at) run_from_f32((p), x + (at), v->dtype, (s), (m))
#define STORE_f64(p, s, m, at) run_from_f64((p), x + (at), v->dtype, (s), (m))
#define STORE_i64(p, s, m, at) run_from_i64((p), x + (at), v->dtype, (s), (m))
DEFINE_ACCESS(f32, float, CR_F32)
DEFINE_ACCESS(f64, double, CR_F64)
DEFINE_ACCESS(i64, int64_t, CR_I64)

int cr__threads_for(int64_t n) {
  int64_t worth = n / 16384, most = cr_threads();
  if (worth > most) worth = most;
  return worth < 1 ? 1 : (int)worth;
}
