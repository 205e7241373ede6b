/* Quantization to 8-bit codes (int8, E4M3), plain or fused with the step before it (GEGLU, layer
 * norm), and dequantization of all formats.
 *
 * Invariants: codes and scales are bit for bit those that core/cpu/quant.c computes from the same
 * f32 numbers: divisions and products are rounded to nearest, and the largest magnitude is that of
 * the numbers to be coded. A row's data are read once and held in registers. */
#include "device/codes.h"
#include "device/packs.h"
#include "linear/quant.h"

/* The step before the quantization. */
enum { PLAIN, GEGLU, LAYER_NORM };

enum { BLOCK = 256, PIECES = 5, V = 8 };

typedef struct code_rows {
  const void *x, *weight, *bias, *after; /* the last three are those of LAYER_NORM, or NULL */
  uint8_t *codes;
  float *scale;         /* NULL: the codes are those of x / divisor, unscaled */
  const float *divisor; /* or NULL */
  bool e4m3;            /* codes are E4M3, else int8 */
  int64_t rows;
  int32_t width;                      /* of the coded rows */
  uint32_t after_repeat, after_count; /* row r adds row r / repeat % count of `after` */
  float eps;
} code_rows;

template <typename T> __device__ __forceinline__ void take8(float *to, const T *from) {
  const int N = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < V; i += N) crk_unpack<T, N>(to + i, *(const crk_pack<T, N> *)(from + i));
}

/* The sum (or the maximum) over a row's LANES threads, in each of them. */
template <int LANES, typename F>
__device__ __forceinline__ float row_reduce(float x, float *shared, F op) {
#pragma unroll
  for (int step = (LANES < 32 ? LANES : 32) / 2; step > 0; step >>= 1)
    x = op(x, __shfl_xor_sync(~0u, x, step));
  if constexpr (LANES > 32) {
    const int WARPS = LANES / 32;
    int warp = threadIdx.x / 32;
    __syncthreads(); /* `shared` may still be in use */
    if (threadIdx.x % 32 == 0) shared[warp] = x;
    __syncthreads();
    int first = warp / WARPS * WARPS;
    x = shared[first];
#pragma unroll
    for (int i = 1; i < WARPS; i++) x = op(x, shared[first + i]);
  }
  return x;
}

/* The codes of four neighbours, the first in the lowest byte. */
__device__ __forceinline__ uint32_t codes4(const float *x, bool e4m3) {
  return e4m3 ? crk_code<uint8_t>::two(x[0], x[1]) | crk_code<uint8_t>::two(x[2], x[3]) << 16
              : crk_code<int8_t>::two(x[0], x[1]) | crk_code<int8_t>::two(x[2], x[3]) << 16;
}

/* The scale of a row. fmaxf ignores nan in the largest magnitude `most`. In int8, a row with a
 * number that is not finite gets the scale nan: `zeros` is the sum of 0 times each number. */
__device__ __forceinline__ float scale_of(float most, float zeros, bool e4m3) {
  float scale =
      __fdiv_rn(fmaxf(most, 1e-30f), e4m3 ? crk_code<uint8_t>::MOST : crk_code<int8_t>::MOST);
  return e4m3 ? scale : scale + zeros;
}

/* The phases of code_rows_kernel. v (PIECES, V) are a thread's numbers of the row: PIECES times V
 * neighbours, LANES V apart. */

/* Load, with GEGLU. Threads without numbers get zeros. */
template <typename T, int SOURCE, int LANES>
__device__ __forceinline__ void load(float (&v)[PIECES][V], const T *x, int32_t width, bool there,
                                     int lane) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    int at = (i * LANES + lane) * V;
#pragma unroll
    for (int j = 0; j < V; j++) v[i][j] = 0;
    if (!there || at >= width) continue;
    take8<T>(v[i], x + at);
    if (SOURCE == GEGLU) {
      float gate[V];
      take8<T>(gate, x + width + at);
#pragma unroll
      for (int j = 0; j < V; j++) v[i][j] *= crk_gelu(gate[j]);
    }
  }
}

/* Division by the divisor (width) of the columns. */
template <int LANES>
__device__ __forceinline__ void divide(float (&v)[PIECES][V], const float *divisors, int32_t width,
                                       int lane) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    int at = (i * LANES + lane) * V;
    if (at >= width) break;
    float divisor[V];
    take8<float>(divisor, divisors + at);
