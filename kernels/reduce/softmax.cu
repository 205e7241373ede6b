/* Softmax over the last dimension, of any width and strides.
 *
 * exp(x - m) / sum exp(x - m), where m is the row's maximum; in float (f64 in double). A row of
 * -inf gives nan, as everywhere; a nan in x reaches every result through the sum. */
#include "device/strided.h"
#include "reduce/reduce.h"

enum { THREADS = 256, WARP = 32 };

typedef struct rows {
  crk_strided<2> strided; /* over rows: the result's and x's, strides in bytes */
  int64_t n;              /* elements of a row */
  int64_t to, from;       /* from element to element, bytes */
} rows;

template <typename A, typename F> __device__ __forceinline__ A team_reduce(A x, int team, F op) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
  if (team == WARP) return x;
  __shared__ A part[THREADS / WARP];
  __syncthreads(); /* all threads have read the last reduction's parts */
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  x = part[0];
#pragma unroll
  for (int k = 1; k < THREADS / WARP; k++) x = op(x, part[k]);
  return x;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

/* A row for TEAM threads, an eighth of a block or all of it; thread t has the V elements from (k
 * TEAM + t) V on, k = 0, 1, ... KEEP > 0: the row is at most KEEP * TEAM long and stays in
 * registers; else it is read three times, after the first time from the cache. V > 1: rows are
 * dense and aligned, and 16 bytes are moved at a time. */
template <typename T, typename A, int TEAM, int KEEP, int V>
__global__ void __launch_bounds__(THREADS) softmax_kernel(const __grid_constant__ rows r) {
  uint32_t row = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
  if (row >= r.strided.items) return; /* whole warps leave; a block of one team never does */
  int first = threadIdx.x % TEAM * V;
  int64_t at[2];
  crk_offsets(r.strided, row, at);
  const char *x = r.strided.data[1] + at[1];
  char *y = r.strided.data[0] + at[0];
  auto load = [&](int64_t i) { return crk_load_as<A>(*(const T *)(x + i * r.from)); };
  auto larger = [](A a, A b) { return b > a ? b : a; };
  auto plus = [](A a, A b) { return a + b; };
  A high = -INFINITY, sum = 0;
  if constexpr (KEEP > 0) {
    A held[KEEP / V][V];
#pragma unroll
    for (int k = 0; k < KEEP / V; k++) {
      int64_t i = first + k * TEAM * V;
      crk_vector<T, V> e;
      bool inside = i < r.n;
      if (inside)
        e = V > 1 ? *(const crk_vector<T, V> *)(x + i * sizeof(T))
                  : crk_vector<T, V>{*(const T *)(x + i * r.from)};
#pragma unroll
      for (int j = 0; j < V; j++) {
        held[k][j] = inside ? crk_load_as<A>(e.v[j]) : (A)-INFINITY;
        high = larger(high, held[k][j]);
      }
    }
    high = team_reduce(high, TEAM, larger);
#pragma unroll
    for (int k = 0; k < KEEP / V; k++) {
      if (first + k * TEAM * V >= r.n) break;
#pragma unroll
      for (int j = 0; j < V; j++) {
        held[k][j] = exponential(held[k][j] - high);
        sum += held[k][j];
      }
    }
    A f = (A)1 / team_reduce(sum, TEAM, plus);
#pragma unroll
    for (int k = 0; k < KEEP / V; k++) {
      int64_t i = first + k * TEAM * V;
      if (i >= r.n) break;
      crk_vector<T, V> e;
#pragma unroll
      for (int j = 0; j < V; j++) e.v[j] = crk_store_as<T>(held[k][j] * f);
      if (V > 1)
        *(crk_vector<T, V> *)(y + i * sizeof(T)) = e;
      else
        *(T *)(y + i * r.to) = e.v[0];
    }
  } else {
    for (int64_t i = first; i < r.n; i += TEAM) high = larger(high, load(i));
    high = team_reduce(high, TEAM, larger);
    for (int64_t i = first; i < r.n; i += TEAM) sum += exponential(load(i) - high);
    A f = (A)1 / team_reduce(sum, TEAM, plus);
    for (int64_t i = first; i < r.n; i += TEAM)
      *(T *)(y + i * r.to) = crk_store_as<T>(exponential(load(i) - high) * f);
  }
}

template <typename T, typename A, int V> static void launch(crk_device *d, const rows &r) {
  unsigned few = (unsigned)crk_ceil_div(r.strided.items, THREADS / WARP), all = r.strided.items;
  if (r.n <= WARP * 8)
    softmax_kernel<T, A, WARP, 8, V><<<few, THREADS, 0, d->stream>>>(r);
  else if (r.n <= WARP * 32)
    softmax_kernel<T, A, WARP, 32, V><<<few, THREADS, 0, d->stream>>>(r);
  else if (V > 1 && r.n <= WARP * 64)
    softmax_kernel<T, A, WARP, (V > 1 ? 64 : 32), V><<<few, THREADS, 0, d->stream>>>(r);
  else if (r.n <= THREADS * 32)
    softmax_kernel<T, A, THREADS, 32, V><<<all, THREADS, 0, d->stream>>>(r);
  else
    softmax_kernel<T, A, THREADS, 0, 1><<<all, THREADS, 0, d->stream>>>(r);
}

template <typename T, typename A>
static void launch_any(crk_device *d, const rows &r, bool vectors) {
  if (vectors)
    launch<T, A, 16 / sizeof(T)>(d, r);
  else
    launch<T, A, 1>(d, r);
}

int crk_softmax(cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "softmax", x);
  if (cr_numel(out) == 0) return CR_OK;
  int32_t last = x->rank - 1;
  const cr_tensor *operands[] = {out, x};
  crk_plan p = crk_plan_of(2, operands, out->rank, out->shape);
  int64_t width = 16 / cr_dtype_size(x->dtype);
  bool vectors = p.stride[0][0] == 1 && p.stride[1][0] == 1 &&
                 crk_plan_width(&p, 0, width) == width && crk_plan_width(&p, 1, width) == width;
  p.shape[0] = 1; /* the plan of the rows only */
  crk_plan_merge(&p, false);
  int64_t size = cr_dtype_size(x->dtype);
  crk_plan_split(&p, CRK_MAX_ITEMS / 2, [&](const crk_plan &part) {
    rows r = {};
    r.strided = crk_strided_of<2>(&part, 1);
    r.n = x->shape[last];
    r.to = out->stride[last] * size;
    r.from = x->stride[last] * size;
    switch (x->dtype) {
    case CR_F32:
      launch_any<float, float>(d, r, vectors);
      break;
    case CR_F16:
      launch_any<__half, float>(d, r, vectors);
      break;
    case CR_BF16:
      launch_any<__nv_bfloat16, float>(d, r, vectors);
      break;
    default:
      launch_any<double, double>(d, r, vectors);
      break;
    }
    return (int)CR_OK;
  });
  return crk_launched("softmax", d);
}
