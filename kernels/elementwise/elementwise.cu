/* The elementwise operations besides those on one operand and on two: clamp, where, linear
 * combinations, fill, arange; and the family's entries in the table. */
#include <math.h>
#include <string.h>

#include "elementwise/elementwise.h"

/* ---- clamp ---- */

template <typename A> struct limits {
  A low, high;
  __device__ __forceinline__ A operator()(const A (&x)[1]) const {
    A v = x[0] < low ? low : x[0];
    return v > high ? high : v;
  }
};

static int clamp(cr_tensor *out, const cr_tensor *x, double low, double high) {
  CRK_DEVICE(d, "clamp", x);
  if (cr_numel(out) == 0) return CR_OK;
  crk_dtypes dtypes;
  crk_plan p = crk_map_plan({out, x}, &dtypes);
  limits<float> f = {(float)low, (float)high};
  limits<int64_t> whole = {
      low <= -0x1p63  ? INT64_MIN
      : low >= 0x1p63 ? INT64_MAX
                      : (int64_t)ceil(low),
      high >= 0x1p63    ? INT64_MAX
      : high <= -0x1p63 ? INT64_MIN
                        : (int64_t)floor(high),
  };
  switch (x->dtype) {
  case CR_F32:
    crk_map_vectors<float, float, 1>(d, &p, dtypes, f);
    break;
  case CR_F16:
    crk_map_vectors<__half, __half, 1>(d, &p, dtypes, f);
    break;
  case CR_BF16:
    crk_map_vectors<__nv_bfloat16, __nv_bfloat16, 1>(d, &p, dtypes, f);
    break;
  case CR_F64:
    crk_map_elements<double, 1>(d, &p, dtypes, limits<double>{low, high});
    break;
  default:
    crk_map_elements<int64_t, 1>(d, &p, dtypes, whole);
    break;
  }
  return crk_launched("clamp", d);
}

/* ---- where ---- */

struct choice {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[3]) const {
    return x[0] != (A)0 ? x[1] : x[2];
  }
};

/* A thread handles 16 bytes of each of two operands, and a byte of the condition for each element.
 * Bit n of `repeated`: operand n (the condition is 0) stays the same along the innermost dimension.
 */
template <typename U, int V>
__global__ void __launch_bounds__(CRK_MAP_THREADS)
    where_kernel(const __grid_constant__ crk_strided<4> w, uint32_t repeated) {
  uint32_t i = blockIdx.x * CRK_MAP_THREADS + threadIdx.x;
  if (i >= w.items) return;
  int64_t at[4];
  crk_offsets(w, i, at);
  auto load = [&](auto one, int n) {
    crk_vector<decltype(one), V> v;
    const char *p = w.data[n + 1] + at[n + 1];
    if (!(repeated >> n & 1u)) return *(const crk_vector<decltype(one), V> *)p;
#pragma unroll
    for (int j = 0; j < V; j++) v.v[j] = *(const decltype(one) *)p;
    return v;
  };
  crk_vector<uint8_t, V> yes = load(uint8_t(), 0);
  crk_vector<U, V> a = load(U(), 1), b = load(U(), 2);
#pragma unroll
  for (int j = 0; j < V; j++) b.v[j] = yes.v[j] ? a.v[j] : b.v[j];
  *(crk_vector<U, V> *)(w.data[0] + at[0]) = b;
}

/* Runs where_kernel if the plan suits it; false if it does not. Operands have the result's dtype,
 * of 2 or 4 bytes. */
template <typename U> static bool where_vectors(crk_device *d, const crk_plan *plan) {
  constexpr int V = 16 / sizeof(U);
  uint32_t repeated;
  if (!crk_map_takes_vectors(plan, V, &repeated)) return false;
  crk_plan_split(plan, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    crk_strided<4> w = crk_strided_of<4>(&p, V);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, CRK_MAP_THREADS);
    where_kernel<U, V><<<blocks, CRK_MAP_THREADS, 0, d->stream>>>(w, repeated);
    return (int)CR_OK;
  });
  return true;
}

static int where(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a,
                 const cr_tensor *b) {
  CRK_DEVICE(d, "where", out);
  if (cr_numel(out) == 0) return CR_OK;
  crk_dtypes dtypes;
  crk_plan p = crk_map_plan({out, condition, a, b}, &dtypes);
  bool same = a->dtype == out->dtype && b->dtype == out->dtype;
  int32_t size = cr_dtype_size(out->dtype);
  if (same && ((size == 4 && where_vectors<uint32_t>(d, &p)) ||
               (size == 2 && where_vectors<uint16_t>(d, &p))))
    return crk_launched("where", d);
  int in = crk_arithmetic_of(out->dtype);
  if (in == CRK_IN_F32)
    crk_map_elements<float, 3>(d, &p, dtypes, choice());
  else if (in == CRK_IN_F64)
    crk_map_elements<double, 3>(d, &p, dtypes, choice());
  else
    crk_map_elements<int64_t, 3>(d, &p, dtypes, choice());
  return crk_launched("where", d);
}

/* ---- linear combinations ---- */

