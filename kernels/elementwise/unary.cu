/* Operations on one operand. Floats of up to 32 bits are computed in float by the precise functions
 * of CUDA's library (1 to 4 ulp), f64 in double, integers in int64 (wrapping). */
#include "elementwise/elementwise.h"

template <int OP> __device__ __forceinline__ float compute(float x) {
  if constexpr (OP == CR_NEG) return -x;
  if constexpr (OP == CR_ABS) return fabsf(x);
  if constexpr (OP == CR_EXP) return expf(x);
  if constexpr (OP == CR_LOG) return logf(x);
  if constexpr (OP == CR_LOG10) return log10f(x);
  if constexpr (OP == CR_SQRT) return sqrtf(x);
  if constexpr (OP == CR_RSQRT) return rsqrtf(x);
  if constexpr (OP == CR_SIN) return sinf(x);
  if constexpr (OP == CR_COS) return cosf(x);
  if constexpr (OP == CR_TANH) return tanhf(x);
  if constexpr (OP == CR_ERF) return erff(x);
  if constexpr (OP == CR_SIGMOID) {
    float e = expf(-fabsf(x)); /* never overflows, and keeps the small side's precision */
    return (x >= 0.0f ? 1.0f : e) * crk_reciprocal(1.0f + e);
  }
  if constexpr (OP == CR_SILU) {
    float e = expf(-fabsf(x));
    float y = x < -104.0f ? -0.0f : x; /* -inf * 0 */
    return (x >= 0.0f ? y : y * e) * crk_reciprocal(1.0f + e);
  }
  /* erfc, so that nothing cancels in the tail; past -14.8 it is below float's numbers. */
  if constexpr (OP == CR_GELU)
    return x < -14.8f ? -0.0f : 0.5f * x * erfcf(x * -0.70710678118654752f);
  if constexpr (OP == CR_RELU) return x < 0.0f ? 0.0f : x;
  if constexpr (OP == CR_FLOOR) return floorf(x);
  if constexpr (OP == CR_CEIL) return ceilf(x);
  if constexpr (OP == CR_TRUNC) return truncf(x);
  if constexpr (OP == CR_ROUND) return rintf(x);
  if constexpr (OP == CR_SQUARE) return x * x;
  if constexpr (OP == CR_RECIPROCAL) return 1.0f / x;
}

template <int OP> __device__ __forceinline__ double compute(double x) {
  if constexpr (OP == CR_NEG) return -x;
  if constexpr (OP == CR_ABS) return fabs(x);
  if constexpr (OP == CR_EXP) return exp(x);
  if constexpr (OP == CR_LOG) return log(x);
  if constexpr (OP == CR_LOG10) return log10(x);
  if constexpr (OP == CR_SQRT) return sqrt(x);
  if constexpr (OP == CR_RSQRT) return 1.0 / sqrt(x);
  if constexpr (OP == CR_SIN) return sin(x);
  if constexpr (OP == CR_COS) return cos(x);
  if constexpr (OP == CR_TANH) return tanh(x);
  if constexpr (OP == CR_ERF) return erf(x);
  if constexpr (OP == CR_SIGMOID) {
    double e = exp(-fabs(x));
    return (x >= 0 ? 1.0 : e) / (1.0 + e);
  }
  if constexpr (OP == CR_SILU) {
    double e = exp(-fabs(x)), y = x < -750 ? -0.0 : x;
    return (x >= 0 ? y : y * e) / (1.0 + e);
  }
  if constexpr (OP == CR_GELU) return x < -40 ? -0.0 : 0.5 * x * erfc(x * -0.70710678118654752440);
  if constexpr (OP == CR_RELU) return x < 0 ? 0.0 : x;
  if constexpr (OP == CR_FLOOR) return floor(x);
  if constexpr (OP == CR_CEIL) return ceil(x);
  if constexpr (OP == CR_TRUNC) return trunc(x);
  if constexpr (OP == CR_ROUND) return rint(x);
  if constexpr (OP == CR_SQUARE) return x * x;
  if constexpr (OP == CR_RECIPROCAL) return 1.0 / x;
}

template <int OP> __device__ __forceinline__ int64_t compute(int64_t x) {
  uint64_t u = (uint64_t)x; /* wraps */
  if constexpr (OP == CR_NEG) return (int64_t)(0 - u);
  if constexpr (OP == CR_ABS) return x < 0 ? (int64_t)(0 - u) : x;
  if constexpr (OP == CR_RELU) return x < 0 ? 0 : x;
  if constexpr (OP == CR_SQUARE) return (int64_t)(u * u);
  if constexpr (OP == CR_NOT) return x == 0;
}

template <int OP> struct one {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[1]) const {
    return compute<OP>(x[0]);
  }
};

/* SiLU for the half types in half as many steps: its error, 1e-6 of the result, is below theirs,
 * and the memory stays the limit. */
struct quick_silu {
  __device__ __forceinline__ float operator()(const float (&x)[1]) const {
    float y = x[0] * crk_reciprocal(1.0f + exp2f(x[0] * -1.44269504f));
    return x[0] < -104.0f ? -0.0f : y; /* -inf * 0 */
  }
};

/* What a half type is given to. */
template <int OP> using of_half = std::conditional_t<OP == CR_SILU, quick_silu, one<OP>>;

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
  else
    crk_map_elements<float, 1>(d, p, dtypes, one<OP>());
}

template <int OP> static void on_integers(crk_device *d, const crk_plan *p, crk_dtypes dtypes) {
  crk_map_elements<int64_t, 1>(d, p, dtypes, one<OP>());
}

#define CASE(OP)                                                                                   \
  case OP:                                                                                         \
    on_floats<OP>(d, &p, dtypes, x->dtype);                                                        \
    break;
#define INTEGER_CASE(OP)                                                                           \
  case OP:                                                                                         \
    on_integers<OP>(d, &p, dtypes);                                                                \
    break;

int crk_unary(cr_tensor *out, int32_t op, const cr_tensor *x) {
  CRK_DEVICE(d, "unary", x);
  if (cr_numel(out) == 0) return CR_OK;
  const cr_tensor *operands[] = {out, x};
  crk_plan p = crk_plan_of(2, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  crk_dtypes dtypes = {{out->dtype, x->dtype}};
  if (!cr__is_float(x->dtype)) {
    switch (op) {
      INTEGER_CASE(CR_NEG)
      INTEGER_CASE(CR_ABS)
      INTEGER_CASE(CR_RELU)
      INTEGER_CASE(CR_SQUARE)
      INTEGER_CASE(CR_NOT)
    }
    return crk_launched("unary", d);
  }
  switch (op) {
    CASE(CR_NEG)
    CASE(CR_ABS)
    CASE(CR_EXP)
    CASE(CR_LOG)
    CASE(CR_LOG10)
    CASE(CR_SQRT)
    CASE(CR_RSQRT)
    CASE(CR_SIN)
    CASE(CR_COS)
    CASE(CR_TANH)
    CASE(CR_ERF)
    CASE(CR_SIGMOID)
    CASE(CR_SILU)
    CASE(CR_GELU)
    CASE(CR_RELU)
    CASE(CR_FLOOR)
    CASE(CR_CEIL)
    CASE(CR_TRUNC)
    CASE(CR_ROUND)
    CASE(CR_SQUARE)
    CASE(CR_RECIPROCAL)
  }
  return crk_launched("unary", d);
}
