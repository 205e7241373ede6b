/* Elementwise operations on the CPU.
 *
 * Arithmetic is done in one of three types: float (for f32 and the half types), double (if f64
 * takes part) or int64 (if only integers do). Chunks are loaded as that type (view.h), one loop
 * works on them, and the result is stored as the output's type. Every element is computed alone, so
 * the result does not depend on strides or on the number of threads. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* see vmath.h */
#endif
#include <math.h>

#include "base/arithmetic.h"
#include "base/dtype.h"
#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/view.h"

typedef enum { IN_F32, IN_F64, IN_I64 } arithmetic;

static arithmetic arithmetic_of(int32_t dtype) {
  if (dtype == CR_F64) return IN_F64;
  return cr__is_float(dtype) ? IN_F32 : IN_I64;
}

/* A loop over the chunks of `total` elements on several threads, with their `start`; `n` in its
 * body is CHUNK_SIZE. */
#define EACH_CHUNK                                                                                 \
  _Pragma(                                                                                         \
      "omp parallel for schedule(static) num_threads(cr__threads_for(total))") for (int64_t        \
                                                                                        start = 0; \
                                                                                    start < total; \
                                                                                    start +=       \
                                                                                    CR__CHUNK)
#define CHUNK_SIZE (total - start < CR__CHUNK ? total - start : CR__CHUNK)

/* ---- one operand ---- */

#define LOOP(EXPR)                                                                                 \
  {                                                                                                \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                          \
      ELEMENT x = in[i];                                                                           \
      out[i] = (EXPR);                                                                             \
    }                                                                                              \
  }

#define ELEMENT float
#define UNARY_F32(NAME, EXPR)                                                                      \
  CR_CLONES static void f32_##NAME(float *out, const float *in, int64_t n) LOOP(EXPR)
UNARY_F32(neg, -x)
UNARY_F32(abs, fabsf(x))
UNARY_F32(exp, cr__exp_f32(x))
UNARY_F32(log, cr__log_f32(x))
UNARY_F32(log10, cr__log10_f32(x))
UNARY_F32(sqrt, sqrtf(x))
UNARY_F32(rsqrt, 1.0f / sqrtf(x))
UNARY_F32(sin_small, cr__sin_f32(x))
UNARY_F32(cos_small, cr__cos_f32(x))
UNARY_F32(tanh, cr__tanh_f32(x))
UNARY_F32(erf, cr__erf_f32(x))
UNARY_F32(sigmoid, cr__sigmoid_f32(x))
UNARY_F32(silu, cr__silu_f32(x))
UNARY_F32(gelu, cr__gelu_f32(x))
UNARY_F32(relu, x < 0.0f ? 0.0f : x)
UNARY_F32(floor, floorf(x))
UNARY_F32(ceil, ceilf(x))
UNARY_F32(trunc, truncf(x))
UNARY_F32(round, rintf(x))
UNARY_F32(square, x *x)
UNARY_F32(reciprocal, 1.0f / x)

CR_CLONES static bool all_small(const float *in, int64_t n) {
  int32_t large = 0;
#pragma omp simd reduction(| : large)
  for (int64_t i = 0; i < n; i++) large |= !(fabsf(in[i]) < 1e6f);
  return large == 0;
}

static void f32_sin(float *out, const float *in, int64_t n) {
  if (all_small(in, n)) {
    f32_sin_small(out, in, n);
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = (float)sin((double)in[i]);
  }
}

static void f32_cos(float *out, const float *in, int64_t n) {
  if (all_small(in, n)) {
    f32_cos_small(out, in, n);
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = (float)cos((double)in[i]);
  }
}
#undef ELEMENT

#define ELEMENT double
#define UNARY_F64(NAME, EXPR)                                                                      \
  static void f64_##NAME(double *out, const double *in, int64_t n) LOOP(EXPR)
UNARY_F64(neg, -x)
UNARY_F64(abs, fabs(x))
UNARY_F64(exp, exp(x))
UNARY_F64(log, log(x))
UNARY_F64(log10, log10(x))
UNARY_F64(sqrt, sqrt(x))
UNARY_F64(rsqrt, 1.0 / sqrt(x))
UNARY_F64(sin, sin(x))
UNARY_F64(cos, cos(x))
UNARY_F64(tanh, tanh(x))
UNARY_F64(erf, erf(x))
UNARY_F64(sigmoid, x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)))
UNARY_F64(silu, x >= 0 ? x / (1 + exp(-x)) : (x < -750 ? -0.0 : x * (exp(x) / (1 + exp(x)))))
UNARY_F64(gelu, x < -40 ? -0.0 : 0.5 * x * erfc(x * -0.70710678118654752440))
UNARY_F64(relu, x < 0 ? 0 : x)
UNARY_F64(floor, floor(x))
UNARY_F64(ceil, ceil(x))
UNARY_F64(trunc, trunc(x))
UNARY_F64(round, rint(x))
UNARY_F64(square, x *x)
UNARY_F64(reciprocal, 1 / x)
#undef ELEMENT

