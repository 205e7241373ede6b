/* Elementary functions on float, as static inline functions that the compiler vectorizes inside a
 * loop.
 *
 * Each function is straight-line code (selects, no calls, no branches), so a plain `for` over an
 * array becomes SIMD code. Functions with such loops are declared CR_CLONES, which compiles them
 * for several instruction sets and selects one when the library is loaded. OpenMP regions must stay
 * outside of such functions, since their outlined bodies are not cloned. `#pragma omp simd` inside
 * allows a result to overwrite its operand.
 *
 * Errors were measured over the whole range of float against double: exp, log, tanh 1 ulp; log10,
 * erf, sin, cos 1.5 ulp (sin and cos for |x| < 1e6); sigmoid, silu 2 ulp; gelu 5 ulp. silu and gelu
 * lose bits where the result is below 1e-36. The polynomials are minimax fits (Remez) for the
 * intervals used here. A nan passes through all functions.
 *
 * Files that spend their time here begin with `#pragma GCC optimize("fp-contract=fast")`, which
 * allows FMA: up to twice as fast and not less exact. */
#ifndef CR_CPU_VMATH_H
#define CR_CPU_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Clones are not used with the thread sanitizer: their resolver runs before the sanitizer is
 * initialized. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define CR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CR_CLONES
#endif

static inline float cr__from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static inline uint32_t cr__to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static inline float cr__with_sign(float magnitude, float sign) {
  return cr__from_bits((cr__to_bits(magnitude) & 0x7fffffffu) | (cr__to_bits(sign) & 0x80000000u));
}

/* exp(x + low) for a `low` that is small compared with x: x = n ln 2 + r with |r| <= ln 2 / 2. 2^n
 * is applied in two factors, so that subnormal results and the last binade are right. */
static inline float cr__exp_sum_f32(float x, float low) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float magic =
      12582912.0f; /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
  float t = x * 1.44269504f + magic;
  int32_t n = (int32_t)(cr__to_bits(t) - 0x4b400000u);
  float nf = t - magic;
  float r = x - nf * 0.693359375f; /* exact: a constant of 9 bits times n */
  r = r - nf * -2.12194440e-4f + low;
  float p = 0.001395061587f;
  p = p * r + 0.008368953274f;
  p = p * r + 0.04166620389f;
  p = p * r + 0.1666651831f;
  p = p * r + 0.5f;
  p = (p * (r * r) + r) + 1.0f;
  int32_t half = n >> 1;
  return p * cr__from_bits((uint32_t)(half + 127) << 23) *
         cr__from_bits((uint32_t)(n - half + 127) << 23);
}

static inline float cr__exp_f32(float x) { return cr__exp_sum_f32(x, 0.0f); }

/* log(m 2^e) = e ln 2 + log m with m in [sqrt 1/2, sqrt 2). Returns log m and *exponent = e; the
 * caller adds e ln 2. x must be positive and finite. */
static inline float cr__log_reduced_f32(float x, float *exponent) {
  float tiny = x < 1.17549435e-38f ? 1.0f : 0.0f;
  x = tiny != 0.0f ? x * 8388608.0f : x;
  int32_t bits = (int32_t)(cr__to_bits(x) - 0x3f3504f3u);
  int32_t e = bits >> 23;
  float f = cr__from_bits((uint32_t)((bits & 0x007fffff) + 0x3f3504f3)) - 1.0f;
  *exponent = (float)e - tiny * 23.0f;
  float p = 0.06915445664f;
  p = p * f - 0.1178969342f;
  p = p * f + 0.1187287628f;
  p = p * f - 0.1238436395f;
  p = p * f + 0.1421867547f;
  p = p * f - 0.166692504f;
  p = p * f + 0.200022256f;
  p = p * f - 0.2499998659f;
  p = p * f + 0.3333331046f;
  float square = f * f;
  return f + (p * (square * f) - 0.5f * square);
}

/* Replaces y by the value of log(x) for x outside (0, inf): -inf, inf or nan. */
static inline float cr__log_special_f32(float x, float y) {
  y = x == 0.0f ? -INFINITY : y;
  y = x == INFINITY ? x : y;
  return x < 0.0f || x != x ? NAN : y;
}

static inline float cr__log_f32(float x) {
  float e;
  float y = cr__log_reduced_f32(x, &e);
  return cr__log_special_f32(x, (y + e * -2.12194440e-4f) + e * 0.693359375f);
}

static inline float cr__log10_f32(float x) {
  float e;
  float y = cr__log_reduced_f32(x, &e);
  /* log10 2 = 0.30102539 + 4.6050390e-6 and log10 e = 0.43359375 + 7.0073190e-4: products with the
   * short first parts are (nearly) exact. */
  float high = cr__from_bits(cr__to_bits(y) & 0xfffff000u);
  float low = (y - high) * 0.43429448f + high * 7.0073190e-4f + e * 4.6050390e-6f;
  return cr__log_special_f32(x, (low + high * 0.43359375f) + e * 0.301025390625f);
}

static inline float cr__log2_f32(float x) {
  float e;
  float y = cr__log_reduced_f32(x, &e);
  /* log2 e = 1.44140625 + 0.00128879040: the product with the short first part is exact. */
  float high = cr__from_bits(cr__to_bits(y) & 0xfffff000u);
  float low = (y - high) * 1.44269504f + high * 0.00128879040f;
  return cr__log_special_f32(x, (low + high * 1.44140625f) + e);
}

/* log(u) x / (u - 1) with u = 1 + x as rounded, so that the rounding error cancels (Kahan). */
static inline float cr__log1p_f32(float x) {
  float u = 1.0f + x, d = u - 1.0f;
  float y = d == 0.0f ? x : cr__log_f32(u) * (x / d);
  return x == INFINITY ? x : y;
}

