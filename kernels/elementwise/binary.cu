/* Operations on two operands, or on one and a number, and GEGLU. Computed in float, double or
 * int64, depending on the dtypes (crescent.h, cr_binary); comparisons give 0 or 1 in the type that
 * they are computed in. */
#include "base/arithmetic.h"
#include "elementwise/elementwise.h"

/* a * gelu(b), which is not an operation of the header. */
enum { GEGLU = CR_BINARY_OPS };

/* g Phi(g); CUDA's erff would take longer than the memory accesses. */
__device__ __forceinline__ float gelu(float g) {
  float z = fminf(fmaxf(g * 0.707106781f, -3.925f), 3.925f), p, q;
  cr__erf_fit(z, &p, &q);
  float half = 0.5f * g;
  /* Below -5.55 the tail is 0, for -inf, too. fmaxf drops a nan, so the sum has to carry it. */
  return g < -5.55f ? -0.0f : half + half * (z * p * crk_reciprocal(q));
}
__device__ __forceinline__ double gelu(double g) {
  return 0.5 * g * erfc(-g * 0.70710678118654752440);
}

__device__ __forceinline__ float cr__pow_f32(float a, float b) { return pow(a, b); }

/* compute<OP>(a, b) in each type for which an operation has a form. */
template <int OP> __device__ __forceinline__ float compute(float a, float b);
template <int OP> __device__ __forceinline__ double compute(double a, double b);
template <int OP> __device__ __forceinline__ int64_t compute(int64_t a, int64_t b);
#define COMPUTE(OP, FORMULA, TYPE)                                                                 \
  template <> __device__ __forceinline__ TYPE compute<OP>(TYPE a, TYPE b) { return FORMULA(a, b); }
#define FLOATS(OP, NAME) COMPUTE(OP, cr__##NAME##_f32, float) COMPUTE(OP, cr__##NAME##_f64, double)
#define INTEGERS(OP, NAME) COMPUTE(OP, cr__##NAME##_i64, int64_t)
#define ROW(OP, NAME, KINDS, RESULT)                                                               \
  CR_FLOAT_FORM(KINDS, FLOATS, OP, NAME) CR_INTEGER_FORM(KINDS, INTEGERS, OP, NAME)
CR_BINARY_TABLE(ROW)
#undef ROW
#define PRODUCT_WITH_GELU(A, B) ((A)*gelu(B))
COMPUTE(GEGLU, PRODUCT_WITH_GELU, float)
COMPUTE(GEGLU, PRODUCT_WITH_GELU, double)

template <int OP> constexpr bool compares = CR__IN(CR__COMPARISONS, OP);

template <int OP> struct two {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[2]) const {
    return compute<OP>(x[0], x[1]);
  }
};

/* The other operand is a number: the second one, or the first if `reversed`. */
template <int OP, typename A> struct with_number {
  A number;
  bool reversed;
  __device__ __forceinline__ A operator()(const A (&x)[1]) const {
    return reversed ? compute<OP>(number, x[0]) : compute<OP>(x[0], number);
  }
};

/* The work, except for the operation. */
typedef struct work {
  crk_device *d;
  crk_plan plan; /* merged */
  crk_dtypes dtypes;
  int in; /* CRK_IN_* */
  double number;
  int64_t whole;
  bool reversed;
} work;

template <int OP, typename T> static void on_vectors(const work *w) {
  typedef std::conditional_t<compares<OP>, crk_bool, T> TO;
  if (w->plan.operands == 3)
    crk_map_vectors<TO, T, 2>(w->d, &w->plan, w->dtypes, two<OP>());
  else
    crk_map_vectors<TO, T, 1>(w->d, &w->plan, w->dtypes,
                              with_number<OP, float>{(float)w->number, w->reversed});
}