/* Integers wrap around, so their arithmetic is done unsigned. */
#define ELEMENT int64_t
#define UNARY_I64(NAME, EXPR)                                                                      \
  static void i64_##NAME(int64_t *out, const int64_t *in, int64_t n) LOOP(EXPR)
UNARY_I64(neg, (int64_t)(0 - (uint64_t)x))
UNARY_I64(abs, x < 0 ? (int64_t)(0 - (uint64_t)x) : x)
UNARY_I64(relu, x < 0 ? 0 : x)
UNARY_I64(square, (int64_t)((uint64_t)x *(uint64_t)x))
UNARY_I64(not, x == 0)
#undef ELEMENT

#define ROW(OP, NAME) [OP] = {f32_##NAME, f64_##NAME, NULL}
static const struct {
  void (*f32)(float *out, const float *in, int64_t n);
  void (*f64)(double *out, const double *in, int64_t n);
  void (*i64)(int64_t *out, const int64_t *in, int64_t n);
} unary_loops[CR_UNARY_OPS] = {
    [CR_NEG] = {f32_neg, f64_neg, i64_neg},
    [CR_ABS] = {f32_abs, f64_abs, i64_abs},
    [CR_RELU] = {f32_relu, f64_relu, i64_relu},
    [CR_SQUARE] = {f32_square, f64_square, i64_square},
    [CR_NOT] = {NULL, NULL, i64_not},
    ROW(CR_EXP, exp),
    ROW(CR_LOG, log),
    ROW(CR_LOG10, log10),
    ROW(CR_SQRT, sqrt),
    ROW(CR_RSQRT, rsqrt),
    ROW(CR_SIN, sin),
    ROW(CR_COS, cos),
    ROW(CR_TANH, tanh),
    ROW(CR_ERF, erf),
    ROW(CR_SIGMOID, sigmoid),
    ROW(CR_SILU, silu),
    ROW(CR_GELU, gelu),
    ROW(CR_FLOOR, floor),
    ROW(CR_CEIL, ceil),
    ROW(CR_TRUNC, trunc),
    ROW(CR_ROUND, round),
    ROW(CR_RECIPROCAL, reciprocal),
};

int cr__cpu_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, out->rank, out->shape);
  arithmetic in = arithmetic_of(x->dtype);
  int64_t total = cr_numel(out);
  EACH_CHUNK {
    int64_t n = CHUNK_SIZE;
    if (in == IN_F32) {
      float a[CR__CHUNK], b[CR__CHUNK];
      float *r = cr__target_f32(&to, start, b);
      unary_loops[op].f32(r, cr__load_f32(&from, start, n, a), n);
      cr__store_f32(&to, start, n, r);
    } else if (in == IN_F64) {
      double a[CR__CHUNK], b[CR__CHUNK];
      double *r = cr__target_f64(&to, start, b);
      unary_loops[op].f64(r, cr__load_f64(&from, start, n, a), n);
      cr__store_f64(&to, start, n, r);
    } else {
      int64_t a[CR__CHUNK], b[CR__CHUNK];
      int64_t *r = cr__target_i64(&to, start, b);
      unary_loops[op].i64(r, cr__load_i64(&from, start, n, a), n);
      cr__store_i64(&to, start, n, r);
    }
  }
  return CR_OK;
}

/* ---- two operands ---- */

#define LOOP2(TO, EXPR)                                                                            \
  {                                                                                                \
    TO *out = to;                                                                                  \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                          \
      ELEMENT a = x[i], b = y[i];                                                                  \
      out[i] = (TO)(EXPR);                                                                         \
    }                                                                                              \
  }

