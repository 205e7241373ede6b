/* What the normalizations share. */
#ifndef CRK_NORM_H
#define CRK_NORM_H

#include "device/codes.h"
#include "device/packs.h"

/* group.cu, layer.cu */
int crk_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                   const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before);
/* The same with codes (CR_I8, CR_U8) of the result / divisor, f32 [C] or NULL. scale is NULL, or
 * gets a scale for each row. */
int crk_quant_group_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t groups,
                         const cr_tensor *weight, const cr_tensor *bias, double eps, int32_t silu,
                         const cr_tensor *bias_before, const cr_tensor *divisor);
int crk_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, double eps, const cr_tensor *after);

/* ---- the two kernels of group norm: resident.cu, group.cu ---- */

/* A parameter in memory: any float dtype, any stride; data NULL: there is none. */
typedef struct crk_parameter {
  const void *data;
  int32_t dtype;
  int64_t stride;
} crk_parameter;

/* x as samples of rows of channels; strides in elements, channels are dense. */
typedef struct crk_group_work {
  const void *x;
  void *out;
  crk_parameter weight, bias, before;
  int64_t x_sample, x_row, out_sample, out_row;
  int64_t before_sample; /* before.stride is the step between channels */
  int64_t rows;
  int32_t dtype, samples, channels, groups;
  bool silu, vectors; /* vectors: rows and channels suit accesses of 16 bytes */
  double eps;
  const float *divisor; /* of the quantization; NULL: out is not quantized */
  bool e4m3;            /* codes are E4M3, else int8 */
} crk_group_work;

/* Keeps a sample, or some of its groups, in shared memory: one launch, and x is read once. 0 if it
 * does not fit; else 1, or an error. */
int crk_group_norm_resident(crk_device *d, const crk_group_work *w);

#ifdef __CUDACC__
__device__ __forceinline__ double crk_parameter_at(const crk_parameter &p, int64_t i,
                                                   double otherwise) {
  if (!p.data) return otherwise;
  switch (p.dtype) {
  case CR_F32:
    return ((const float *)p.data)[i];
  case CR_F16:
    return __half2float(((const __half *)p.data)[i]);
  case CR_BF16:
    return __bfloat162float(((const __nv_bfloat16 *)p.data)[i]);
  default:
    return ((const double *)p.data)[i];
  }
}

__device__ __forceinline__ double crk_before(const crk_group_work &w, int sample, int channel) {
  return crk_parameter_at(w.before, sample * w.before_sample + channel * w.before.stride, 0);
}

/* A pivot near the mean of V channels, from rows spread over the sample. It is subtracted before
 * sums are taken, so that a large mean does not swallow the variance. For f16 and bf16 one row is
 * enough, since they hold no mean so large. */
template <typename T, int V>
__device__ __forceinline__ void crk_pivot(const T *x, int64_t rows, int64_t row, float *pivot) {
  if (sizeof(T) == 2) {
    crk_unpack<T, V>(pivot, *(const crk_pack<T, V> *)x);
    return;
  }
  int n = rows < 8 ? (int)rows : 8;
#pragma unroll
  for (int j = 0; j < V; j++) pivot[j] = 0;
  for (int i = 0; i < n; i++) {
    float p[V];
    crk_unpack<T, V>(p, *(const crk_pack<T, V> *)(x + i * rows / n * row));
#pragma unroll
    for (int j = 0; j < V; j++) pivot[j] += p[j] / (float)n;
  }
}

/* Adds a row's V channels to their sums of d and d^2, d = value - pivot. */
template <typename T, int V>
__device__ __forceinline__ void crk_add_row(const crk_pack<T, V> &x, const float *pivot, float *sum,
                                            float *square) {
  float d[V];
  crk_unpack<T, V>(d, x);
#pragma unroll
  for (int j = 0; j < V; j++) {
    d[j] -= pivot[j];
    sum[j] += d[j];
    square[j] = __fmaf_rn(d[j], d[j], square[j]);
  }
}