template <int OP, typename A> static void on_elements(const work *w, A number) {
  if (w->plan.operands == 3)
    crk_map_elements<A, 2>(w->d, &w->plan, w->dtypes, two<OP>());
  else
    crk_map_elements<A, 1>(w->d, &w->plan, w->dtypes, with_number<OP, A>{number, w->reversed});
}

template <int OP> static void run(const work *w) {
  const int32_t *of = w->dtypes.of;
  bool same = (w->plan.operands == 2 || of[1] == of[2]) &&
              of[0] == (compares<OP> ? (int32_t)CR_BOOL : of[1]);
  if (same && of[1] == CR_F32)
    on_vectors<OP, float>(w);
  else if (same && of[1] == CR_F16)
    on_vectors<OP, __half>(w);
  else if (same && of[1] == CR_BF16)
    on_vectors<OP, __nv_bfloat16>(w);
  else if (w->in == CRK_IN_F32)
    on_elements<OP, float>(w, (float)w->number);
  else if (w->in == CRK_IN_F64)
    on_elements<OP, double>(w, w->number);
  else if constexpr (CR__IN(CR__BINARY_OF_INTEGERS, OP)) /* others are computed in f32 */
    on_elements<OP, int64_t>(w, w->whole);
}

#define CASE(OP, ...)                                                                              \
  case OP:                                                                                         \
    run<OP>(w);                                                                                    \
    return crk_launched(name, w->d);

static int start(const char *name, int32_t op, const work *w) {
  switch (op) {
    CR_BINARY_TABLE(CASE)
    CASE(GEGLU)
  }
  return cr__backend_lacks(cr_binary_name(op), w->d->device);
}

int crk_binary(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b) {
  CRK_DEVICE(d, "binary", out);
  if (cr_numel(out) == 0) return CR_OK;
  work w = {d};
  w.plan = crk_map_plan({out, a, b}, &w.dtypes);
  w.in = CRK_IN_I64;
  if (a->dtype == CR_F64 || b->dtype == CR_F64)
    w.in = CRK_IN_F64;
  else if (cr__is_float(a->dtype) || cr__is_float(b->dtype) || !CR__IN(CR__BINARY_OF_INTEGERS, op))
    w.in = CRK_IN_F32;
  return start("binary", op, &w);
}

int crk_binary_scalar(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed) {
  CRK_DEVICE(d, "binary", out);
  if (cr_numel(out) == 0) return CR_OK;
  bool is_float = cr__is_float(a->dtype);
  if (op == CR_POW && !reversed && is_float && a->dtype != CR_F64 && cr__power_as_unary(b) >= 0)
    return crk_unary(out, cr__power_as_unary(b), a);
  /* Integers and a fractional number: comparisons are computed in double, others in float; the
   * result's dtype says which. */
  int in = crk_arithmetic_of(a->dtype);
  if (!is_float) {
    if (CR__IN(CR__COMPARISONS, op))
      in = isfinite(b) && b == floor(b) ? CRK_IN_I64 : CRK_IN_F64;
    else
      in = crk_arithmetic_of(out->dtype);
  }
  work w = {d};
  w.plan = crk_map_plan({out, a}, &w.dtypes);
  w.in = in;
  w.number = b;
  w.reversed = reversed != 0;
  if (in == CRK_IN_I64) w.whole = b >= 0x1p63 ? INT64_MAX : b < -0x1p63 ? INT64_MIN : (int64_t)b;
  return start("binary", op, &w);
}

/* The two halves of x's last dimension are operands of the result's shape. */
int crk_geglu(cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "geglu", out);
  if (cr_numel(out) == 0) return CR_OK;
  cr_tensor a = *x, g = *x;
  int32_t last = x->rank - 1;
  a.shape[last] = g.shape[last] = out->shape[last];
  g.offset += out->shape[last] * x->stride[last];
  work w = {d};
  w.plan = crk_map_plan({out, &a, &g}, &w.dtypes);
  w.in = crk_arithmetic_of(x->dtype);
  return start("geglu", GEGLU, &w);
}