enum { MOST = 16, THREADS = 256 };

template <typename A, int N> struct coefficients_of { A v[N]; };

/* out = sum of c[k] * x[k], k < n <= N, in one pass: thread t of block b has vector b * 256 + t of
 * all operands, and loads them all before it uses the first. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    lincomb_vectors_kernel(const __grid_constant__ crk_strided<N + 1> w, int n,
                           const __grid_constant__ coefficients_of<float, N> c) {
  constexpr int V = 16 / sizeof(T);
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= w.items) return;
  int64_t at[N + 1];
  crk_offsets(w, i, at);
  crk_vector<T, V> x[N];
#pragma unroll
  for (int k = 0; k < N; k++)
    if (k < n) x[k] = *(const crk_vector<T, V> *)(w.data[k + 1] + at[k + 1]);
  float sum[V];
#pragma unroll
  for (int j = 0; j < V; j++) sum[j] = c.v[0] * crk_float(x[0].v[j]);
#pragma unroll
  for (int k = 1; k < N; k++) {
    if (k >= n) break;
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] += c.v[k] * crk_float(x[k].v[j]);
  }
  crk_vector<T, V> y;
#pragma unroll
  for (int j = 0; j < V; j++) y.v[j] = crk_from<T>(sum[j]);
  *(crk_vector<T, V> *)(w.data[0] + at[0]) = y;
}

struct lincomb_dtypes {
  int8_t of[MOST + 1];
};

/* The same for any dtypes and strides, an element a thread. */
template <typename A>
__global__ void __launch_bounds__(THREADS)
    lincomb_elements_kernel(const __grid_constant__ crk_strided<MOST + 1> w, lincomb_dtypes dtypes,
                            int n, const __grid_constant__ coefficients_of<A, MOST> c) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= w.items) return;
  A sum = 0;
#pragma unroll 1
  for (int k = n; k >= 0; k--) { /* the result comes last, when the sum is known */
    int operand = k == 0 ? 0 : n - k + 1;
    int64_t at = 0;
    uint32_t rest = i;
#pragma unroll 1
    for (int dim = 0; dim < w.rank; dim++) {
      uint32_t next = crk_divide(rest, w.size[dim]);
      at += (int64_t)(rest - next * w.size[dim].d) * w.stride[operand][dim];
      rest = next;
    }
    if (operand == 0)
      crk_store<A>(w.data[0] + at, dtypes.of[0], sum);
    else
      sum += c.v[operand - 1] * crk_load<A>(w.data[operand] + at, dtypes.of[operand]);
  }
}

template <typename T, int N>
static void lincomb_vectors(crk_device *d, const crk_plan *plan, int32_t n,
                            const double *coefficients) {
  constexpr int V = 16 / sizeof(T);
  coefficients_of<float, N> c = {};
  for (int32_t k = 0; k < n; k++) c.v[k] = (float)coefficients[k];
  crk_plan_split(plan, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    crk_strided<N + 1> w = crk_strided_of<N + 1>(&p, V);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, THREADS);
    lincomb_vectors_kernel<T, N><<<blocks, THREADS, 0, d->stream>>>(w, n, c);
    return (int)CR_OK;
  });
}

template <typename A>
static void lincomb_elements(crk_device *d, const crk_plan *plan, const lincomb_dtypes &dtypes,
                             int32_t n, const double *coefficients) {
  coefficients_of<A, MOST> c = {};
  for (int32_t k = 0; k < n; k++) c.v[k] = (A)coefficients[k];
  crk_plan_split(plan, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    crk_strided<MOST + 1> w = crk_strided_of<MOST + 1>(&p, 1);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, THREADS);
    lincomb_elements_kernel<A><<<blocks, THREADS, 0, d->stream>>>(w, dtypes, n, c);
    return (int)CR_OK;
  });
}

static int lincomb(cr_tensor *out, int32_t n, const cr_tensor *const *xs,
                   const double *coefficients) {
  CRK_DEVICE(d, "lincomb", out);
  if (cr_numel(out) == 0) return CR_OK;
  const cr_tensor *operands[MOST + 1] = {out};
  lincomb_dtypes dtypes = {{(int8_t)out->dtype}};
  bool wide = false, same = true;
  for (int32_t k = 0; k < n; k++) {
    operands[k + 1] = xs[k];
    dtypes.of[k + 1] = (int8_t)xs[k]->dtype;
    wide = wide || xs[k]->dtype == CR_F64;
    same = same && xs[k]->dtype == out->dtype;
  }
  crk_plan p = crk_plan_of(n + 1, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  if (wide) {
    lincomb_elements<double>(d, &p, dtypes, n, coefficients);
    return crk_launched("lincomb", d);
  }
  uint32_t repeated;
  if (!same || !crk_map_takes_vectors(&p, 16 / cr_dtype_size(out->dtype), &repeated) || repeated) {
    lincomb_elements<float>(d, &p, dtypes, n, coefficients);
    return crk_launched("lincomb", d);
  }
  CRK_FLOAT_TYPES("lincomb", out->dtype, {
    if (n <= 2)
      lincomb_vectors<T, 2>(d, &p, n, coefficients);
    else if (n <= 4)
      lincomb_vectors<T, 4>(d, &p, n, coefficients);
    else if (n <= 8)
      lincomb_vectors<T, 8>(d, &p, n, coefficients);
    else
      lincomb_vectors<T, 16>(d, &p, n, coefficients);
  });
  return crk_launched("lincomb", d);
}

/* ---- fill and arange ---- */

template <typename U>
__global__ void __launch_bounds__(THREADS)
    fill_kernel(const __grid_constant__ crk_strided<1> w, U pattern) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= w.items) return;
  int64_t at[1];
  crk_offsets(w, i, at);
  *(U *)(w.data[0] + at[0]) = pattern;
}

