/* 8-bit floating point: rows of numbers as E4M3 codes with a scale each, plain or with the step
 * before them (GEGLU, layer norm) in the same pass, and back.
 *
 * Invariants: codes and scales are bit for bit those that core/cpu/quant.c makes of the same f32
 * numbers: both divisions are rounded to nearest, as is each product; the largest magnitude is
 * taken of what will be coded. What a row needs is read once and held in registers. */
#include <cuda_fp8.h>

#include "device/packs.h"
#include "linear/fp8.h"

/* What stands before the coding. */
enum { PLAIN, GEGLU, LAYER_NORM };

enum { BLOCK = 256, PIECES = 5, V = 8 };

typedef struct fp8_rows {
  const void *x, *weight, *bias, *after; /* the last three: LAYER_NORM's, or NULL */
  uint8_t *codes;
  float *scale;
  int64_t rows;
  int32_t width;                      /* of the coded rows */
  uint32_t after_repeat, after_count; /* row r takes row r / repeat % count of `after` */
  float eps;
} fp8_rows;

template <typename T> __device__ __forceinline__ void take8(float *to, const T *from) {
  const int N = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < V; i += N) crk_unpack<T, N>(to + i, *(const crk_pack<T, N> *)(from + i));
}

/* The sum (or the largest) of a row's LANES threads, in each of them. */
template <int LANES, typename F>
__device__ __forceinline__ float row_reduce(float x, float *shared, F op) {
#pragma unroll
  for (int step = (LANES < 32 ? LANES : 32) / 2; step > 0; step >>= 1)
    x = op(x, __shfl_xor_sync(~0u, x, step));
  if constexpr (LANES > 32) {
    const int WARPS = LANES / 32;
    int warp = threadIdx.x / 32;
    __syncthreads(); /* `shared` may still be read from before */
    if (threadIdx.x % 32 == 0) shared[warp] = x;
    __syncthreads();
    int first = warp / WARPS * WARPS;
    x = shared[first];
#pragma unroll
    for (int i = 1; i < WARPS; i++) x = op(x, shared[first + i]);
  }
  return x;
}

/* Code words: element 0 in the lowest byte. The hardware's conversion: nearest, ties to even,
 * saturating; nan is 0x7f. */
__device__ __forceinline__ uint32_t codes4(float a, float b, float c, float e) {
  uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, e), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

__device__ __forceinline__ float scale_of(float most) {
  return __fdiv_rn(fmaxf(most, 1e-30f), 448.0f);
}

/* A row by LANES threads, each holding up to PIECES times 8 neighbouring numbers, so that a warp
 * reads and writes whole sectors; BLOCK / LANES rows a block. Memory-bound: x is read once, a byte
 * a number is written. */
template <typename T, int SOURCE, int LANES>
__global__ void __launch_bounds__(BLOCK) fp8_rows_kernel(const fp8_rows a) {
  __shared__ float shared[BLOCK / 32];
  int64_t row = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  const bool there = row < a.rows; /* all threads take part in the reductions */
  const T *x = (const T *)a.x + (there ? row : 0) * a.width * (SOURCE == GEGLU ? 2 : 1);
  float v[PIECES][V];
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    int at = (i * LANES + lane) * V;
#pragma unroll
    for (int j = 0; j < V; j++) v[i][j] = 0;
    if (!there || at >= a.width) continue;
    take8<T>(v[i], x + at);
    if (SOURCE == GEGLU) {
      float gate[V];
      take8<T>(gate, x + a.width + at);
#pragma unroll
      for (int j = 0; j < V; j++) v[i][j] *= crk_gelu(gate[j]);
    }
  }
  auto add = [](float p, float q) { return p + q; };
  if (SOURCE == LAYER_NORM) {
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
  float most = 0;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    if ((i * LANES + lane) * V >= a.width) break;
#pragma unroll
    for (int j = 0; j < V; j++) most = fmaxf(most, fabsf(v[i][j]));
  }
  most = row_reduce<LANES>(most, shared, [](float p, float q) { return fmaxf(p, q); });
  float scale = scale_of(most);
  if (there && lane == 0) a.scale[row] = scale;
  if (!there) return;
  float inverse = __frcp_rn(scale);
  uint8_t *codes = a.codes + row * a.width;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    int at = (i * LANES + lane) * V;
    if (at >= a.width) break;
