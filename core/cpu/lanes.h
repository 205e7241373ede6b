/* The widest vectors that this processor has and for which kernels are compiled. */
#ifndef CR_CPU_LANES_H
#define CR_CPU_LANES_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAVE_X86 1
#endif

/* Returns the floats per vector: 16 with AVX-512 (of x86-64-v4), 8 with AVX2, else 4. */
static inline int cr__lanes(void) {
#ifdef HAVE_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd"))
    return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

#endif
