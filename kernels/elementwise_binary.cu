/* Operations on two operands, or on one and a number, and GEGLU. Computed in float, double or int64
 * by the dtypes (crescent.h, cr_binary); comparisons give 0 or 1 in the arithmetic's own type. */
#include "elementwise.h"

/* Wraps; a negative exponent gives the whole part of the true result, 0 for 0. */
__device__ static int64_t whole_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 1 || (base == -1 && exponent % 2 == 0)) return 1;
    return base == -1 ? -1 : 0;
  }
  uint64_t result = 1, square = (uint64_t)base;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= square;
    square *= square;
  }
  return (int64_t)result;
}

/* Not one of the header's: a * gelu(b). */
enum { GEGLU = CR_BINARY_OPS };

/* g Phi(g). In float the tail ends where half an ulp of 1 hides it, for -inf too. */
__device__ __forceinline__ float gelu(float g) { return g < -5.55f ? -0.0f : crk_gelu(g); }
__device__ __forceinline__ double gelu(double g) {
  return 0.5 * g * erfc(-g * 0.70710678118654752440);
}

template <int OP, typename A> __device__ __forceinline__ A compute(A a, A b) {
  constexpr bool whole = std::is_same_v<A, int64_t>;
  typedef std::conditional_t<whole, uint64_t, A> W; /* integers wrap */
  if constexpr (OP == CR_ADD) return (A)((W)a + (W)b);
  if constexpr (OP == CR_SUB) return (A)((W)a - (W)b);
  if constexpr (OP == CR_MUL) return (A)((W)a * (W)b);
  if constexpr (OP == CR_DIV) return a / b;
  if constexpr (OP == CR_POW) {
    if constexpr (whole)
      return whole_power(a, b);
    else
      return pow(a, b);
  }
  if constexpr (OP == CR_MAX) return a > b || a != a ? a : b;
  if constexpr (OP == CR_MIN) return a < b || a != a ? a : b;
  if constexpr (OP == CR_EQ) return (A)(a == b);
  if constexpr (OP == CR_NE) return (A)(a != b);
  if constexpr (OP == CR_LT) return (A)(a < b);
  if constexpr (OP == CR_LE) return (A)(a <= b);
  if constexpr (OP == CR_GT) return (A)(a > b);
  if constexpr (OP == CR_GE) return (A)(a >= b);
  if constexpr (OP == GEGLU) return a * gelu(b);
}

template <int OP> struct two {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[2]) const {
    return compute<OP, A>(x[0], x[1]);
  }
};

template <typename T> static int32_t dtype_of(void);
template <> int32_t dtype_of<float>(void) { return CR_F32; }
template <> int32_t dtype_of<__half>(void) { return CR_F16; }
template <> int32_t dtype_of<__nv_bfloat16>(void) { return CR_BF16; }

template <int OP, typename T>
static bool vectors(crk_device *d, const crk_plan *p, crk_dtypes dtypes, float number) {
  typedef std::conditional_t<(OP >= CR_EQ && OP <= CR_GE), crk_bool, T> TO;
  int32_t dtype = dtype_of<T>();
  if ((p->data[1] && dtypes.of[1] != dtype) || (p->data[2] && dtypes.of[2] != dtype) ||
      dtypes.of[0] != (std::is_same_v<TO, crk_bool> ? (int32_t)CR_BOOL : dtype))
    return false;
  crk_map_vectors<TO, T, 2>(d, p, dtypes, two<OP>(), number);
  return true;
}

template <int OP>
static void run(crk_device *d, const crk_plan *p, crk_dtypes dtypes, int in, double number,
                int64_t whole) {
  if (in == CRK_IN_F32) {
    if (vectors<OP, float>(d, p, dtypes, (float)number) ||
        vectors<OP, __half>(d, p, dtypes, (float)number) ||
        vectors<OP, __nv_bfloat16>(d, p, dtypes, (float)number))
      return;
    crk_map_elements<float, 2>(d, p, dtypes, two<OP>(), (float)number);
  } else if (in == CRK_IN_F64) {
    crk_map_elements<double, 2>(d, p, dtypes, two<OP>(), number);
  } else if constexpr (OP != CR_DIV && OP != GEGLU) { /* of integers DIV is done in f32 */
    crk_map_elements<int64_t, 2>(d, p, dtypes, two<OP>(), whole);
  }
}

