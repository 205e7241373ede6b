/* CR_HOST_DEVICE declares a function of plain C that runs on the CPU and in CUDA kernels. */
#ifndef CR_BOTH_H
#define CR_BOTH_H

#ifdef __CUDACC__
#define CR_BOTH static __host__ __device__ __forceinline__
#else
#define CR_BOTH static inline
#endif

#endif