/* Comparisons give 0 or 1 in the arithmetic's own type, so that all loops have one shape. */
#define DEFINE_BINARY(SUFFIX, CLONES)                                                              \
  CLONES static void SUFFIX##_add(ARGS) LOOP2(ELEMENT, PLUS(a, b));                                \
  CLONES static void SUFFIX##_sub(ARGS) LOOP2(ELEMENT, MINUS(a, b));                               \
  CLONES static void SUFFIX##_mul(ARGS) LOOP2(ELEMENT, TIMES(a, b));                               \
  CLONES static void SUFFIX##_max(ARGS) LOOP2(ELEMENT, a > b || a != a ? a : b);                   \
  CLONES static void SUFFIX##_min(ARGS) LOOP2(ELEMENT, a < b || a != a ? a : b);                   \
  CLONES static void SUFFIX##_eq(ARGS) LOOP2(ELEMENT, a == b);                                     \
  CLONES static void SUFFIX##_ne(ARGS) LOOP2(ELEMENT, a != b);                                     \
  CLONES static void SUFFIX##_lt(ARGS) LOOP2(ELEMENT, a < b);                                      \
  CLONES static void SUFFIX##_le(ARGS) LOOP2(ELEMENT, a <= b);                                     \
  CLONES static void SUFFIX##_gt(ARGS) LOOP2(ELEMENT, a > b);                                      \
  CLONES static void SUFFIX##_ge(ARGS) LOOP2(ELEMENT, a >= b)
#define ARGS ELEMENT *to, const ELEMENT *x, const ELEMENT *y, int64_t n

#define PLUS(a, b) ((a) + (b))
#define MINUS(a, b) ((a) - (b))
#define TIMES(a, b) ((a) * (b))
#define ELEMENT float
DEFINE_BINARY(f32, CR_CLONES);
CR_CLONES static void f32_div(ARGS) LOOP2(float, a / b) static void f32_pow(ARGS)
    LOOP2(float, pow((double)a, (double)b))
#undef ELEMENT
#define ELEMENT double
        DEFINE_BINARY(f64, );
static void f64_div(ARGS) LOOP2(double, a / b) static void f64_pow(ARGS) LOOP2(double, pow(a, b))
#undef ELEMENT
#undef PLUS
#undef MINUS
#undef TIMES

#define PLUS(a, b) ((uint64_t)(a) + (uint64_t)(b))
#define MINUS(a, b) ((uint64_t)(a) - (uint64_t)(b))
#define TIMES(a, b) ((uint64_t)(a) * (uint64_t)(b))
#define ELEMENT int64_t
    DEFINE_BINARY(i64, );
static void i64_pow(ARGS) {
  for (int64_t i = 0; i < n; i++) to[i] = cr__whole_power(x[i], y[i]);
}
#undef ELEMENT

#define ROW2(OP, NAME) [OP] = {f32_##NAME, f64_##NAME, i64_##NAME}
static const struct {
  void (*f32)(float *, const float *, const float *, int64_t);
  void (*f64)(double *, const double *, const double *, int64_t);
  void (*i64)(int64_t *, const int64_t *, const int64_t *, int64_t);
} binary_loops[CR_BINARY_OPS] = {
    [CR_DIV] = {f32_div, f64_div, NULL}, /* of integers it is done in f32 */
    ROW2(CR_ADD, add),
    ROW2(CR_SUB, sub),
    ROW2(CR_MUL, mul),
    ROW2(CR_POW, pow),
    ROW2(CR_MAX, max),
    ROW2(CR_MIN, min),
    ROW2(CR_EQ, eq),
    ROW2(CR_NE, ne),
    ROW2(CR_LT, lt),
    ROW2(CR_LE, le),
    ROW2(CR_GT, gt),
    ROW2(CR_GE, ge),
};

/* Operands that repeat every so many elements (a number, a bias over channels) are loaded once by
 * each thread: the period, or 0 for others. */
static int64_t period(const cr__view *v) {
  int64_t p = v->stride[0] != 0 ? 0 : v->rank == 1 ? 1 : v->rank == 2 ? v->shape[1] : 0;
  return p <= CR__CHUNK ? p : 0;
}