#define CASE(OP)                                                                                   \
  case OP:                                                                                         \
    run<OP>(d, p, dtypes, in, number, whole);                                                      \
    break;

/* A merged plan of the result and two operands, one of which may be the number. */
static int binary_plan(const char *name, crk_device *d, int32_t op, const crk_plan *p,
                       crk_dtypes dtypes, int in, double number, int64_t whole) {
  switch (op) {
    CASE(CR_ADD)
    CASE(CR_SUB)
    CASE(CR_MUL)
    CASE(CR_DIV)
    CASE(CR_POW)
    CASE(CR_MAX)
    CASE(CR_MIN)
    CASE(CR_EQ)
    CASE(CR_NE)
    CASE(CR_LT)
    CASE(CR_LE)
    CASE(CR_GT)
    CASE(CR_GE)
    CASE(GEGLU)
  }
  return crk_launched(name, d);
}

int crk_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  CRK_DEVICE(d, "binary", out);
  if (cr_numel(out) == 0) return CR_OK;
  const cr_tensor *operands[] = {out, a, b};
  crk_plan p = crk_plan_of(3, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  crk_dtypes dtypes = {{out->dtype, a->dtype, b->dtype}};
  int in = CRK_IN_I64;
  if (a->dtype == CR_F64 || b->dtype == CR_F64)
    in = CRK_IN_F64;
  else if (cr__is_float(a->dtype) || cr__is_float(b->dtype) || op == CR_DIV)
    in = CRK_IN_F32;
  return binary_plan("binary", d, op, &p, dtypes, in, 0, 0);
}

/* x^2, x^0.5 and the like, which pow would take far longer for. */
static int easy_power(double exponent) {
  if (exponent == 2.0) return CR_SQUARE;
  if (exponent == 0.5) return CR_SQRT;
  if (exponent == -0.5) return CR_RSQRT;
  return exponent == -1.0 ? CR_RECIPROCAL : -1;
}

int crk_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed) {
  CRK_DEVICE(d, "binary", out);
  if (cr_numel(out) == 0) return CR_OK;
  bool is_float = cr__is_float(a->dtype);
  if (op == CR_POW && !reversed && is_float && a->dtype != CR_F64 && easy_power(b) >= 0)
    return crk_unary(out, easy_power(b), a);
  /* Integers against a number that is not whole: compared in double, else computed in float; the
   * result's dtype says which. */
  int in = crk_arithmetic_of(a->dtype);
  if (!is_float) {
    if (op >= CR_EQ)
      in = isfinite(b) && b == floor(b) ? CRK_IN_I64 : CRK_IN_F64;
    else
      in = crk_arithmetic_of(out->dtype);
  }
  int64_t whole = 0;
  if (in == CRK_IN_I64) whole = b >= 0x1p63 ? INT64_MAX : b < -0x1p63 ? INT64_MIN : (int64_t)b;
  const cr_tensor *operands[] = {out, reversed ? NULL : a, reversed ? a : NULL};
  crk_plan p = crk_plan_of(3, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  crk_dtypes dtypes = {{out->dtype, a->dtype, a->dtype}};
  return binary_plan("binary", d, op, &p, dtypes, in, b, whole);
}

/* The halves of x's last dimension are two operands of the result's shape. */
int crk_geglu(cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "geglu", out);
  if (cr_numel(out) == 0) return CR_OK;
  cr_tensor a = *x, g = *x;
  int32_t last = x->rank - 1;
  a.shape[last] = g.shape[last] = out->shape[last];
  g.offset += out->shape[last] * x->stride[last];
  const cr_tensor *operands[] = {out, &a, &g};
  crk_plan p = crk_plan_of(3, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  crk_dtypes dtypes = {{out->dtype, x->dtype, x->dtype}};
  return binary_plan("geglu", d, GEGLU, &p, dtypes, crk_arithmetic_of(x->dtype), 0, 0);
}
