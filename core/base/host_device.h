/* Functions of plain C that the CPU's code and the cards' share are declared CR_BOTH. */
#ifndef CR_BOTH_H
#define CR_BOTH_H

#ifdef __CUDACC__
#define CR_BOTH static __host__ __device__ __forceinline__
#else
#define CR_BOTH static inline
#endif

#endif