#define DEFINE_BINARY_CHUNKS(SUFFIX, TYPE)                                                         \
  static void binary_##SUFFIX(const cr__view *to, int32_t op, const cr__view *x,                   \
                              const cr__view *y, int64_t total) {                                  \
    int64_t px = period(x), py = period(y);                                                        \
    if (px > 1 && py > 1) px = 0; /* a chunk is whole periods of one of them */                    \
    int64_t p = px > py ? px : py;                                                                 \
    int64_t chunk = p > 1 ? CR__CHUNK / p * p : CR__CHUNK;                                         \
    _Pragma("omp parallel num_threads(cr__threads_for(total))") {                                  \
      TYPE a[CR__CHUNK], b[CR__CHUNK], c[CR__CHUNK];                                               \
      int64_t most = total < chunk ? total : chunk;                                                \
      if (px) cr__load_##SUFFIX(x, 0, most, a);                                                    \
      if (py) cr__load_##SUFFIX(y, 0, most, b);                                                    \
      _Pragma("omp for schedule(static)") for (int64_t start = 0; start < total; start += chunk) { \
        int64_t n = total - start < chunk ? total - start : chunk;                                 \
        TYPE *r = cr__target_##SUFFIX(to, start, c);                                               \
        binary_loops[op].SUFFIX(r, px ? a : cr__load_##SUFFIX(x, start, n, a),                     \
                                py ? b : cr__load_##SUFFIX(y, start, n, b), n);                    \
        cr__store_##SUFFIX(to, start, n, r);                                                       \
      }                                                                                            \
    }                                                                                              \
  }
DEFINE_BINARY_CHUNKS(f32, float)
DEFINE_BINARY_CHUNKS(f64, double)
DEFINE_BINARY_CHUNKS(i64, int64_t)

static int binary_views(const cr__view *to, int32_t op, const cr__view *x, const cr__view *y,
                        arithmetic in, int64_t total) {
  if (in == IN_F32) {
    binary_f32(to, op, x, y, total);
  } else if (in == IN_F64) {
    binary_f64(to, op, x, y, total);
  } else {
    binary_i64(to, op, x, y, total);
  }
  return CR_OK;
}

int cr__cpu_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view x = cr__view_of(a, out->rank, out->shape);
  cr__view y = cr__view_of(b, out->rank, out->shape);
  arithmetic in = arithmetic_of(cr__promote(a->dtype, b->dtype));
  if (in == IN_I64 && op == CR_DIV) in = IN_F32;
  return binary_views(&to, op, &x, &y, in, cr_numel(out));
}

/* x^2, x^0.5 and the like, which pow would take a hundred times as long for. */
static int easy_power(double exponent) {
  if (exponent == 2.0) return CR_SQUARE;
  if (exponent == 0.5) return CR_SQRT;
  if (exponent == -0.5) return CR_RSQRT;
  return exponent == -1.0 ? CR_RECIPROCAL : -1;
}

int cr__cpu_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b,
                          int32_t reversed) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view x = cr__view_of(a, out->rank, out->shape);
  arithmetic in = arithmetic_of(cr__scalar_arithmetic(op, a->dtype, b));
  if (op >= CR_EQ && !cr__is_float(a->dtype) && in == IN_F32) in = IN_F64; /* i32 against 0.5 */
  if (op == CR_POW && !reversed && in == IN_F32 && easy_power(b) >= 0 && cr__is_float(a->dtype)) {
    return cr__cpu_unary(out, easy_power(b), a);
  }
  union {
    double f64;
    int64_t i64;
  } value;
  cr__view y = {.base = (char *)&value,
                .dtype = in == IN_I64 ? CR_I64 : CR_F64,
                .size = 8,
                .rank = 1,
                .shape = {cr_numel(out)},
                .stride = {0}};
  if (in == IN_I64) {
    value.i64 = b >= 0x1p63 ? INT64_MAX : b < -0x1p63 ? INT64_MIN : (int64_t)b;
  } else {
    value.f64 = b;
  }
  return reversed ? binary_views(&to, op, &y, &x, in, cr_numel(out))
                  : binary_views(&to, op, &x, &y, in, cr_numel(out));
}

CR_CLONES static void clamp_f32(float *out, const float *in, int64_t n, float low, float high) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float x = in[i] < low ? low : in[i];
    out[i] = x > high ? high : x;
  }
}

