/* Stands at the beginning and at the end of a kernel's file, which is compiled for several
 * instruction sets (no include guard, therefore). Whoever includes the kernel defines LANES, the
 * floats in a vector: 4, or, where HAVE_X86 is defined (lanes.h), 8 for AVX2 and 16 for AVX-512.
 * In the file NAME(x) gives functions the set's name: base_x, avx2_x or avx512_x. With BRAIN (and
 * 16) the set has products of bf16 too: brain_x. Behind it all are gone.
 *
 * Products and sums are fused in it (they may not be elsewhere in the library): it is the point of
 * these instruction sets, and nothing depends on the last bit. */
#ifndef NAME
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#ifdef BRAIN
#pragma GCC target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")
#define NAME(x) brain_##x
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
#undef BRAIN
#pragma GCC pop_options
#endif