#pragma unroll
    for (int j = 0; j < V; j++) v[i][j] = __fmul_rn(v[i][j], inverse);
    *(uint2 *)(codes + at) = make_uint2(codes4(v[i][0], v[i][1], v[i][2], v[i][3]),
                                        codes4(v[i][4], v[i][5], v[i][6], v[i][7]));
  }
}

/* Rows of any width and alignment, each by a block that reads it twice. */
template <typename T>
__global__ void __launch_bounds__(BLOCK) fp8_any_rows_kernel(const fp8_rows a) {
  __shared__ float shared[BLOCK / 32];
  const T *x = (const T *)a.x + (int64_t)blockIdx.x * a.width;
  float most = 0;
  for (int i = threadIdx.x; i < a.width; i += BLOCK) most = fmaxf(most, fabsf(crk_float(x[i])));
  most = row_reduce<BLOCK>(most, shared, [](float p, float q) { return fmaxf(p, q); });
  float scale = scale_of(most);
  if (threadIdx.x == 0) a.scale[blockIdx.x] = scale;
  float inverse = __frcp_rn(scale);
  uint8_t *codes = a.codes + (int64_t)blockIdx.x * a.width;
  for (int i = threadIdx.x; i < a.width; i += BLOCK)
    codes[i] =
        __nv_cvt_float_to_fp8(__fmul_rn(crk_float(x[i]), inverse), __NV_SATFINITE, __NV_E4M3);
}

