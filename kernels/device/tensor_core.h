/* The tensor cores' instructions that every card has since Ampere (mma.sync, ldmatrix), and
 * asynchronous copies to shared memory (cp.async). T is __half or __nv_bfloat16. */
#ifndef CRK_TENSOR_CORE_H
#define CRK_TENSOR_CORE_H

#include "device/packs.h"

__device__ __forceinline__ uint32_t crk_shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}

/* Starts copying 16 bytes to shared memory, or zeros if not `valid`. */
__device__ __forceinline__ void crk_cp_async16(uint32_t to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

/* ldmatrix.x4: loads four 8x8 matrices of 16-bit numbers, whose rows begin at the addresses that
 * lanes 0-7, 8-15, ... give. Each lane gets two neighbours of a row of each matrix, or, transposed,
 * of a column. */
__device__ __forceinline__ void crk_ldmatrix(uint32_t *r, uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ void crk_ldmatrix_trans(uint32_t *r, uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

/* c [16, 8] += a [16, 16] b [16, 8], accumulated in f32. */
template <typename T>
__device__ __forceinline__ void crk_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
#define CRK_MMA(type, name)                                                                        \
  template <>                                                                                      \
  __device__ __forceinline__ void crk_mma<type>(float *c, const uint32_t *a, uint32_t b0,          \
                                                uint32_t b1) {                                     \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                     \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                           \
  }
CRK_MMA(__half, "f16")
CRK_MMA(__nv_bfloat16, "bf16")
#undef CRK_MMA

#endif
