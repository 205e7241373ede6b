/* Selects the instruction set of a kernel file, which includes this file at its beginning and at
 * its end and is compiled several times (so neither has an include guard). The file that includes
 * the kernel defines LANES, the floats per vector: 4, or, where HAVE_X86 is defined (lanes.h), 8
 * for AVX2 and 16 for AVX-512. In the kernel, NAME(x) adds the name of the set: base_x, avx2_x or
 * avx512_x. With BF16 (and 16 lanes) the set also has bf16 products: bf16_x. After the kernel all
 * these macros are undefined.
 *
 * Kernels may use FMA, which the rest of the library may not: these instruction sets are used for
 * it, and nothing depends on the last bit. */
#ifndef NAME
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#ifdef BF16
#pragma GCC target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")
#define NAME(x) bf16_##x
#elif LANES == 16
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define NAME(x) avx512_##x
#elif LANES == 8
#pragma GCC target("avx2,fma")
#define NAME(x) avx2_##x
#else
#define NAME(x) base_##x
#endif
#else
#undef NAME
#undef LANES
#undef BF16
#pragma GCC pop_options
#endif
