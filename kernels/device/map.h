/* Kernels that compute each element of a result from the elements at the same index of N operands.
 *
 * There are two kernels, both over a crk_strided. One handles vectors of 16 bytes, where all
 * operands have a fast dtype and are dense (or repeated) along the innermost dimension, and
 * computes in float. The other handles single elements of any dtypes and strides, and computes in
 * A. The computation is a functor that gets the N operands as A. An item is read as a whole before
 * it is written, so the result may be one of the operands. */
#ifndef CRK_MAP_H
#define CRK_MAP_H

#include "device/numbers.h"
#include "device/strided.h"

/* The dtypes of the result and of the operands. */
typedef struct crk_dtypes {
  int32_t of[4];
} crk_dtypes;

/* The merged plan and the dtypes of {result, operands ...}; operands are broadcast to the result.
 */
template <int N> static crk_plan crk_map_plan(const cr_tensor *const (&of)[N], crk_dtypes *dtypes) {
  crk_plan p = crk_plan_of(N, of, of[0]->rank, of[0]->shape);
  crk_plan_merge(&p, true);
  *dtypes = {};
  for (int i = 0; i < N; i++) dtypes->of[i] = of[i]->dtype;
  return p;
}

enum { CRK_MAP_THREADS = 256, CRK_MAP_ITEMS = 2 };

/* Thread t of block b handles items b * 512 + t and 256 further on, V elements each. So
 * neighbouring threads access neighbouring vectors, and the loads of both items are in flight
 * before the first is used. Bit n of `repeated`: operand n stays the same along the innermost
 * dimension. */
template <typename F, typename TO, typename T, int N, int V>
__global__ void __launch_bounds__(CRK_MAP_THREADS)
    map_vectors_kernel(const __grid_constant__ crk_strided<N + 1> w, uint32_t repeated, F f) {
  uint32_t first = blockIdx.x * (CRK_MAP_THREADS * CRK_MAP_ITEMS) + threadIdx.x;
  crk_vector<T, V> x[CRK_MAP_ITEMS][N];
  int64_t to[CRK_MAP_ITEMS];
#pragma unroll
  for (int u = 0; u < CRK_MAP_ITEMS; u++) {
    uint32_t i = first + u * CRK_MAP_THREADS;
    if (i >= w.items) break;
    int64_t at[N + 1];
    crk_offsets(w, i, at);
    to[u] = at[0];
#pragma unroll
    for (int n = 0; n < N; n++) {
      const char *p = w.data[n + 1] + at[n + 1];
      if (repeated >> n & 1u) {
        T value = *(const T *)p;
#pragma unroll
        for (int j = 0; j < V; j++) x[u][n].v[j] = value;
      } else {
        x[u][n] = *(const crk_vector<T, V> *)p;
      }
    }
  }
#pragma unroll
  for (int u = 0; u < CRK_MAP_ITEMS; u++) {
    if (first + u * CRK_MAP_THREADS >= w.items) break;
    crk_vector<TO, V> y;
#pragma unroll
    for (int j = 0; j < V; j++) {
      float value[N];
#pragma unroll
      for (int n = 0; n < N; n++) value[n] = crk_load_as<float>(x[u][n].v[j]);
      y.v[j] = crk_store_as<TO>(f(value));
    }
    *(crk_vector<TO, V> *)(w.data[0] + to[u]) = y;
  }
}

/* 1 / x to 1 ulp for 1 <= x < 2^126, in one instruction. */
__device__ __forceinline__ float crk_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* One element a thread. */
template <typename F, typename A, int N>
__global__ void __launch_bounds__(CRK_MAP_THREADS)
    map_elements_kernel(const __grid_constant__ crk_strided<N + 1> w, crk_dtypes dtypes, F f) {
  uint32_t i = blockIdx.x * CRK_MAP_THREADS + threadIdx.x;
  if (i >= w.items) return;
  int64_t at[N + 1];
  crk_offsets(w, i, at);
  A x[N];
#pragma unroll
  for (int n = 0; n < N; n++) x[n] = crk_load<A>(w.data[n + 1] + at[n + 1], dtypes.of[n + 1]);
  crk_store<A>(w.data[0] + at[0], dtypes.of[0], f(x));
}

/* Any merged plan. */
template <typename A, int N, typename F>
static void crk_map_elements(crk_device *d, const crk_plan *plan, crk_dtypes dtypes, F f) {
  crk_plan_split(plan, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    crk_strided<N + 1> w = crk_strided_of<N + 1>(&p, 1);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, CRK_MAP_THREADS);
    map_elements_kernel<F, A, N><<<blocks, CRK_MAP_THREADS, 0, d->stream>>>(w, dtypes, f);
    return (int)CR_OK;
  });
}

/* Whether a merged plan suits vectors of V elements. */
static inline bool crk_map_takes_vectors(const crk_plan *p, int64_t V, uint32_t *repeated) {
  *repeated = 0;
  if (p->stride[0][0] != 1 || p->shape[0] % V) return false;
  for (int32_t i = 0; i < p->operands; i++) {
    if (p->stride[i][0] == 0)
      *repeated |= 1u << (i - 1);
    else if (p->stride[i][0] != 1 || crk_plan_width(p, i, V) != V)
      return false;
  }
  return true;
}

/* Any merged plan of operands T and a result TO: vectors as far as possible, elements for the rest.
 */
template <typename TO, typename T, int N, typename F>
static void crk_map_vectors(crk_device *d, const crk_plan *plan, crk_dtypes dtypes, F f) {
  constexpr int V = 16 / (sizeof(T) > sizeof(TO) ? sizeof(T) : sizeof(TO));
  uint32_t repeated;
  crk_plan whole = *plan, rest = *plan;
  int64_t odd = plan->rank == 1 ? plan->shape[0] % V : 0;
  whole.shape[0] -= odd;
  if (whole.shape[0] == 0 || !crk_map_takes_vectors(&whole, V, &repeated)) {
    crk_map_elements<float, N>(d, plan, dtypes, f);
    return;
  }
  crk_plan_split(&whole, CRK_MAX_ITEMS, [&](const crk_plan &p) {
    crk_strided<N + 1> w = crk_strided_of<N + 1>(&p, V);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, CRK_MAP_THREADS * CRK_MAP_ITEMS);
    map_vectors_kernel<F, TO, T, N, V><<<blocks, CRK_MAP_THREADS, 0, d->stream>>>(w, repeated, f);
    return (int)CR_OK;
  });
  if (odd) {
    for (int32_t i = 0; i < rest.operands; i++)
      rest.data[i] += whole.shape[0] * rest.stride[i][0] * rest.size[i];
    rest.shape[0] = odd;
    crk_map_elements<float, N>(d, &rest, dtypes, f);
  }
}

#endif