#pragma unroll
    for (int j = 0; j < V; j++) v[i][j] = __fmul_rn(v[i][j], crk_inverse(divisor[j]));
  }
}

/* The scale of the row, in all of its threads. */
template <int LANES>
__device__ __forceinline__ float row_scale(const float (&v)[PIECES][V], const code_rows &a,
                                           int lane, float *shared) {
  float most = 0, zeros = 0;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    if ((i * LANES + lane) * V >= a.width) break;
#pragma unroll
    for (int j = 0; j < V; j++) {
      most = fmaxf(most, fabsf(v[i][j]));
      zeros = __fmaf_rn(v[i][j], 0.0f, zeros);
    }
  }
  most = row_reduce<LANES>(most, shared, [](float p, float q) { return fmaxf(p, q); });
  if (!a.e4m3) zeros = row_reduce<LANES>(zeros, shared, [](float p, float q) { return p + q; });
  return scale_of(most, zeros, a.e4m3);
}

/* Store: the codes of the scaled numbers. `codes` is the row (width). */
template <int LANES>
__device__ __forceinline__ void store(float (&v)[PIECES][V], float inverse, uint8_t *codes,
                                      const code_rows &a, int lane) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    int at = (i * LANES + lane) * V;
    if (at >= a.width) break;
#pragma unroll
    for (int j = 0; j < V; j++) v[i][j] = __fmul_rn(v[i][j], inverse);
    *(uint2 *)(codes + at) = make_uint2(codes4(v[i], a.e4m3), codes4(v[i] + 4, a.e4m3));
  }
}

/* A row for LANES threads, each of which holds up to PIECES times 8 neighbouring numbers, so that a
 * warp accesses whole sectors; BLOCK / LANES rows a block. Memory-bound: x is read once, and a byte
 * is written for each number. */
template <typename T, int SOURCE, int LANES>
__global__ void __launch_bounds__(BLOCK) code_rows_kernel(const code_rows a) {
  __shared__ float shared[BLOCK / 32];
  int64_t row = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  const bool there = row < a.rows; /* all threads take part in the reductions */
  const T *x = (const T *)a.x + (there ? row : 0) * a.width * (SOURCE == GEGLU ? 2 : 1);
  float v[PIECES][V];
  load<T, SOURCE, LANES>(v, x, a.width, there, lane);

  /* ---- layer norm: mean, variance around it, weight, bias and `after` ---- */
  if (SOURCE == LAYER_NORM) {
    auto add = [](float p, float q) { return p + q; };
    float sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
      for (int j = 0; j < V; j++) sum += v[i][j];
    float inverse_width = 1.0f / (float)a.width;
    float mean = row_reduce<LANES>(sum, shared, add) * inverse_width;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      if ((i * LANES + lane) * V >= a.width) break;
#pragma unroll
      for (int j = 0; j < V; j++) {
        v[i][j] -= mean;
        square = __fmaf_rn(v[i][j], v[i][j], square);
      }
    }
    float inverse = rsqrtf(row_reduce<LANES>(square, shared, add) * inverse_width + a.eps);
    const T *after = NULL;
    if (a.after)
      after =
          (const T *)a.after + (int64_t)((uint32_t)row / a.after_repeat % a.after_count) * a.width;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      int at = (i * LANES + lane) * V;
      if (!there || at >= a.width) break;
      float factor[V], more[V];
#pragma unroll
      for (int j = 0; j < V; j++) factor[j] = 1, more[j] = 0;
      if (a.weight) take8<T>(factor, (const T *)a.weight + at);
      if (a.bias) take8<T>(more, (const T *)a.bias + at);
#pragma unroll
      for (int j = 0; j < V; j++) v[i][j] = __fmaf_rn(v[i][j] * inverse, factor[j], more[j]);
      if (after) {
        take8<T>(more, after + at);
#pragma unroll
        for (int j = 0; j < V; j++) v[i][j] += more[j];
      }
    }
  }

  if (a.divisor) divide<LANES>(v, a.divisor, a.width, lane);
  float inverse = 1;
  if (a.scale) {
    float scale = row_scale<LANES>(v, a, lane, shared);
    if (there && lane == 0) a.scale[row] = scale;
    inverse = __frcp_rn(scale);
  }

  if (there) store<LANES>(v, inverse, a.codes + row * a.width, a, lane);
}

