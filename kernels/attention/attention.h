/* What the attention kernels share: one description of the work, and who can do it.
 *
 * attention.cu turns cr_attention's tensors into a crk_attention and asks, in this order, the
 * kernels below: the first that says it can take the work does it. crk_attention_plain takes
 * everything. */
#ifndef CRK_ATTENTION_H
#define CRK_ATTENTION_H

#include "device/codes.h"
#include "device/packs.h"

enum { CRK_ATTENTION_LEADING = 6 }; /* leading dimensions of [... T D] */

/* What becomes of the result's numbers once they are rounded to the dtype: with a divisor, f32 of
 * as many columns as out has, out holds a byte a number, the code of number / divisor. */
typedef struct crk_attention_codes {
  const float *divisor; /* NULL: the numbers themselves */
  bool e4m3;            /* E4M3's codes; else int8's */
} crk_attention_codes;

/* out = softmax(scale q k' + mask) v. Leading dimensions are as out's, merged where all operands
 * allow it; those that an operand repeats have stride 0. Element strides; the last dimension is
 * dense everywhere. Head n's columns are n * d (v and out: n * dv) and on. */
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

/* Each: whether the kernel takes this work (1 or 0), and doing it. */
/* T and S up to 32, T == S, d == dv a multiple of 4 up to 256, no mask: temporal attention. */
int crk_attention_temporal_can(const crk_device *d, const crk_attention *a);
int crk_attention_temporal(crk_device *d, const crk_attention *a);
/* f16 and bf16 on tensor cores; d == dv, a multiple of 8, at most 256, or 512; no mask. */
int crk_attention_flash_can(const crk_device *d, const crk_attention *a);
int crk_attention_flash(crk_device *d, const crk_attention *a);
/* Everything else, but no codes. */
int crk_attention_plain(crk_device *d, const crk_attention *a);

#ifdef __CUDACC__
/* Adds the steps to a batch entry (counted through the leading dimensions, the last one fastest) to
 * where a head's columns begin in each operand, and in the mask where one is given. */
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

/* Writes neighbours of the result, the bytes of 8 (uint4) or 4 (uint2): `at` is the first one's
 * place in out, in elements, `column` its column among all heads'. */
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
