/* Convolutions by our own kernels: depthwise ones, and any others (f64, narrow groups, what cuDNN
 * has no engine for).
 *
 * Both kernels take any strides of x, out and residual and have the whole epilogue, out = act(sum +
 * bias) + residual. Sums are f32 (f64 for f64).
 *
 * Invariant: an element of out is written by the thread that has read the residual at the same
 * index, so residual may be out. */
#include "conv/conv.h"

typedef struct window {
  int64_t positions;           /* N * oh * ow */
  int64_t sx[4], so[4], sr[4]; /* strides of x, out and residual */
  int32_t h, w, oh, ow;        /* of x, of out */
  int32_t kh, kw, kc;          /* of the weight */
  int32_t per_group, oc;       /* results of a group; of all groups */
  int32_t stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t act;
} window;

/* ---- depthwise --------------------------------------------------------------------------------*/

/* out[n y x o] = sum over the window of x[.. o / per_group] w[o ky kx]. One thread for each
 * element, channels fastest: a warp reads 32 neighbouring channels of a pixel, and the windows of
 * neighbouring pixels share the L1 cache. K is the side of a square window, or 0 for any other:
 * with K, the loads of a window are all issued before the first product. I counts the elements of
 * out, in 32 bits where they fit. Bound by memory, and for small images by latency. Grid-stride
 * loop. */
template <typename T, int K, typename I>
__global__ void __launch_bounds__(256)
    conv_depthwise_kernel(T *out, const T *x, const T *weight, const T *bias, const T *residual,
                          const T *slope, window p) {
  typedef typename crk_sum<T>::type A;
  const I total = (I)(p.positions * p.oc);
  const int32_t kh = K ? K : p.kh, kw = K ? K : p.kw;
  for (I i = (I)blockIdx.x * 256 + threadIdx.x; i < total; i += (I)gridDim.x * 256) {
    const I at = i / (I)p.oc;
    const int32_t o = (int32_t)(i - at * (I)p.oc);
    const crk_position place = crk_position_of(at, p.oh, p.ow);
    const int32_t oy = place.y, ox = place.x;
    const int64_t n = place.n;
    const T *from = x + n * p.sx[0] + (p.per_group == 1 ? o : o / p.per_group) * p.sx[3];
    const T *w = weight + (int64_t)o * kh * kw;
    const int64_t top = (int64_t)oy * p.stride_h - p.top;
    const int64_t left = (int64_t)ox * p.stride_w - p.left;
    A sum = 0;
#pragma unroll
    for (int32_t ky = 0; ky < kh; ky++) {
      const int64_t y = top + (int64_t)ky * p.dilation_h;
#pragma unroll
      for (int32_t kx = 0; kx < kw; kx++) {
        const int64_t z = left + (int64_t)kx * p.dilation_w;
        if (y >= 0 && y < p.h && z >= 0 && z < p.w)
          sum += crk_widen<A>(from[y * p.sx[1] + z * p.sx[2]]) * crk_widen<A>(w[ky * kw + kx]);
      }
    }
    if (bias) sum += crk_widen<A>(bias[o]);
    sum = crk_act(sum, p.act, slope ? crk_widen<A>(slope[o]) : (A)0);
    if (residual)
      sum += crk_widen<A>(residual[n * p.sr[0] + oy * p.sr[1] + ox * p.sr[2] + o * p.sr[3]]);
    out[n * p.so[0] + oy * p.so[1] + ox * p.so[2] + o * p.so[3]] = crk_narrow<T>(sum);
  }
}

/* ---- any ------------------------------------------------------------------------------------- */

/* An implicit GEMM: rows are positions of out, columns the results of one group, and the sum runs
 * over k = (ky, kx, c). Elements of the left matrix are looked up in x while a tile is loaded.
 *
 * Grid: x tiles of BM positions, y tiles of BN results of a group, z groups. A block of BM * BN /
 * 16 threads computes BM x BN sums, 4 x 4 in each thread's registers, in steps of 16 k. Both tiles
 * are in shared memory with k as the row, so that a thread's 4 + 4 numbers of a step are two
 * 16-byte loads. While loading, 16 neighbouring threads take 16 neighbouring k, which are
 * neighbours in memory in the weight and, within a pixel, in x. 64 x 64 keeps the arithmetic units
 * busy on large results; 32 x 32 gives small ones more blocks. */
