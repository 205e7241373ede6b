/* Loading and storing chunks of tensors; see view.h. */
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

/* ---- runs: n elements at one stride ---- */

#define LOAD_RUN(TO, FROM, EXPR)                                                                   \
  do {                                                                                             \
    const FROM *p = (const FROM *)x;                                                               \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                        \
        FROM e = p[i];                                                                             \
        out[i] = (TO)(EXPR);                                                                       \
      }                                                                                            \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) {                                                            \
        FROM e = p[i * stride];                                                                    \
        out[i] = (TO)(EXPR);                                                                       \
      }                                                                                            \
    }                                                                                              \
  } while (0)

/* Half types gathered from a stride into a dense piece, so that one vector conversion does. */
static void load_halves(float *out, const char *x, int32_t dtype, int64_t stride, int64_t n) {
  if (stride == 1) {
    cr__to_f32(out, x, dtype, n);
    return;
  }
  uint16_t piece[256];
  const uint16_t *p = (const uint16_t *)x;
  for (int64_t i = 0; i < n; i += 256) {
    int64_t m = n - i < 256 ? n - i : 256;
    for (int64_t j = 0; j < m; j++) piece[j] = p[(i + j) * stride];
    cr__to_f32(out + i, piece, dtype, m);
  }
}

CR_CLONES static void run_to_f32(float *out, const char *x, int32_t dtype, int64_t stride,
                                 int64_t n) {
  switch (dtype) {
  case CR_F32:
    LOAD_RUN(float, float, e);
    break;
  case CR_F16:
  case CR_BF16:
    load_halves(out, x, dtype, stride, n);
    break;
  case CR_F64:
    LOAD_RUN(float, double, e);
    break;
  case CR_U8:
    LOAD_RUN(float, uint8_t, e);
    break;
  case CR_I8:
    LOAD_RUN(float, int8_t, e);
    break;
  case CR_I16:
    LOAD_RUN(float, int16_t, e);
    break;
  case CR_I32:
    LOAD_RUN(float, int32_t, e);
    break;
  case CR_I64:
    LOAD_RUN(float, int64_t, e);
    break;
  default:
    LOAD_RUN(float, uint8_t, e != 0);
    break;
  }
}

/* A nan becomes the plain one: LuaJIT, which reads numbers as f64, takes some others for tags. */
CR_CLONES static void run_to_f64(double *out, const char *x, int32_t dtype, int64_t stride,
                                 int64_t n) {
  float piece[256];
  switch (dtype) {
  case CR_F32:
    LOAD_RUN(double, float, e != e ? NAN : e);
    break;
  case CR_F16:
  case CR_BF16:
    for (int64_t i = 0; i < n; i += 256) {
      int64_t m = n - i < 256 ? n - i : 256;
      load_halves(piece, x + i * stride * 2, dtype, stride, m);
      for (int64_t j = 0; j < m; j++) out[i + j] = piece[j] != piece[j] ? NAN : piece[j];
    }
    break;
  case CR_F64:
    LOAD_RUN(double, double, e);
    break;
  case CR_U8:
    LOAD_RUN(double, uint8_t, e);
    break;
  case CR_I8:
    LOAD_RUN(double, int8_t, e);
    break;
  case CR_I16:
    LOAD_RUN(double, int16_t, e);
    break;
  case CR_I32:
    LOAD_RUN(double, int32_t, e);
    break;
  case CR_I64:
    LOAD_RUN(double, int64_t, e);
    break;
  default:
    LOAD_RUN(double, uint8_t, e != 0);
    break;
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

CR_CLONES static void run_to_i64(int64_t *out, const char *x, int32_t dtype, int64_t stride,
                                 int64_t n) {
  float piece[256];
  switch (dtype) {
  case CR_F32:
    LOAD_RUN(int64_t, float, to_i64((double)e));
    break;
  case CR_F16:
  case CR_BF16:
    for (int64_t i = 0; i < n; i += 256) {
      int64_t m = n - i < 256 ? n - i : 256;
      load_halves(piece, x + i * stride * 2, dtype, stride, m);
      for (int64_t j = 0; j < m; j++) out[i + j] = to_i64((double)piece[j]);
    }
    break;
  case CR_F64:
    LOAD_RUN(int64_t, double, to_i64(e));
    break;
  case CR_U8:
    LOAD_RUN(int64_t, uint8_t, e);
    break;
  case CR_I8:
    LOAD_RUN(int64_t, int8_t, e);
    break;
  case CR_I16:
    LOAD_RUN(int64_t, int16_t, e);
    break;
  case CR_I32:
    LOAD_RUN(int64_t, int32_t, e);
    break;
  case CR_I64:
    LOAD_RUN(int64_t, int64_t, e);
    break;
  default:
    LOAD_RUN(int64_t, uint8_t, e != 0);
    break;
  }
}

#define STORE_RUN(TO, FROM, EXPR)                                                                  \
  do {                                                                                             \
    TO *p = (TO *)out;                                                                             \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                        \
        FROM e = x[i];                                                                             \
        p[i] = (TO)(EXPR);                                                                         \
      }                                                                                            \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) {                                                            \
        FROM e = x[i];                                                                             \
        p[i * stride] = (TO)(EXPR);                                                                \
      }                                                                                            \
    }                                                                                              \
  } while (0)