/* (u - 1) x / log(u) with u = e^x as rounded (Kahan). */
static inline float cr__expm1_f32(float x) {
  float u = cr__exp_f32(x), d = u - 1.0f;
  float y = d * (x / cr__log_f32(u));
  y = d == 0.0f ? x : y;
  return x > 88.0f ? u : x < -17.0f ? -1.0f : y;
}

static inline float cr__sigmoid_f32(float x) {
  float e = cr__exp_f32(-fabsf(x)); /* never overflows, and small results keep their precision */
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

static inline float cr__silu_f32(float x) {
  float e = cr__exp_f32(-fabsf(x));
  float y = x < -104.0f ? -0.0f : x; /* avoids -inf * 0 */
  return (x >= 0.0f ? y : y * e) / (1.0f + e);
}

static inline float cr__tanh_f32(float x) {
  float a = fabsf(x), z = x * x;
  float high = (0.002147752826f * z - 0.008182936336f) * z + 0.02170308763f;
  float p = ((high * z - 0.05394722999f) * z + 0.1333321001f) * z - 0.3333333092f;
  float small = x + x * (z * p);
  float big = 1.0f - 2.0f / (cr__exp_f32(2.0f * a) + 1.0f);
  return a < 0.625f ? small : cr__with_sign(big, x);
}

/* exp(z^2) erfc(z) for 0 <= z <= 10.5: a polynomial in (z - 2) / (z + 2), divided by 1 + 2 z (the
 * form is from Shepherd & Laframboise 1981). */
static inline float cr__erfcx_f32(float z) {
  /* One division gives both quotients. The next step removes t's rounding errors, which matter near
   * t = -1. */
  float a = z + 2.0f, b = 1.0f + 2.0f * z, c = z - 2.0f;
  float d = 1.0f / (a * b);
  float t = c * (b * d);
  t = t + (c - t * a) * (b * d);
  float p = -0.0003963357525f;
  p = p * t - 0.001223194802f;
  p = p * t + 0.001312278252f;
  p = p * t + 0.008626242595f;
  p = p * t - 0.00806051579f;
  p = p * t - 0.05420293571f;
  p = p * t + 0.164055558f;
  p = p * t - 0.1660315324f;
  p = p * t - 0.09276399208f;
  p = p * t + 1.276978395f;
  return p * (a * d);
}

/* exp(-scale x^2) with x^2 in two parts, so that its rounding does not affect large arguments. */
static inline float cr__exp_square_f32(float x, float scale) {
  float high = cr__from_bits(cr__to_bits(x) & 0xfffff000u);
  float low = (x - high) * (x + high);
  return cr__exp_sum_f32(-scale * (high * high), -scale * low);
}

static inline float cr__erf_f32(float x) {
  float a = fabsf(x), z = x * x;
  float p = -0.000676109097f;
  p = p * z + 0.005115981084f;
  p = p * z - 0.02683543431f;
  p = p * z + 0.1128339297f;
  p = p * z - 0.3761261992f;
  p = p * z + 0.00337916563f;
  float small = x * p + x * 1.125f;
  a = a > 10.5f ? 10.5f : a;
  float big = 1.0f - cr__erfcx_f32(a) * cr__exp_square_f32(a, 1.0f);
  return a < 0.75f ? small : cr__with_sign(big, x);
}

/* x * Phi(x), the exact GELU. With q = erfc(|x| / sqrt 2) it is x - x q / 2 for positive x and x q
 * / 2 for negative x, so nothing cancels in the tail. */
static inline float cr__gelu_f32(float x) {
  float a = fabsf(x);
  a = a > 14.8f ? 14.8f : a;
  float half = 0.5f * a * cr__erfcx_f32(a * 0.707106781f) * cr__exp_square_f32(a, 0.5f);
  return x >= 0.0f ? x - half : -half;
}

/* x - n pi / 2 in double, returned as float; *quadrant is n mod 4. It is exact enough for |x| <
 * 1e6; beyond that callers use libm. */
static inline float cr__reduce_half_pi(float x, int32_t *quadrant) {
  const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
  double t = (double)x * 0.63661977236758134308 + magic;
  double n = t - magic;
  double r = ((double)x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
  *quadrant = (int32_t)n & 3;
  return (float)r;
}

static inline float cr__sin_quadrant_f32(float r, int32_t q) {
  float z = r * r;
  float s = 2.718240863e-6f;
  s = s * z - 0.000198393276f;
  s = s * z + 0.008333329364f;
  s = s * z - 0.1666666664f;
  s = r + r * (z * s);
  float c = 2.443783185e-5f;
  c = c * z - 0.001388736248f;
  c = c * z + 0.04166664677f;
  c = 1.0f - (0.5f * z - z * z * c);
  float y = (q & 1) ? c : s;
  return cr__from_bits(cr__to_bits(y) ^ ((uint32_t)(q & 2) << 30));
}

/* sin and cos for |x| < 1e6. */
static inline float cr__sin_f32(float x) {
  int32_t q;
  float r = cr__reduce_half_pi(x, &q);
  return cr__sin_quadrant_f32(r, q);
}

static inline float cr__cos_f32(float x) {
  int32_t q;
  float r = cr__reduce_half_pi(x, &q);
  return cr__sin_quadrant_f32(r, q + 1);
}

static inline float cr__rsqrt_f32(float x) { return 1.0f / sqrtf(x); }
static inline float cr__pow_f32(float a, float b) { return (float)pow((double)a, (double)b); }

#endif
