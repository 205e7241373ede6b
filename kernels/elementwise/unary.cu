/* Operations on one operand. Floats of up to 32 bits are computed in float by the precise functions
 * of CUDA's library (1 to 4 ulp), f64 in double, integers in int64 (wrapping). */
#include "base/arithmetic.h"
#include "elementwise/elementwise.h"

/* Our own float forms; the others are in arithmetic.h. */
#define FLOAT(NAME, EXPR)                                                                          \
  __device__ __forceinline__ float cr__##NAME##_f32(float x) { return EXPR; }
FLOAT(exp, expf(x))
FLOAT(log, logf(x))
FLOAT(log10, log10f(x))
FLOAT(log2, log2f(x))
FLOAT(log1p, log1pf(x))
FLOAT(expm1, expm1f(x))
FLOAT(rsqrt, rsqrtf(x))
FLOAT(sin, sinf(x))
FLOAT(cos, cosf(x))
FLOAT(tanh, tanhf(x))
FLOAT(erf, erff(x))
/* erfc, so that nothing cancels in the tail; below -14.8 the result underflows */
FLOAT(gelu, x < -14.8f ? -0.0f : 0.5f * x * erfcf(x * -0.70710678118654752f))
#undef FLOAT

__device__ __forceinline__ float cr__sigmoid_f32(float x) {
  float e = expf(-fabsf(x)); /* never overflows, and stays precise for small results */
  return (x >= 0.0f ? 1.0f : e) * crk_reciprocal(1.0f + e);
}

__device__ __forceinline__ float cr__silu_f32(float x) {
  float e = expf(-fabsf(x));
  float y = x < -104.0f ? -0.0f : x; /* -inf * 0 */
  return (x >= 0.0f ? y : y * e) * crk_reciprocal(1.0f + e);
}

/* compute<OP>(x) in each type for which an operation has a form. */
template <int OP> __device__ __forceinline__ float compute(float x);
template <int OP> __device__ __forceinline__ double compute(double x);
template <int OP> __device__ __forceinline__ int64_t compute(int64_t x);
#define COMPUTE(OP, FORMULA, TYPE)                                                                 \
  template <> __device__ __forceinline__ TYPE compute<OP>(TYPE x) { return FORMULA(x); }
#define FLOATS(OP, NAME) COMPUTE(OP, cr__##NAME##_f32, float) COMPUTE(OP, cr__##NAME##_f64, double)
#define INTEGERS(OP, NAME) COMPUTE(OP, cr__##NAME##_i64, int64_t)
#define ROW(OP, NAME, KINDS)                                                                       \
  CR_FLOAT_FORM(KINDS, FLOATS, OP, NAME) CR_INTEGER_FORM(KINDS, INTEGERS, OP, NAME)
CR_UNARY_TABLE(ROW)
#undef ROW

template <int OP> struct one {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[1]) const {
    return compute<OP>(x[0]);
  }
};

/* SiLU for the half types in half as many instructions: its relative error, 1e-6, is below theirs,
 * and the kernel stays memory-bound. */
struct quick_silu {
  __device__ __forceinline__ float operator()(const float (&x)[1]) const {
    float y = x[0] * crk_reciprocal(1.0f + exp2f(x[0] * -1.44269504f));
    return x[0] < -104.0f ? -0.0f : y; /* -inf * 0 */
  }
};

/* The functor for half types. */
template <int OP> using of_half = std::conditional_t<OP == CR_SILU, quick_silu, one<OP>>;

/* For bytes as floats; `truth`: they are bools. */
template <int OP> struct of_byte {
  bool truth;
  __device__ __forceinline__ float operator()(const float (&x)[1]) const {
    const float value[1] = {truth ? (float)(x[0] != 0.0f) : x[0]};
    return one<OP>()(value);
  }
};

template <int OP>
static void on_floats(crk_device *d, const crk_plan *p, crk_dtypes dtypes, int32_t from) {
  bool same = dtypes.of[0] == from && dtypes.of[1] == from;
  if (from == CR_F64)
    crk_map_elements<double, 1>(d, p, dtypes, one<OP>());
  else if (same && from == CR_F32)
    crk_map_vectors<float, float, 1>(d, p, dtypes, one<OP>());
  else if (same && from == CR_F16)
    crk_map_vectors<__half, __half, 1>(d, p, dtypes, of_half<OP>());
  else if (same && from == CR_BF16)
    crk_map_vectors<__nv_bfloat16, __nv_bfloat16, 1>(d, p, dtypes, of_half<OP>());
  else if (dtypes.of[0] == CR_F32 && (from == CR_BOOL || from == CR_U8))
    crk_map_vectors<float, uint8_t, 1>(d, p, dtypes, of_byte<OP>{from == CR_BOOL});
  else
    crk_map_elements<float, 1>(d, p, dtypes, one<OP>());
}

template <int OP> static void on_integers(crk_device *d, const crk_plan *p, crk_dtypes dtypes) {
  crk_map_elements<int64_t, 1>(d, p, dtypes, one<OP>());
}

#define FLOAT_CASE(OP)                                                                             \
  case OP:                                                                                         \
    on_floats<OP>(d, &p, dtypes, x->dtype);                                                        \
    return crk_launched("unary", d);
#define INTEGER_CASE(OP)                                                                           \
  case OP:                                                                                         \
    on_integers<OP>(d, &p, dtypes);                                                                \
    return crk_launched("unary", d);
#define IF_FLOAT(OP, NAME, KINDS) CR_FLOAT_FORM(KINDS, FLOAT_CASE, OP)
#define IF_INTEGER(OP, NAME, KINDS) CR_INTEGER_FORM(KINDS, INTEGER_CASE, OP)

int crk_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  CRK_DEVICE(d, "unary", x);
  if (cr_numel(out) == 0) return CR_OK;
  crk_dtypes dtypes;
  crk_plan p = crk_map_plan({out, x}, &dtypes);
  if (cr__is_float(x->dtype) || !CR__IN(CR__UNARY_OF_INTEGERS, op)) {
    switch (op) { CR_UNARY_TABLE(IF_FLOAT) }
  } else {
    switch (op) { CR_UNARY_TABLE(IF_INTEGER) }
  }
  return cr__backend_lacks(cr_unary_name(op), d->device);
}