/* Written as selects so that the loop over a picture's u8 vectorises; a nan fails both tests. */
#define SMALL(LOW, HIGH)                                                                           \
  ((int32_t)(e > (LOW) ? (e < (HIGH) ? e : (HIGH)) : (e <= (LOW) ? (LOW) : 0)))

static void store_halves(char *out, const float *x, int32_t dtype, int64_t stride, int64_t n) {
  if (stride == 1) {
    cr__from_f32(out, x, dtype, n);
    return;
  }
  uint16_t piece[256];
  uint16_t *p = (uint16_t *)out;
  for (int64_t i = 0; i < n; i += 256) {
    int64_t m = n - i < 256 ? n - i : 256;
    cr__from_f32(piece, x + i, dtype, m);
    for (int64_t j = 0; j < m; j++) p[(i + j) * stride] = piece[j];
  }
}

CR_CLONES static void run_from_f32(char *out, const float *x, int32_t dtype, int64_t stride,
                                   int64_t n) {
  switch (dtype) {
  case CR_F32:
    STORE_RUN(float, float, e);
    break;
  case CR_F16:
  case CR_BF16:
    store_halves(out, x, dtype, stride, n);
    break;
  case CR_F64:
    STORE_RUN(double, float, e);
    break;
  case CR_U8:
    STORE_RUN(uint8_t, float, SMALL(0.0f, 255.0f));
    break;
  case CR_I8:
    STORE_RUN(int8_t, float, SMALL(-128.0f, 127.0f));
    break;
  case CR_I16:
    STORE_RUN(int16_t, float, SMALL(-32768.0f, 32767.0f));
    break;
  case CR_I32:
    STORE_RUN(int32_t, float, saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX));
    break;
  case CR_I64:
    STORE_RUN(int64_t, float, to_i64(e));
    break;
  default:
    STORE_RUN(uint8_t, float, e != 0.0f);
    break;
  }
}

float cr__round_to_odd(double d) {
  float f = (float)d;
  if ((double)f == d || f != f) return f;
  uint32_t bits = cr__to_bits(f);
  if (fabs((double)f) > fabs(d)) bits--;
  return cr__from_bits(bits | 1u);
}

CR_CLONES static void run_from_f64(char *out, const double *x, int32_t dtype, int64_t stride,
                                   int64_t n) {
  float piece[256];
  switch (dtype) {
  case CR_F32:
    STORE_RUN(float, double, e);
    break;
  case CR_F16:
  case CR_BF16:
    for (int64_t i = 0; i < n; i += 256) {
      int64_t m = n - i < 256 ? n - i : 256;
      for (int64_t j = 0; j < m; j++) piece[j] = cr__round_to_odd(x[i + j]);
      store_halves(out + i * stride * 2, piece, dtype, stride, m);
    }
    break;
  case CR_F64:
    STORE_RUN(double, double, e);
    break;
  case CR_U8:
    STORE_RUN(uint8_t, double, SMALL(0.0, 255.0));
    break;
  case CR_I8:
    STORE_RUN(int8_t, double, SMALL(-128.0, 127.0));
    break;
  case CR_I16:
    STORE_RUN(int16_t, double, SMALL(-32768.0, 32767.0));
    break;
  case CR_I32:
    STORE_RUN(int32_t, double, saturate(e, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX));
    break;
  case CR_I64:
    STORE_RUN(int64_t, double, to_i64(e));
    break;
  default:
    STORE_RUN(uint8_t, double, e != 0.0);
    break;
  }
}

CR_CLONES static void run_from_i64(char *out, const int64_t *x, int32_t dtype, int64_t stride,
                                   int64_t n) {
  float piece[256];
  switch (dtype) {
  case CR_F32:
    STORE_RUN(float, int64_t, e);
    break;
  case CR_F16:
  case CR_BF16:
    for (int64_t i = 0; i < n; i += 256) {
      int64_t m = n - i < 256 ? n - i : 256;
      for (int64_t j = 0; j < m; j++) piece[j] = cr__round_to_odd((double)x[i + j]);
      store_halves(out + i * stride * 2, piece, dtype, stride, m);
    }
    break;
  case CR_F64:
    STORE_RUN(double, int64_t, e);
    break;
  case CR_U8:
    STORE_RUN(uint8_t, int64_t, e);
    break;
  case CR_I8:
    STORE_RUN(int8_t, int64_t, e);
    break;
  case CR_I16:
    STORE_RUN(int16_t, int64_t, e);
    break;
  case CR_I32:
    STORE_RUN(int32_t, int64_t, e);
    break;
  case CR_I64:
    STORE_RUN(int64_t, int64_t, e);
    break;
  default:
    STORE_RUN(uint8_t, int64_t, e != 0);
    break;
  }
}

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