/* Rows of any width and alignment, each for a block that reads it twice. */
template <typename T>
__global__ void __launch_bounds__(BLOCK) code_any_rows_kernel(const code_rows a) {
  __shared__ float shared[BLOCK / 32];
  const T *x = (const T *)a.x + (int64_t)blockIdx.x * a.width;
  auto number = [&](int i) {
    float v = crk_float(x[i]);
    return a.divisor ? __fmul_rn(v, crk_inverse(a.divisor[i])) : v;
  };
  float inverse = 1;
  if (a.scale) {
    float most = 0, zeros = 0;
    for (int i = threadIdx.x; i < a.width; i += BLOCK) {
      float v = number(i);
      most = fmaxf(most, fabsf(v));
      zeros = __fmaf_rn(v, 0.0f, zeros);
    }
    most = row_reduce<BLOCK>(most, shared, [](float p, float q) { return fmaxf(p, q); });
    zeros = row_reduce<BLOCK>(zeros, shared, [](float p, float q) { return p + q; });
    float scale = scale_of(most, zeros, a.e4m3);
    if (threadIdx.x == 0) a.scale[blockIdx.x] = scale;
    inverse = __frcp_rn(scale);
  }
  uint8_t *codes = a.codes + (int64_t)blockIdx.x * a.width;
  for (int i = threadIdx.x; i < a.width; i += BLOCK) {
    float v = __fmul_rn(number(i), inverse);
    codes[i] = (uint8_t)(a.e4m3 ? crk_code<uint8_t>::one(v) : crk_code<int8_t>::one(v));
  }
}

template <typename T, int SOURCE> static bool launch_rows(crk_device *d, const code_rows *a) {
#define LAUNCH(lanes)                                                                              \
  if (a->width <= lanes * PIECES * V) {                                                            \
    code_rows_kernel<T, SOURCE, lanes>                                                             \
        <<<(unsigned)crk_ceil_div(a->rows, BLOCK / lanes), BLOCK, 0, d->stream>>>(*a);             \
    return true;                                                                                   \
  }
  LAUNCH(8)
  LAUNCH(16)
  LAUNCH(32)
  LAUNCH(64)
  LAUNCH(128)
  LAUNCH(256)
#undef LAUNCH
  return false;
}

static bool aligned(const void *p, int bytes) { return (uintptr_t)p % bytes == 0; }

/* Whether code_rows_kernel can run: rows fit in registers and are aligned. */
static bool in_registers(const code_rows *a) {
  return a->width % V == 0 && a->width <= BLOCK * PIECES * V && a->rows <= INT32_MAX &&
         aligned(a->x, 16) && aligned(a->weight, 16) && aligned(a->bias, 16) &&
         aligned(a->after, 16) && aligned(a->divisor, 16) && aligned(a->codes, 8);
}

static code_rows args_of(cr_tensor *codes, cr_tensor *scale, const cr_tensor *divisor) {
  code_rows a = {};
  a.codes = (uint8_t *)crk_ptr(codes);
  a.width = codes->shape[codes->rank - 1];
  if (scale) a.scale = (float *)crk_ptr(scale);
  a.rows = scale ? cr_numel(scale) : cr_numel(codes) / a.width;
  if (divisor) a.divisor = (const float *)crk_ptr(divisor);
  a.e4m3 = codes->dtype == CR_U8;
  return a;
}

static int quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                    const cr_tensor *divisor) {
  CRK_DEVICE(d, "quantize", x);
  cr_tensor dense = {};
  if (!(x = cr__dense(x, x->dtype, &dense))) return cr__last_code();
  if (cr_numel(codes) == 0 && !scale) return CR_OK;
  code_rows a = args_of(codes, scale, divisor);
  a.x = crk_ptr(x);
  int rc = a.rows > INT32_MAX ? cr__fail(CR_EUNSUPPORTED, "quantize: too many rows") : CR_OK;
  if (rc >= 0) {
    bool held = in_registers(&a);
    switch (x->dtype) {
#define CASE(code, type)                                                                           \
  case code:                                                                                       \
    if (held)                                                                                      \
      launch_rows<type, PLAIN>(d, &a);                                                             \
    else                                                                                           \
      code_any_rows_kernel<type><<<(unsigned)a.rows, BLOCK, 0, d->stream>>>(a);                    \
    break;
      CASE(CR_F32, float)
      CASE(CR_F16, __half)
      CASE(CR_BF16, __nv_bfloat16)
#undef CASE
    }
    rc = crk_launched("quantize", d);
  }
  cr_free(&dense);
  return rc;
}

