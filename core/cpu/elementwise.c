/* Elementwise operations on the CPU.
 *
 * Arithmetic is done in one of three types: float (for f32, f16 and bf16), double (if an operand is
 * f64) or int64 (if all operands are integers). Chunks are loaded as that type (view.h), a loop
 * computes them, and the result is stored as the output's type. Every element is computed
 * independently, so the result does not depend on strides or the number of threads. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* allows FMA; see vmath.h */
#endif
#include <math.h>

#include "base/arithmetic.h"
#include "base/backend.h"
#include "base/dtype.h"
#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/view.h"

typedef enum { IN_F32, IN_F64, IN_I64 } arithmetic;

static arithmetic arithmetic_of(int32_t dtype) {
  if (dtype == CR_F64) return IN_F64;
  return cr__is_float(dtype) ? IN_F32 : IN_I64;
}

/* Returns the number of elements after which an operand repeats, at most a chunk; 0: it does not
 * repeat. */
static int64_t period(const cr__view *v) {
  int64_t p = v->stride[0] != 0 ? 0 : v->rank == 1 ? 1 : v->rank == 2 ? v->shape[1] : 0;
  return p <= CR__CHUNK ? p : 0;
}

#define FORM CR_FLOAT_FORM
#define TYPE float
#define F(NAME) NAME##_f32
#define CLONES CR_CLONES
#include "cpu/elementwise_typed.h"
#undef TYPE
#undef F
#undef CLONES

#define TYPE double
#define F(NAME) NAME##_f64
#define CLONES
#include "cpu/elementwise_typed.h"
#undef FORM
#undef TYPE
#undef F

#define FORM CR_INTEGER_FORM
#define TYPE int64_t
#define F(NAME) NAME##_i64
#include "cpu/elementwise_typed.h"

/* ---- one operand ---- */

CR_CLONES static bool all_small(const float *in, int64_t n) {
  int32_t large = 0;
#pragma omp simd reduction(| : large)
  for (int64_t i = 0; i < n; i++) large |= !(fabsf(in[i]) < 1e6f);
  return large == 0;
}

/* A chunk with numbers beyond vmath.h's range uses the C library's sine and cosine. */
static void any_sin(float *out, const float *in, int64_t n) {
  if (all_small(in, n)) {
    sin_of_f32(out, in, n);
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = (float)sin((double)in[i]);
  }
}

static void any_cos(float *out, const float *in, int64_t n) {
  if (all_small(in, n)) {
    cos_of_f32(out, in, n);
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = (float)cos((double)in[i]);
  }
}

static unary_loop_f32 *unary_loop_of(int32_t op) {
  return op == CR_SIN ? any_sin : op == CR_COS ? any_cos : unary_loops_f32[op];
}

int cr__cpu_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, out->rank, out->shape);
  arithmetic in = arithmetic_of(x->dtype);
  if (in == IN_I64 && !CR__IN(CR__UNARY_OF_INTEGERS, op)) in = IN_F32;
  int64_t total = cr_numel(out);
  if (in == IN_F32 && unary_loop_of(op)) {
    unary_f32(&to, &from, total, unary_loop_of(op));
  } else if (in == IN_F64 && unary_loops_f64[op]) {
    unary_f64(&to, &from, total, unary_loops_f64[op]);
  } else if (in == IN_I64 && unary_loops_i64[op]) {
    unary_i64(&to, &from, total, unary_loops_i64[op]);
  } else {
    return cr__backend_lacks(cr_unary_name(op), CR_CPU);
  }
  return CR_OK;
}

/* ---- two operands ---- */

static int binary(const cr__view *to, int32_t op, const cr__view *x, const cr__view *y,
                  arithmetic in, int64_t total) {
  if (in == IN_F32 && binary_loops_f32[op]) {
    binary_f32(to, x, y, total, binary_loops_f32[op]);
  } else if (in == IN_F64 && binary_loops_f64[op]) {
    binary_f64(to, x, y, total, binary_loops_f64[op]);
  } else if (in == IN_I64 && binary_loops_i64[op]) {
    binary_i64(to, x, y, total, binary_loops_i64[op]);
  } else {
    return cr__backend_lacks(cr_binary_name(op), CR_CPU);
  }
  return CR_OK;
}

int cr__cpu_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view x = cr__view_of(a, out->rank, out->shape);
  cr__view y = cr__view_of(b, out->rank, out->shape);
  arithmetic in = arithmetic_of(cr__promote(a->dtype, b->dtype));
  if (in == IN_I64 && !CR__IN(CR__BINARY_OF_INTEGERS, op)) in = IN_F32;
  return binary(&to, op, &x, &y, in, cr_numel(out));
}

/* Converts a number to an integer; numbers beyond int64 become the nearest one. */
static int64_t to_integer(double b) {
  return b >= 0x1p63 ? INT64_MAX : b < -0x1p63 ? INT64_MIN : (int64_t)b;
}

int cr__cpu_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b,
                          int32_t reversed) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view x = cr__view_of(a, out->rank, out->shape);
  arithmetic in = arithmetic_of(cr__scalar_arithmetic(op, a->dtype, b));
  bool integers = !cr__is_float(a->dtype);
  if (CR__IN(CR__COMPARISONS, op) && integers && in == IN_F32)
    in = IN_F64; /* compares an i32 with 0.5, for example */
  int power = op == CR_POW && !reversed && in == IN_F32 && !integers ? cr__power_as_unary(b) : -1;
  if (power >= 0) return cr__cpu_unary(out, power, a);
  union {
    double f64;
    int64_t i64;
  } value = {.f64 = b};
  if (in == IN_I64) value.i64 = to_integer(b);
  cr__view y = {.base = (char *)&value,
                .dtype = in == IN_I64 ? CR_I64 : CR_F64,
                .size = 8,
                .rank = 1,
                .shape = {cr_numel(out)},
                .stride = {0}};
  return reversed ? binary(&to, op, &y, &x, in, cr_numel(out))
                  : binary(&to, op, &x, &y, in, cr_numel(out));
}

int cr__cpu_clamp(cr_tensor *out, const cr_tensor *x, double low, double high) {
  cr__view to = cr__view_of(out, out->rank, out->shape);
  cr__view from = cr__view_of(x, out->rank, out->shape);
  arithmetic in = arithmetic_of(x->dtype);
  int64_t total = cr_numel(out);
  if (in == IN_F32) {
    clamp_f32(&to, &from, total, (float)low, (float)high);
  } else if (in == IN_F64) {
    clamp_f64(&to, &from, total, low, high);
  } else {
    clamp_i64(&to, &from, total, to_integer(ceil(low)), to_integer(floor(high)));
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
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(total))
  for (int64_t start = 0; start < total; start += CR__CHUNK) {
    int64_t n = total - start < CR__CHUNK ? total - start : CR__CHUNK;
    /* The sum has its own buffer, since `out` may be any of the xs. */
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
  if (in == IN_F32) {
    where_f32(&to, &which, &x, &y, total);
  } else if (in == IN_F64) {
    where_f64(&to, &which, &x, &y, total);
  } else {
    where_i64(&to, &which, &x, &y, total);
  }
  return CR_OK;
}