enum { BK = 16 };

template <typename T, int BM, int BN>
__global__ void __launch_bounds__(BM *BN / 16)
    conv_direct_kernel(T *out, const T *x, const T *weight, const T *bias, const T *residual,
                       const T *slope, window p) {
  typedef typename crk_sum<T>::type A;
  constexpr int THREADS = BM * BN / 16, ROWS = THREADS / BK, LOADS_M = BM / ROWS,
                LOADS_N = BN / ROWS;
  __shared__ alignas(16) A left[BK][BM + 4];
  __shared__ alignas(16) A right[BK][BN + 4];
  int64_t first = blockIdx.x * (int64_t)BM;
  int32_t first_o = blockIdx.y * BN, group = blockIdx.z;
  int32_t k_size = p.kh * p.kw * p.kc, lane = threadIdx.x % BK, row = threadIdx.x / BK;

  /* Where the windows of this thread's rows of the left matrix begin. A row past the end gets a
   * position that fails every bounds check. */
  int64_t base[LOADS_M];
  int32_t y0[LOADS_M], x0[LOADS_M];
#pragma unroll
  for (int i = 0; i < LOADS_M; i++) {
    int64_t m = first + row + i * ROWS;
    int32_t ox = (int32_t)(m % p.ow), oy = (int32_t)(m / p.ow % p.oh);
    int64_t n = m / p.ow / p.oh;
    bool inside = m < p.positions;
    base[i] = inside ? n * p.sx[0] + (int64_t)group * p.kc * p.sx[3] : 0;
    y0[i] = inside ? oy * p.stride_h - p.top : INT32_MIN / 2;
    x0[i] = ox * p.stride_w - p.left;
  }

  A sum[4][4] = {};
  int32_t tm = threadIdx.x / (BN / 4) * 4, tn = threadIdx.x % (BN / 4) * 4;
  for (int32_t k0 = 0; k0 < k_size; k0 += BK) {
    int32_t k = k0 + lane;
    int32_t tap = k / p.kc, c = k - tap * p.kc, ky = tap / p.kw, kx = tap - ky * p.kw;
#pragma unroll
    for (int i = 0; i < LOADS_M; i++) {
      int32_t y = y0[i] + ky * p.dilation_h, z = x0[i] + kx * p.dilation_w;
      A value = 0;
      if (k < k_size && y >= 0 && y < p.h && z >= 0 && z < p.w)
        value = crk_widen<A>(x[base[i] + y * p.sx[1] + z * p.sx[2] + c * p.sx[3]]);
      left[lane][row + i * ROWS] = value;
    }
#pragma unroll
    for (int i = 0; i < LOADS_N; i++) {
      int32_t o = first_o + row + i * ROWS;
      A value = 0;
      if (k < k_size && o < p.per_group)
        value = crk_widen<A>(weight[((int64_t)group * p.per_group + o) * k_size + k]);
      right[lane][row + i * ROWS] = value;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < BK; j++) {
      crk_pack<A, 4> a, b;
      if (sizeof(A) == 4) {
        a = *(const crk_pack<A, 4> *)&left[j][tm];
        b = *(const crk_pack<A, 4> *)&right[j][tn];
      } else {
#pragma unroll
        for (int q = 0; q < 4; q++) {
          a.v[q] = left[j][tm + q];
          b.v[q] = right[j][tn + q];
        }
      }
#pragma unroll
      for (int r = 0; r < 4; r++)
#pragma unroll
        for (int s = 0; s < 4; s++) sum[r][s] += a.v[r] * b.v[s];
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 4; r++) {
    int64_t m = first + tm + r;
    if (m >= p.positions) break;
    int32_t ox = (int32_t)(m % p.ow), oy = (int32_t)(m / p.ow % p.oh);
    int64_t n = m / p.ow / p.oh;
    T *to = out + n * p.so[0] + oy * p.so[1] + ox * p.so[2];
    const T *more = residual + (n * p.sr[0] + oy * p.sr[1] + ox * p.sr[2]);
#pragma unroll
    for (int s = 0; s < 4; s++) {
      if (first_o + tn + s >= p.per_group) break;
      int64_t o = (int64_t)group * p.per_group + first_o + tn + s;
      A v = sum[r][s];
      if (bias) v += crk_widen<A>(bias[o]);
      v = crk_act(v, p.act, slope ? crk_widen<A>(slope[o]) : (A)0);
      if (residual) v += crk_widen<A>(more[o * p.sr[3]]);
      to[o * p.so[3]] = crk_narrow<T>(v);
    }
  }
}

template <typename T> static void launch(const crk_conv *c, const window *p) {
  T *out = (T *)crk_ptr(c->out);
  const T *x = crk_conv_data<T>(c->x), *w = crk_conv_data<T>(c->weight),
          *bias = crk_conv_data<T>(c->bias), *residual = crk_conv_data<T>(c->residual),
          *slope = crk_conv_data<T>(c->slope);
  cudaStream_t stream = c->d->stream;
  if (p->kc == 1 && c->o->groups > 1) {
    int64_t total = p->positions * p->oc, blocks = crk_ceil_div(total, 256);
    int64_t most = c->d->multiprocessors * 64ll;
    unsigned grid = (unsigned)(blocks < most ? blocks : most);
    int side = p->kh == p->kw && total < INT32_MAX ? p->kh : 0;
    if (side == 3)
      conv_depthwise_kernel<T, 3, uint32_t>
          <<<grid, 256, 0, stream>>>(out, x, w, bias, residual, slope, *p);
    else if (side == 5)
      conv_depthwise_kernel<T, 5, uint32_t>
          <<<grid, 256, 0, stream>>>(out, x, w, bias, residual, slope, *p);
    else
      conv_depthwise_kernel<T, 0, int64_t>
          <<<grid, 256, 0, stream>>>(out, x, w, bias, residual, slope, *p);
    return;
  }
  int64_t large = crk_ceil_div(p->positions, 64) * crk_ceil_div(p->per_group, 64) * c->o->groups;
  if (p->per_group > 32 && large >= 2 * c->d->multiprocessors) {
    dim3 grid((unsigned)crk_ceil_div(p->positions, 64), (unsigned)crk_ceil_div(p->per_group, 64),
              (unsigned)c->o->groups);
    conv_direct_kernel<T, 64, 64><<<grid, 256, 0, stream>>>(out, x, w, bias, residual, slope, *p);
  } else {
    dim3 grid((unsigned)crk_ceil_div(p->positions, 32), (unsigned)crk_ceil_div(p->per_group, 32),
              (unsigned)c->o->groups);
    conv_direct_kernel<T, 32, 32><<<grid, 64, 0, stream>>>(out, x, w, bias, residual, slope, *p);
  }
}

int crk_conv_direct(const crk_conv *c) {
  window p = {};
  p.positions = (int64_t)c->out->shape[0] * c->out->shape[1] * c->out->shape[2];
  p.oc = c->out->shape[3];
  if (p.positions == 0 || p.oc == 0) return CR_OK;
  const cr_conv *o = c->o;
  crk_conv_sizes(c, &p);
  p.kh = c->weight->shape[1], p.kw = c->weight->shape[2], p.kc = c->weight->shape[3];
  p.per_group = p.oc / o->groups;
  p.stride_h = o->stride_h, p.stride_w = o->stride_w;
  p.dilation_h = o->dilation_h, p.dilation_w = o->dilation_w;
  bool depthwise = p.kc == 1 && o->groups > 1;
  /* The limits of the grid, and of 32-bit arithmetic on k and within an image. */
  if (!depthwise &&
      (o->groups > 65535 || crk_ceil_div(p.per_group, 32) > 65535 ||
       (int64_t)p.kh * p.kw * p.kc > INT32_MAX - BK || crk_ceil_div(p.positions, 32) > INT32_MAX ||
       (int64_t)p.kh * p.dilation_h > INT32_MAX / 4 ||
       (int64_t)p.kw * p.dilation_w > INT32_MAX / 4 || p.h > INT32_MAX / 4 || p.w > INT32_MAX / 4))
    return cr__fail(CR_EUNSUPPORTED, "conv2d: %s with weight %s is too large", cr__shape(c->x),
                    cr__shape(c->weight));
  CRK_CONV_TYPES("conv2d", c->x->dtype, launch<T>(c, &p));
  return crk_launched("conv2d", c->d);
}