/* Mean and 1 / sqrt(var + eps) of 1 / inverse_n values from their sums of d and d^2, d = value -
 * pivot. */
__device__ __forceinline__ double2 crk_moments(double sum, double square, double inverse_n,
                                               double pivot, double eps) {
  double delta = sum * inverse_n, variance = square * inverse_n - delta * delta;
  return make_double2(pivot + delta, rsqrt((variance < 0 ? 0 : variance) + eps));
}

/* The factors of one channel: (x - mean) * scale + shift, where the part of the mean that f32
 * cannot hold is in the shift; or (FOLDED) x * scale + shift, which is enough for f16 and bf16,
 * whose numbers are at most some thousand times their standard deviation. */
typedef struct crk_affine {
  float mean, scale, shift;
} crk_affine;

template <bool FOLDED>
__device__ __forceinline__ crk_affine crk_group_channel(double2 moments, double before,
                                                        double weight, double bias) {
  double mean = moments.x - before, scale = moments.y * weight;
  crk_affine a = {FOLDED ? 0.0f : (float)mean, (float)scale, 0};
  a.shift =
      (float)(FOLDED ? bias - mean * (double)a.scale : bias - (mean - (double)a.mean) * scale);
  return a;
}

/* y / (1 + exp(-y)) by the special function unit, to 2 units in the last place of f32. */
__device__ __forceinline__ float crk_fast_silu(float y) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(y * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
  return y * r;
}

/* V channels of a row, as T or as codes (O). mean is not used for f16 and bf16; inverse and e4m3
 * are used only for codes. */
template <typename T, typename O, int V, bool SILU>
__device__ __forceinline__ crk_pack<O, V>
crk_group_apply(const crk_pack<T, V> &x, const float *mean, const float *scale, const float *shift,
                const float *inverse, bool e4m3) {
  float y[V];
  crk_unpack<T, V>(y, x);
#pragma unroll
  for (int j = 0; j < V; j++) {
    y[j] = __fmaf_rn(sizeof(T) == 2 ? y[j] : y[j] - mean[j], scale[j], shift[j]);
    if (SILU) y[j] = crk_fast_silu(y[j]);
  }
  if constexpr (sizeof(O) == 1)
    return crk_codes<V>(y, inverse, e4m3);
  else
    return crk_repack<T, V>(y);
}

/* Before quantization: the inverse divisors of V channels. */
template <typename O, int V>
__device__ __forceinline__ void crk_take_inverses(float *inverse, const float *divisor) {
  if constexpr (sizeof(O) == 1) {
#pragma unroll
    for (int j = 0; j < V; j++) inverse[j] = crk_inverse(divisor[j]);
  }
}

__device__ __forceinline__ double crk_warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

/* Stores V sums in shared memory, 16 bytes at once if V allows. */
template <int V> __device__ __forceinline__ void crk_put_sums(float *to, const float *sums) {
  if (V % 4 == 0) {
#pragma unroll
    for (int j = 0; j < V / 4 * 4; j += 4)
      *(float4 *)(to + j) = make_float4(sums[j], sums[j + 1], sums[j + 2], sums[j + 3]);
  } else {
#pragma unroll
    for (int j = 0; j < V; j++) to[j] = sums[j];
  }
}

/* Loads V floats, 16 bytes at once if V allows; `from` is aligned to that. */
template <int V> __device__ __forceinline__ void crk_take_floats(float *to, const float *from) {
  if (V % 4 == 0) {
#pragma unroll
    for (int j = 0; j < V / 4 * 4; j += 4) {
      float4 x = *(const float4 *)(from + j);
      to[j] = x.x;
      to[j + 1] = x.y;
      to[j + 2] = x.z;
      to[j + 3] = x.w;
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; j++) to[j] = from[j];
  }
}
#endif

#endif
