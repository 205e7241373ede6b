/* CR_HOST_DEVICE declares a function of plain C that runs on the CPU and in CUDA kernels. */
#ifndef CR_HOST_DEVICE_H
#define CR_HOST_DEVICE_H

#ifdef __CUDACC__
#define CR_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define CR_HOST_DEVICE static inline
#endif

#endif