int cr__cpu_clamp(cr_tensor *out, const cr_tensor *x, double low, double high) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, out->rank, out->shape);
  arithmetic in = arithmetic_of(x->dtype);
  int64_t least = low <= -0x1p63 ? INT64_MIN : low >= 0x1p63 ? INT64_MAX : (int64_t)ceil(low);
  int64_t most = high >= 0x1p63 ? INT64_MAX : high <= -0x1p63 ? INT64_MIN : (int64_t)floor(high);
  int64_t total = cr_numel(out);
  EACH_CHUNK {
    int64_t n = CHUNK_SIZE;
    if (in == IN_F32) {
      float a[CR__CHUNK], b[CR__CHUNK];
      float *r = cr__target_f32(&to, start, b);
      clamp_f32(r, cr__load_f32(&from, start, n, a), n, (float)low, (float)high);
      cr__store_f32(&to, start, n, r);
    } else if (in == IN_F64) {
      double a[CR__CHUNK], b[CR__CHUNK];
      const double *p = cr__load_f64(&from, start, n, a);
      double *r = cr__target_f64(&to, start, b);
      for (int64_t i = 0; i < n; i++) {
        double v = p[i] < low ? low : p[i];
        r[i] = v > high ? high : v;
      }
      cr__store_f64(&to, start, n, r);
    } else {
      int64_t a[CR__CHUNK], b[CR__CHUNK];
      const int64_t *p = cr__load_i64(&from, start, n, a);
      int64_t *r = cr__target_i64(&to, start, b);
      for (int64_t i = 0; i < n; i++) {
        int64_t v = p[i] < least ? least : p[i];
        r[i] = v > most ? most : v;
      }
      cr__store_i64(&to, start, n, r);
    }
  }
  return CR_OK;
}

/* ---- several operands ---- */

CR_CLONES static void scaled_f32(float *sum, const float *x, int64_t n, float c, bool first) {
  if (first) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sum[i] = c * x[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sum[i] += c * x[i];
  }
}

int cr__cpu_lincomb(cr_tensor *out, int32_t count, const cr_tensor *const *xs,
                    const double *coefficients) {
  cr__view to = cr__view_of(out, out->rank, out->shape), from[16];
  bool wide = false;
  for (int32_t k = 0; k < count; k++) {
    from[k] = cr__view_of(xs[k], out->rank, out->shape);
    wide = wide || xs[k]->dtype == CR_F64;
  }
  int64_t total = cr_numel(out);
  EACH_CHUNK {
    int64_t n = CHUNK_SIZE;
    /* The sum has a buffer of its own, since `out` may be any of the xs. */
    if (wide) {
      double a[CR__CHUNK], sum[CR__CHUNK];
      for (int32_t k = 0; k < count; k++) {
        const double *p = cr__load_f64(&from[k], start, n, a);
        double c = coefficients[k];
        for (int64_t i = 0; i < n; i++) sum[i] = k == 0 ? c * p[i] : sum[i] + c * p[i];
      }
      cr__store_f64(&to, start, n, sum);
    } else {
      float a[CR__CHUNK], sum[CR__CHUNK];
      for (int32_t k = 0; k < count; k++) {
        scaled_f32(sum, cr__load_f32(&from[k], start, n, a), n, (float)coefficients[k], k == 0);
      }
      cr__store_f32(&to, start, n, sum);
    }
  }
  return CR_OK;
}

int cr__cpu_where(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a,
                  const cr_tensor *b) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view which = cr__view_of(condition, out->rank, out->shape);
  cr__view x = cr__view_of(a, out->rank, out->shape);
  cr__view y = cr__view_of(b, out->rank, out->shape);
  arithmetic in = arithmetic_of(out->dtype);
  int64_t total = cr_numel(out);
  EACH_CHUNK {
    int64_t n = CHUNK_SIZE;
    float c[CR__CHUNK];
    const float *w = cr__load_f32(&which, start, n, c);
    if (in == IN_F32) {
      float p[CR__CHUNK], q[CR__CHUNK], r[CR__CHUNK];
      const float *u = cr__load_f32(&x, start, n, p), *v = cr__load_f32(&y, start, n, q);
      for (int64_t i = 0; i < n; i++) r[i] = w[i] != 0.0f ? u[i] : v[i];
      cr__store_f32(&to, start, n, r);
    } else if (in == IN_F64) {
      double p[CR__CHUNK], q[CR__CHUNK], r[CR__CHUNK];
      const double *u = cr__load_f64(&x, start, n, p), *v = cr__load_f64(&y, start, n, q);
      for (int64_t i = 0; i < n; i++) r[i] = w[i] != 0.0f ? u[i] : v[i];
      cr__store_f64(&to, start, n, r);
    } else {
      int64_t p[CR__CHUNK], q[CR__CHUNK], r[CR__CHUNK];
      const int64_t *u = cr__load_i64(&x, start, n, p), *v = cr__load_i64(&y, start, n, q);
      for (int64_t i = 0; i < n; i++) r[i] = w[i] != 0.0f ? u[i] : v[i];
      cr__store_i64(&to, start, n, r);
    }
  }
  return CR_OK;
}