/* The two steps one after another, for what the fused kernel does not take. */
static int geglu_apart(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                       const cr_tensor *divisor) {
  cr_tensor y = {};
  int rc = cr_geglu(&y, x);
  if (rc >= 0) rc = quantize(codes, scale, &y, divisor);
  cr_free(&y);
  return rc;
}

static int geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor) {
  CRK_DEVICE(d, "quant_geglu", x);
  code_rows a = args_of(codes, scale, divisor);
  a.x = crk_ptr(x);
  if (!cr_is_contiguous(x) || !in_registers(&a)) return geglu_apart(codes, scale, x, divisor);
  CRK_FLOAT_TYPES("quant_geglu", x->dtype, (launch_rows<T, GEGLU>(d, &a)));
  return crk_launched("quant_geglu", d);
}

/* Whether `after` has whole rows, repeated over leading dimensions of x after its own and before
 * them: [F 1 C] in [B F T C]. */
static bool after_rows(code_rows *a, const cr_tensor *x, const cr_tensor *after) {
  if (!cr_is_contiguous(after) || after->dtype != x->dtype || after->rank < 1 ||
      after->shape[after->rank - 1] != a->width)
    return false;
  int64_t repeat = 1, count = 1;
  int stage = 0; /* 0: after its rows, 1: in them, 2: before them */
  for (int i = 2; i <= x->rank; i++) {
    int64_t size = x->shape[x->rank - i];
    int64_t own = i <= after->rank ? after->shape[after->rank - i] : 1;
    if (size == 1) continue;
    if (own == size) {
      if (stage == 2) return false;
      stage = 1;
      count *= size;
    } else {
      if (stage == 0)
        repeat *= size;
      else
        stage = 2;
    }
  }
  if (repeat > INT32_MAX || count > INT32_MAX) return false;
  a->after_repeat = (uint32_t)repeat;
  a->after_count = (uint32_t)count;
  a->after = crk_ptr(after);
  return true;
}

static bool parameter(const void **out, const cr_tensor *t, int32_t dtype) {
  if (!t) return true;
  if (t->dtype != dtype || !cr_is_contiguous(t)) return false;
  *out = crk_ptr(t);
  return true;
}

static int layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                      const cr_tensor *weight, const cr_tensor *bias, double eps,
                      const cr_tensor *after, const cr_tensor *divisor) {
  static const char name[] = "quant_layer_norm";
  CRK_DEVICE(d, name, x);
  code_rows a = args_of(codes, scale, divisor);
  a.x = crk_ptr(x);
  a.eps = (float)eps;
  if (cr_is_contiguous(x) && parameter(&a.weight, weight, x->dtype) &&
      parameter(&a.bias, bias, x->dtype) && (!after || after_rows(&a, x, after)) &&
      in_registers(&a)) {
    CRK_FLOAT_TYPES(name, x->dtype, (launch_rows<T, LAYER_NORM>(d, &a)));
    return crk_launched(name, d);
  }
  cr_tensor y = {};
  int rc = cr_layer_norm(&y, x, weight, bias, eps, after);
  if (rc >= 0) rc = quantize(codes, scale, &y, divisor);
  cr_free(&y);
  return rc;
}

/* ---- dequantization ---- */

/* out[i] = the number of code i * scale * divisor. FORMAT is that of the codes; the scale is
 * scale[i / width], for int4 scale[row][i % width / 64] of rows of `width`. Memory-bound; N numbers
 * a thread. */
enum { INT8, E4M3, INT4 };

