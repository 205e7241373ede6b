/* Conversion between f32 and the 16-bit float types, f16 and bf16.
 *
 * Invariant: every path rounds to nearest even, keeps subnormals, overflows to infinity, and keeps
 * a nan a (quiet) nan, so the F16C path and the portable one give the same bits. */
#include <string.h>

#include "base/internal.h"
#include "base/vmath.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_F16C 1
#endif

float cr__half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) { /* infinity or nan, which becomes quiet */
    uint32_t quiet = rest > 0x7c00u ? 0x00400000u : 0;
    return cr__from_bits(sign | 0x7f800000u | (rest & 0x03ffu) << 13 | quiet);
  }
  if (rest < 0x0400u) { /* zero or subnormal: a multiple of 2^-24 */
    return cr__with_sign((float)rest * 5.9604644775390625e-8f, cr__from_bits(sign));
  }
  return cr__from_bits(sign | ((rest << 13) + 0x38000000u));
}

uint16_t cr__float_to_half(float f) {
  uint32_t bits = cr__to_bits(f);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x03ffu));
  if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* from 65520 on */
  if (rest < 0x38800000u) {
    /* Below 2^-14: adding 0.5 rounds to a multiple of 2^-24, which then stands in the sum's low
     * bits. */
    float sum = cr__from_bits(rest) + 0.5f;
    return (uint16_t)(sign | (cr__to_bits(sum) - 0x3f000000u));
  }
  rest += 0x0fffu + (rest >> 13 & 1u);
  return (uint16_t)(sign | (rest - 0x38000000u) >> 13);
}

#ifdef HAVE_F16C
/* clang's __builtin_cpu_supports does not know "f16c", but every processor with AVX2 has it. */
#define IF_F16C(CALL)                                                                              \
  if (__builtin_cpu_supports("avx2")) {                                                            \
    CALL;                                                                                          \
    return;                                                                                        \
  }

__attribute__((target("avx,f16c"))) static void f16_to_f32_f16c(float *out, const uint16_t *x,
                                                                int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
  }
  for (; i < n; i++) out[i] = _cvtsh_ss(x[i]);
}

__attribute__((target("avx,f16c"))) static void f32_to_f16_f16c(uint16_t *out, const float *x,
                                                                int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  }
  for (; i < n; i++) out[i] = (uint16_t)_cvtss_sh(x[i], 0);
}
#else
#define IF_F16C(CALL)
#endif

static void f16_to_f32(float *out, const uint16_t *x, int64_t n) {
  IF_F16C(f16_to_f32_f16c(out, x, n))
  for (int64_t i = 0; i < n; i++) out[i] = cr__half_to_float(x[i]);
}

static void f32_to_f16(uint16_t *out, const float *x, int64_t n) {
  IF_F16C(f32_to_f16_f16c(out, x, n))
  for (int64_t i = 0; i < n; i++) out[i] = cr__float_to_half(x[i]);
}

CR_CLONES static void bf16_to_f32(float *out, const uint16_t *x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = cr__from_bits((uint32_t)x[i] << 16);
}

CR_CLONES static void f32_to_bf16(uint16_t *out, const float *x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    uint32_t u = cr__to_bits(x[i]);
    uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    out[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16 | 0x40u) : rounded);
  }
}

void cr__to_f32(float *out, const void *x, int32_t dtype, int64_t n) {
  if (dtype == CR_F32) memcpy(out, x, (size_t)n * 4);
  if (dtype == CR_BF16) bf16_to_f32(out, x, n);
  if (dtype == CR_F16) f16_to_f32(out, x, n);
}

void cr__from_f32(void *out, const float *x, int32_t dtype, int64_t n) {
  if (dtype == CR_F32) memcpy(out, x, (size_t)n * 4);
  if (dtype == CR_BF16) f32_to_bf16(out, x, n);
  if (dtype == CR_F16) f32_to_f16(out, x, n);
}
