/* Softmax over the last dimension, of any width and strides.
 *
 * exp(x - m) / sum exp(x - m), m the row's maximum; in float (f64 in double). A row of -inf gives
 * nan, as everywhere; a nan in x reaches every result through the sum. */
#include "reduce.h"
#include "strided.h"

enum { THREADS = 256, WARP = 32, KEEP = 8 };

typedef struct rows {
  crk_walk<2> walk; /* rows: the result's and x's, strides in bytes */
  int64_t n;        /* elements of a row */
  int64_t to, from; /* from element to element, bytes */
} rows;

template <typename A, typename F> __device__ __forceinline__ A team_reduce(A x, int team, F op) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
  if (team == WARP) return x;
  __shared__ A part[THREADS / WARP];
  __syncthreads(); /* the last reduction's parts have been read */
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  x = part[0];
#pragma unroll
  for (int k = 1; k < THREADS / WARP; k++) x = op(x, part[k]);
  return x;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

/* A row to TEAM threads, an eighth of a block or all of it; element i is thread i % TEAM's. HELD:
 * the row is at most 8 * TEAM long and stays in registers; else it is read three times, from the
 * cache but for the first. */
template <typename T, typename A, int TEAM, bool HELD>
__global__ void __launch_bounds__(THREADS) softmax_kernel(const __grid_constant__ rows r) {
  uint32_t row = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
  if (row >= r.walk.items) return; /* whole warps leave; a block of one team never does */
  int lane = threadIdx.x % TEAM;
  int64_t at[2];
  crk_offsets(r.walk, row, at);
  const char *x = r.walk.data[1] + at[1];
  char *y = r.walk.data[0] + at[0];
  auto load = [&](int64_t i) { return crk_load_as<A>(*(const T *)(x + i * r.from)); };
  auto larger = [](A a, A b) { return b > a ? b : a; };
  auto plus = [](A a, A b) { return a + b; };
  A high = -INFINITY, sum = 0, held[HELD ? KEEP : 1];
  if constexpr (HELD) {
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
      int64_t i = lane + k * TEAM;
      held[k] = i < r.n ? load(i) : (A)-INFINITY;
      high = larger(high, held[k]);
    }
    high = team_reduce(high, TEAM, larger);
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
      if (lane + k * TEAM >= r.n) break;
      held[k] = exponential(held[k] - high);
      sum += held[k];
    }
    A f = (A)1 / team_reduce(sum, TEAM, plus);
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
      int64_t i = lane + k * TEAM;
      if (i >= r.n) break;
      *(T *)(y + i * r.to) = crk_store_as<T>(held[k] * f);
    }
  } else {
    for (int64_t i = lane; i < r.n; i += TEAM) high = larger(high, load(i));
    high = team_reduce(high, TEAM, larger);
    for (int64_t i = lane; i < r.n; i += TEAM) sum += exponential(load(i) - high);
    A f = (A)1 / team_reduce(sum, TEAM, plus);
    for (int64_t i = lane; i < r.n; i += TEAM)
      *(T *)(y + i * r.to) = crk_store_as<T>(exponential(load(i) - high) * f);
  }
}

template <typename T, typename A> static void launch(crk_device *d, const rows &r) {
  unsigned few = (unsigned)crk_ceil_div(r.walk.items, THREADS / WARP), all = r.walk.items;
  if (r.n <= WARP * KEEP)
    softmax_kernel<T, A, WARP, true><<<few, THREADS, 0, d->stream>>>(r);
  else if (r.n <= THREADS * KEEP)
    softmax_kernel<T, A, THREADS, true><<<all, THREADS, 0, d->stream>>>(r);
  else
    softmax_kernel<T, A, THREADS, false><<<all, THREADS, 0, d->stream>>>(r);
}

int crk_softmax(cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "softmax", x);
  if (cr_numel(out) == 0) return CR_OK;
  int32_t last = x->rank - 1;
  const cr_tensor *operands[] = {out, x};
  crk_plan p = crk_plan_of(2, operands, out->rank, out->shape);
  p.shape[0] = 1; /* the rows alone */
  crk_plan_merge(&p, false);
  int64_t size = cr_dtype_size(x->dtype);
  crk_pieces(&p, CRK_MAX_ITEMS / 2, [&](const crk_plan &part) {
    rows r = {};
    r.walk = crk_walk_of<2>(&part, 1);
    r.n = x->shape[last];
    r.to = out->stride[last] * size;
    r.from = x->stride[last] * size;
    switch (x->dtype) {
    case CR_F32:
      launch<float, float>(d, r);
      break;
    case CR_F16:
      launch<__half, float>(d, r);
      break;
    case CR_BF16:
      launch<__nv_bfloat16, float>(d, r);
      break;
    default:
      launch<double, double>(d, r);
      break;
    }
    return (int)CR_OK;
  });
  return crk_launched("softmax", d);
}
