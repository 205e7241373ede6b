/* What the attention kernels share: one description of the work, and which kernel can do it.
 *
 * attention.cu turns cr_attention's tensors into a crk_attention and tries the kernels below in
 * this order: the first that can take the work does it. crk_attention_plain takes everything. */
#ifndef CRK_ATTENTION_H
#define CRK_ATTENTION_H

#include "device/codes.h"
#include "device/packs.h"

enum { CRK_ATTENTION_LEADING = 6 }; /* most leading dimensions of [... T D] */

/* How the result is stored after rounding to the dtype. With a divisor (f32, one for each column of
 * out), out has one byte for each number: the code of number / divisor. */
typedef struct crk_attention_codes {
  const float *divisor; /* NULL: out has the numbers themselves */
  bool e4m3;            /* codes are E4M3, else int8 */
} crk_attention_codes;

/* out = softmax(scale q k' + mask) v. The leading dimensions are out's, merged where all operands
 * allow it; an operand that repeats along one has stride 0 there. Strides count elements; the last
 * dimension is dense everywhere. Head n has columns n * d (of v and out n * dv) and on. */
typedef struct crk_attention {
  int32_t dtype; /* f32, f16, bf16 */
  const void *q, *k, *v;
  void *out;
  const float *mask;    /* NULL, or added to the scores */
  int32_t heads, d, dv; /* d: of q and k; dv: of v and out */
  int32_t T, S;         /* queries, keys */
  float scale;
  int32_t leading; /* number of leading dimensions, after merging; >= 1 */
  int32_t size[CRK_ATTENTION_LEADING];
  int64_t q_stride[CRK_ATTENTION_LEADING], k_stride[CRK_ATTENTION_LEADING];
  int64_t v_stride[CRK_ATTENTION_LEADING], out_stride[CRK_ATTENTION_LEADING];
  int64_t mask_stride[CRK_ATTENTION_LEADING];
  int64_t q_row, k_row, v_row, out_row; /* from token to token */
  int64_t mask_row, mask_column;
  int64_t batch; /* product of size */
  crk_attention_codes coded;
} crk_attention;

/* Whether every row of q, k, v and out (f16 or bf16) begins at a multiple of `bytes`. */
bool crk_attention_aligned(const crk_attention *a, int bytes);

/* For each kernel: whether it takes the work (1 or 0), and the kernel. */
/* Temporal attention: T == S up to 32, d == dv a multiple of 4 up to 256, no mask. */
int crk_attention_temporal_can(const crk_device *d, const crk_attention *a);
int crk_attention_temporal(crk_device *d, const crk_attention *a);
/* Flash attention, f16 and bf16 on tensor cores: d == dv, a multiple of 8 up to 256, or 512; no
 * mask. */
int crk_attention_flash_can(const crk_device *d, const crk_attention *a);
int crk_attention_flash(crk_device *d, const crk_attention *a);
/* Everything else, but not with codes as the result. */
int crk_attention_plain(crk_device *d, const crk_attention *a);

#ifdef __CUDACC__
/* Adds the offset of a batch entry (counted through the leading dimensions, the last one fastest)
 * to where a head's columns begin in each operand, and in the mask where one is given. */
template <typename I, typename... Mask>
__device__ __forceinline__ void crk_attention_add(const crk_attention &a, I entry, int64_t &q,
                                                  int64_t &k, int64_t &v, int64_t &out,
                                                  Mask &...mask) {
  for (int i = a.leading - 1; i >= 0; i--) {
    I here = entry % a.size[i];
    entry /= a.size[i];
    q += here * a.q_stride[i];
    k += here * a.k_stride[i];
    v += here * a.v_stride[i];
    out += here * a.out_stride[i];
    ((mask += here * a.mask_stride[i]), ...);
  }
}

/* Writes neighbouring results, 8 (uint4) or 4 (uint2) of them: `at` is the index of the first in
 * out, in elements, `column` its column among all heads'. */
template <typename T, typename Bytes>
__device__ __forceinline__ void crk_attention_put(const crk_attention_codes &coded, void *out,
                                                  int64_t at, int column, Bytes numbers) {
  constexpr int N = sizeof(Bytes) / sizeof(T);
  if (!coded.divisor) {
    *(Bytes *)((T *)out + at) = numbers;
    return;
  }
  float x[N], factor[N];
  crk_unpack<T, N>(x, *(const crk_pack<T, N> *)&numbers);
#pragma unroll
  for (int i = 0; i < N; i++) factor[i] = crk_inverse(__ldg(coded.divisor + column + i));
  *(crk_pack<uint8_t, N> *)((uint8_t *)out + at) = crk_codes<N>(x, factor, coded.e4m3);
}
#endif

#endif