template <typename U> static void fill_units(crk_device *d, const crk_plan *p, const void *bytes) {
  int64_t width = (int64_t)sizeof(U) / p->size[0];
  U pattern;
  for (int64_t k = 0; k < width; k++)
    memcpy((char *)&pattern + k * p->size[0], bytes, (size_t)p->size[0]);
  crk_plan_split(p, CRK_MAX_ITEMS, [&](const crk_plan &part) {
    crk_strided<1> w = crk_strided_of<1>(&part, width);
    fill_kernel<<<(unsigned)crk_ceil_div(w.items, THREADS), THREADS, 0, d->stream>>>(w, pattern);
    return (int)CR_OK;
  });
}

/* Encodes `value` as an element of `dtype`. */
static void encode(void *bytes, int32_t dtype, double value) {
  double whole = value != value ? 0 : trunc(value);
#define ENCODE(TYPE, EXPR)                                                                         \
  {                                                                                                \
    TYPE element = (TYPE)(EXPR);                                                                   \
    memcpy(bytes, &element, sizeof element);                                                       \
  }                                                                                                \
  break
#define WITHIN(LOW, HIGH) (whole < (LOW) ? (LOW) : whole > (HIGH) ? (HIGH) : whole)
  switch (dtype) {
  case CR_F32:
    ENCODE(float, value);
  case CR_F16:
    ENCODE(__half, __double2half(value));
  case CR_BF16:
    ENCODE(__nv_bfloat16, __double2bfloat16(value));
  case CR_F64:
    ENCODE(double, value);
  case CR_U8:
    ENCODE(uint8_t, WITHIN(0, 255));
  case CR_I8:
    ENCODE(int8_t, WITHIN(-128, 127));
  case CR_I16:
    ENCODE(int16_t, WITHIN(-32768, 32767));
  case CR_I32:
    ENCODE(int32_t, WITHIN(-0x1p31, 0x1p31 - 1));
  case CR_I64:
    ENCODE(int64_t, whole >= 0x1p63 ? INT64_MAX : whole < -0x1p63 ? INT64_MIN : (int64_t)whole);
  default:
    ENCODE(uint8_t, value != 0);
  }
#undef ENCODE
#undef WITHIN
}

static int fill(cr_tensor *t, double value) {
  CRK_DEVICE(d, "fill", t);
  if (cr_numel(t) == 0) return CR_OK;
  const cr_tensor *operands[] = {t};
  crk_plan p = crk_plan_of(1, operands, t->rank, t->shape);
  crk_plan_merge(&p, true);
  char bytes[8] = {0};
  encode(bytes, t->dtype, value);
  bool dense = p.rank == 1 && p.stride[0][0] == 1;
  if (dense && memcmp(bytes, "\0\0\0\0\0\0\0", 8) == 0) {
    CRK_TRY("fill", d, cudaMemsetAsync(p.data[0], 0, (size_t)(p.shape[0] * p.size[0]), d->stream));
    return CR_OK;
  }
  int64_t unit =
      p.stride[0][0] == 1 ? p.size[0] * crk_plan_width(&p, 0, 16 / p.size[0]) : p.size[0];
  crk_with_unit(unit, [&](auto u) { fill_units<decltype(u)>(d, &p, bytes); });
  return crk_launched("fill", d);
}

__global__ void __launch_bounds__(THREADS)
    arange_kernel(char *out, int32_t dtype, int64_t stride, uint32_t n, double start, double step) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i < n) crk_store<double>(out + i * stride, dtype, __dadd_rn(start, __dmul_rn(i, step)));
}

static int arange(cr_tensor *out, double start, double step) {
  CRK_DEVICE(d, "arange", out);
  int64_t n = out->shape[0];
  if (n == 0) return CR_OK;
  arange_kernel<<<(unsigned)crk_ceil_div(n, THREADS), THREADS, 0, d->stream>>>(
      (char *)crk_ptr(out), out->dtype, out->stride[0] * cr_dtype_size(out->dtype), (uint32_t)n,
      start, step);
  return crk_launched("arange", d);
}

void crk_fill_elementwise(cr__backend *b) {
  b->unary = crk_unary;
  b->binary = crk_binary;
  b->binary_scalar = crk_binary_scalar;
  b->clamp = clamp;
  b->where = where;
  b->lincomb = lincomb;
  b->geglu = crk_geglu;
  b->fill = fill;
  b->arange = arange;
}
