/* bf16 arithmetic for a kernel that is compiled with BF16 (instruction_set.h). It is included after
 * the kernel's VEC and INLINE, once per kernel, so it has no include guard. */

INLINE VEC NAME(widened)(__m256i x) { return (VEC)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
INLINE __m256i NAME(narrowed)(VEC x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }

/* Packs two summands: each 32-bit lane holds a low and a high bf16. */
INLINE VEC NAME(paired)(VEC low, VEC high) {
  return (VEC)_mm512_or_si512(_mm512_cvtepu16_epi32(NAME(narrowed)(low)),
                              (__m512i)NAME(widened)(NAME(narrowed)(high)));
}

/* sum + b * *a for packed pairs: the dot product of each lane with the pair at a. */
INLINE VEC NAME(added)(VEC sum, VEC b, const float *a) {
  __m512i both = _mm512_set1_epi32(*(const int32_t *)a);
  return (VEC)_mm512_dpbf16_ps((__m512)sum, (__m512bh)b, (__m512bh)both);
}