template <typename T, int SOURCE> static bool launch_rows(crk_device *d, const fp8_rows *a) {
#define LAUNCH(lanes)                                                                              \
  if (a->width <= lanes * PIECES * V) {                                                            \
    fp8_rows_kernel<T, SOURCE, lanes>                                                              \
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

/* Whether fp8_rows_kernel takes it. */
static bool in_registers(const fp8_rows *a) {
  return a->width % V == 0 && a->width <= BLOCK * PIECES * V && a->rows <= INT32_MAX &&
         aligned(a->x, 16) && aligned(a->weight, 16) && aligned(a->bias, 16) &&
         aligned(a->after, 16) && aligned(a->codes, 8);
}

static fp8_rows args_of(cr_tensor *codes, cr_tensor *scale) {
  fp8_rows a = {};
  a.codes = (uint8_t *)crk_ptr(codes);
  a.scale = (float *)crk_ptr(scale);
  a.rows = cr_numel(scale);
  a.width = codes->shape[codes->rank - 1];
  return a;
}

int crk_fp8_only(const char *name, const cr_tensor *codes, bool scales, const cr_tensor *divisor) {
  if (codes->dtype == CR_U8 && scales && !divisor) return CR_OK;
  return cr__fail(CR_EUNSUPPORTED,
                  "%s: this card's kernels know 8-bit floats with a scale for each row alone",
                  name);
}

static int quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                    const cr_tensor *divisor) {
  CRK_DEVICE(d, "quantize", x);
  CR_TRY(crk_fp8_only("quantize", codes, scale != NULL, divisor));
  cr_tensor dense = {};
  if (!(x = cr__dense(x, x->dtype, &dense))) return cr__last_code();
  fp8_rows a = args_of(codes, scale);
  a.x = crk_ptr(x);
  int rc = a.rows > INT32_MAX ? cr__fail(CR_EUNSUPPORTED, "quantize: too many rows") : CR_OK;
  if (rc >= 0 && a.width > 0) {
    bool held = in_registers(&a);
    switch (x->dtype) {
#define CASE(code, type)                                                                           \
  case code:                                                                                       \
    if (held)                                                                                      \
      launch_rows<type, PLAIN>(d, &a);                                                             \
    else                                                                                           \
      fp8_any_rows_kernel<type><<<(unsigned)a.rows, BLOCK, 0, d->stream>>>(a);                     \
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

/* The two steps one after another, for what the one pass does not take. */
static int geglu_apart(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x) {
  cr_tensor y = {};
  int rc = cr_geglu(&y, x);
  if (rc >= 0) rc = quantize(codes, scale, &y, NULL);
  cr_free(&y);
  return rc;
}

static int geglu(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor) {
  CRK_DEVICE(d, "quant_geglu", x);
  CR_TRY(crk_fp8_only("quant_geglu", codes, scale != NULL, divisor));
  fp8_rows a = args_of(codes, scale);
  a.x = crk_ptr(x);
  if (!cr_is_contiguous(x) || !in_registers(&a)) return geglu_apart(codes, scale, x);
  CRK_FLOAT_TYPES("quant_geglu", x->dtype, (launch_rows<T, GEGLU>(d, &a)));
  return crk_launched("quant_geglu", d);
}

/* Whether `after` gives whole rows, repeated over leading dimensions of x behind its own and before
 * them: [F 1 C] in [B F T C]. */
static bool after_rows(fp8_rows *a, const cr_tensor *x, const cr_tensor *after) {
  if (!cr_is_contiguous(after) || after->dtype != x->dtype || after->rank < 1 ||
      after->shape[after->rank - 1] != a->width)
    return false;
  int64_t repeat = 1, count = 1;
  int stage = 0; /* 0: behind its rows, 1: in them, 2: before them */
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
  CR_TRY(crk_fp8_only(name, codes, scale != NULL, divisor));
  fp8_rows a = args_of(codes, scale);
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
  if (rc >= 0) rc = quantize(codes, scale, &y, NULL);
  cr_free(&y);
  return rc;
}

/* ---- and back ---- */

template <typename T>
__global__ void fp8_numbers_kernel(T *out, const uint8_t *codes, const float *scale, int64_t width,
                                   int64_t n) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half_raw h = __nv_cvt_fp8_to_halfraw(codes[i], __NV_E4M3); /* exact */
  float x = __half2float(*(const __half *)&h);
  out[i] = crk_from<T>(scale ? __fmul_rn(x, scale[i / width]) : x);
}

void crk_fp8_numbers(crk_device *d, float *out, const uint8_t *codes, int64_t n) {
  fp8_numbers_kernel<float>
      <<<(unsigned)crk_ceil_div(n, BLOCK), BLOCK, 0, d->stream>>>(out, codes, NULL, 1, n);
}

static int dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                      const cr_tensor *divisor) {
  static const char name[] = "dequantize";
  CRK_DEVICE(d, name, codes);
  CR_TRY(crk_fp8_only(name, codes, scale && scale->rank == codes->rank - 1, divisor));
  cr_tensor dense = {};
  cr_tensor *to = out;
  if (!cr_is_contiguous(out)) {
    CR_TRY(cr_empty(&dense, out->rank, out->shape, out->dtype, out->device));
    to = &dense;
  }
  int64_t n = cr_numel(out);
  unsigned blocks = (unsigned)crk_ceil_div(n, BLOCK);
  const uint8_t *c = (const uint8_t *)crk_ptr(codes);
  const float *s = (const float *)crk_ptr(scale);
  CRK_FLOAT_TYPES(name, out->dtype,
                  (fp8_numbers_kernel<T><<<blocks, BLOCK, 0, d->stream>>>(
                      (T *)crk_ptr(to), c, s, codes->shape[codes->rank - 1], n)));
  int rc = crk_launched(name, d);
  if (rc >= 0 && to != out) rc = cr_copy(out, to);
  cr_free(&dense);
  return rc;
}

void crk_fill_fp8(cr__backend *b) {
  b->quantize = quantize, b->dequantize = dequantize;
  b->quant_geglu = geglu, b->quant_layer_norm = layer_norm;
  b->quant_linear = crk_fp8_linear;
}