template <typename T, int FORMAT, int N>
__global__ void __launch_bounds__(BLOCK)
    numbers_kernel(T *out, const uint8_t *codes, const float *scale, const float *divisor,
                   int64_t width, int64_t last, int64_t n) {
  int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * N;
  if (i >= n) return;
  constexpr int BYTES = FORMAT == INT4 ? (N + 1) / 2 : N;
  crk_pack<uint8_t, BYTES> from =
      *(const crk_pack<uint8_t, BYTES> *)(codes + (FORMAT == INT4 ? i / 2 : i));
  int64_t row = i / width;
  float factor = 1;
  if (FORMAT == INT4)
    factor = scale[row * ((width + CRK_INT4_GROUP - 1) / CRK_INT4_GROUP) +
                   (i - row * width) / CRK_INT4_GROUP];
  else if (scale)
    factor = scale[row];
  crk_pack<T, N> to;
#pragma unroll
  for (int j = 0; j < N; j++) {
    float x;
    if constexpr (FORMAT == INT8) {
      x = (float)(int8_t)from.v[j];
    } else if constexpr (FORMAT == E4M3) {
      __half_raw h = __nv_cvt_fp8_to_halfraw(from.v[j], __NV_E4M3); /* exact */
      x = __half2float(*(const __half *)&h);
    } else {
      int four = from.v[j / 2] >> ((N > 1 ? j : (int)(i % 2)) % 2 * 4) & 15;
      x = (float)((four ^ 8) - 8);
    }
    x = __fmul_rn(x, factor);
    if (divisor) x = __fmul_rn(x, divisor[(i + j) % last]);
    to.v[j] = crk_from<T>(x);
  }
  *(crk_pack<T, N> *)(out + i) = to;
}

template <typename T, int FORMAT>
static void launch_numbers(crk_device *d, T *out, const cr_tensor *codes, const cr_tensor *scale,
                           const cr_tensor *divisor, int64_t n) {
  const uint8_t *c = (const uint8_t *)crk_ptr(codes);
  const float *s = scale ? (const float *)crk_ptr(scale) : NULL,
              *v = divisor ? (const float *)crk_ptr(divisor) : NULL;
  int64_t last = codes->shape[codes->rank - 1] * (FORMAT == INT4 ? 2 : 1);
  int64_t width = FORMAT == INT4 ? last : scale ? n / cr_numel(scale) : n;
  constexpr int N = 16 / sizeof(T);
  if (width % N == 0 && aligned(out, 16) && aligned(c, N))
    numbers_kernel<T, FORMAT, N><<<(unsigned)crk_ceil_div(n, BLOCK * N), BLOCK, 0, d->stream>>>(
        out, c, s, v, width, last, n);
  else
    numbers_kernel<T, FORMAT, 1>
        <<<(unsigned)crk_ceil_div(n, BLOCK), BLOCK, 0, d->stream>>>(out, c, s, v, width, last, n);
}

void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n) {
  numbers_kernel<float, E4M3, 1>
      <<<(unsigned)crk_ceil_div(n, BLOCK), BLOCK, 0, d->stream>>>(out, codes, NULL, NULL, n, n, n);
}

static int dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                      const cr_tensor *divisor) {
  static const char name[] = "dequantize";
  CRK_DEVICE(d, name, codes);
  cr_tensor dense = {};
  cr_tensor *to = out;
  if (!cr_is_contiguous(out)) {
    CR_TRY(cr_empty(&dense, out->rank, out->shape, out->dtype, out->device));
    to = &dense;
  }
  int64_t n = cr_numel(out);
  bool int4 = crk_is_int4(codes, scale);
  CRK_FLOAT_TYPES(name, out->dtype, {
    T *p = (T *)crk_ptr(to);
    if (int4)
      launch_numbers<T, INT4>(d, p, codes, scale, divisor, n);
    else if (codes->dtype == CR_U8)
      launch_numbers<T, E4M3>(d, p, codes, scale, divisor, n);
    else
      launch_numbers<T, INT8>(d, p, codes, scale, divisor, n);
  });
  int rc = crk_launched(name, d);
  if (rc >= 0 && to != out) rc = cr_copy(out, to);
  cr_free(&dense);
  return rc;
}

void crk_fill_quantize(cr__backend *b) {
  b->quantize = quantize, b->dequantize = dequantize;
  b->quant_geglu = geglu, b->quant_layer_norm = layer_norm;
}
