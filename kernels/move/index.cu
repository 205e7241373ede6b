/* Elements by index: gathering, scattering, and where elements are not 0.
 *
 * A thread handles 4 units of the index's shape, a block's width apart. Their indices are loaded
 * before the elements that they refer to, so that these loads are in flight together. Where the
 * index repeats along the innermost dimension, as for whole rows, a unit is as wide (up to 16
 * bytes) as both sides allow. If several elements have the same target, any of them is the one
 * written; if they are added, the order of float sums is not defined. */
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_select.cuh>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include "device/index_error.h"
#include "device/numbers.h"
#include "memory/transfer.h"
#include "move/move.h"

enum { THREADS = 256, ITEMS = 4 };

/* The operands: the tensor of the index's shape, the index, and the tensor that it refers to, which
 * has stride 0 along the dimension. Strides in bytes. */
enum { OTHER, INDEX, INDEXED };
typedef struct indexing {
  crk_strided<3> strided;
  int64_t step; /* bytes from one indexed element to the next */
  bool wide;    /* the index is i64, else i32 */
  crk_index_bounds bounds;
} indexing;

/* Calls act(u, other, indexed) for each of a thread's units u. */
template <typename F> __device__ __forceinline__ void each_unit(const indexing &p, F act) {
  uint32_t first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
  int64_t at[ITEMS][3], number[ITEMS];
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    uint32_t i = first + u * THREADS;
    if (i >= p.strided.items) break;
    crk_offsets(p.strided, i, at[u]);
    const char *index = p.strided.data[INDEX] + at[u][INDEX];
    number[u] = p.wide ? *(const int64_t *)index : *(const int32_t *)index;
  }
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    if (first + u * THREADS >= p.strided.items) break;
    act(u, p.strided.data[OTHER] + at[u][OTHER],
        p.strided.data[INDEXED] + at[u][INDEXED] + crk_index_resolve(p.bounds, number[u]) * p.step);
  }
}

template <typename U>
__global__ void __launch_bounds__(THREADS) gather_kernel(const __grid_constant__ indexing p) {
  U value[ITEMS];
  char *to[ITEMS];
  each_unit(p, [&](int u, char *other, char *indexed) {
    to[u] = other;
    value[u] = *(const U *)indexed;
  });
#pragma unroll
  for (int u = 0; u < ITEMS; u++)
    if (blockIdx.x * (THREADS * ITEMS) + threadIdx.x + u * THREADS < p.strided.items)
      *(U *)to[u] = value[u];
}

template <typename U>
__global__ void __launch_bounds__(THREADS) scatter_kernel(const __grid_constant__ indexing p) {
  each_unit(p, [](int, char *other, char *indexed) { *(U *)indexed = *(const U *)other; });
}

template <typename T>
__global__ void __launch_bounds__(THREADS) add_kernel(const __grid_constant__ indexing p) {
  each_unit(p, [](int, char *other, char *indexed) { atomicAdd((T *)indexed, *(const T *)other); });
}

/* Widens units to as many elements as the innermost dimension of both sides allows, if the index
 * stays the same along it. */
static void widen(crk_plan *p, int64_t step) {
  if (p->stride[INDEX][0] != 0) return;
  int64_t width = crk_gcd(16 / p->size[OTHER], step);
  for (int32_t i = OTHER; i <= INDEXED; i += INDEXED) {
    if (p->stride[i][0] != 1) return;
    width = crk_plan_width(p, i, width);
  }
  p->shape[0] /= width;
  for (int32_t i = OTHER; i <= INDEXED; i += INDEXED) {
    p->size[i] *= width;
    for (int32_t k = 1; k < p->rank; k++) p->stride[i][k] /= width;
  }
}

/* Calls `launch(blocks, size, p)` for all units. `wide`: they may be wider than an element. */
template <typename F>
static int each_piece(const char *name, crk_device *d, const cr_tensor *indexed, int32_t dim,
                      const cr_tensor *index, const cr_tensor *other, bool wide, F launch) {
  const cr_tensor *operands[] = {other, index, indexed};
  crk_plan plan = crk_plan_of(3, operands, other->rank, index->shape);
  plan.stride[INDEXED][other->rank - 1 - dim] = 0;
  crk_plan_merge(&plan, true);
  indexing p = {};
  p.step = indexed->stride[dim] * cr_dtype_size(indexed->dtype);
  p.wide = index->dtype == CR_I64;
  CR_TRY(crk_index_bounds_of(&p.bounds, name, d, indexed, dim));
  if (wide) widen(&plan, indexed->stride[dim]);
  crk_plan_split(&plan, CRK_MAX_ITEMS, [&](const crk_plan &part) {
    p.strided = crk_strided_of<3>(&part, 1);
    launch((unsigned)crk_ceil_div(p.strided.items, THREADS * ITEMS), part.size[OTHER], p);
    return (int)CR_OK;
  });
  return crk_launched(name, d);
}

int crk_gather(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index) {
  CRK_DEVICE(d, "gather", out);
  return each_piece("gather", d, x, dim, index, out, true,
                    [&](unsigned blocks, int64_t size, const indexing &p) {
                      crk_with_unit(size, [&](auto u) {
                        gather_kernel<decltype(u)><<<blocks, THREADS, 0, d->stream>>>(p);
                      });
                    });
}

int crk_scatter(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x,
                int32_t add) {
  CRK_DEVICE(d, "scatter", t);
  if (!add)
    return each_piece("scatter", d, t, dim, index, x, true,
                      [&](unsigned blocks, int64_t size, const indexing &p) {
                        crk_with_unit(size, [&](auto u) {
                          scatter_kernel<decltype(u)><<<blocks, THREADS, 0, d->stream>>>(p);
                        });
                      });
  void (*kernel)(const indexing) = NULL;
  switch (t->dtype) {
    CRK_CASE(CR_F32, float, kernel = add_kernel<T>)
    CRK_CASE(CR_F64, double, kernel = add_kernel<T>)
    CRK_CASE(CR_F16, __half, kernel = add_kernel<T>)
    CRK_CASE(CR_BF16, __nv_bfloat16, kernel = add_kernel<T>)
    CRK_CASE(CR_I32, int, kernel = add_kernel<T>)
    CRK_CASE(CR_I64, unsigned long long, kernel = add_kernel<T>)
  default:
    return cr__fail(CR_EUNSUPPORTED,
                    "scatter: %s is not added up on a card; use i32, i64 or a float type",
                    cr_dtype_name(t->dtype));
  }
  return each_piece("scatter", d, t, dim, index, x, false,
                    [&](unsigned blocks, int64_t, const indexing &p) {
                      kernel<<<blocks, THREADS, 0, d->stream>>>(p);
                    });
}

/* ---- where elements are not 0 ---- */

struct is_set {
  __device__ __forceinline__ int64_t operator()(uint8_t v) const { return v != 0; }
};

/* Turns positions from 1 in row-major order into indices [n D], one for each dimension. */
typedef struct dimensions {
  int32_t rank;
  int64_t size[CR_MAX_RANK];
} dimensions;

__global__ void __launch_bounds__(THREADS)
    unravel_kernel(int64_t *out, const int64_t *flat, int64_t n, dimensions of) {
  int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (i >= n) return;
  int64_t rest = flat[i] - 1;
  for (int k = of.rank - 1; k >= 0; k--) {
    out[i * of.rank + k] = rest % of.size[k] + 1;
    rest /= of.size[k];
  }
}

/* Counts the elements that are not 0, in *count on the card. */
static int count_set(crk_device *d, const uint8_t *x, int64_t total, int64_t *count) {
  auto each = thrust::make_transform_iterator(x, is_set());
  size_t bytes = 0;
  CRK_TRY("nonzero", d, cub::DeviceReduce::Sum(NULL, bytes, each, count, total, d->stream));
  cr_storage *scratch = cr__storage_new((int64_t)bytes, d->device);
  if (!scratch) return cr__last_code();
  int rc = crk_check("nonzero", d,
                     cub::DeviceReduce::Sum(scratch->data, bytes, each, count, total, d->stream));
  cr__release(scratch);
  return rc;
}

/* Writes their positions, from 1, to `flat`; *count is written again. */
static int select_set(crk_device *d, const uint8_t *x, int64_t total, int64_t *flat,
                      int64_t *count) {
  auto each = thrust::make_transform_iterator(x, is_set());
  auto places = thrust::make_counting_iterator((int64_t)1);
  size_t bytes = 0;
  CRK_TRY("nonzero", d,
          cub::DeviceSelect::Flagged(NULL, bytes, places, each, flat, count, total, d->stream));
  cr_storage *scratch = cr__storage_new((int64_t)bytes, d->device);
  if (!scratch) return cr__last_code();
  int rc = crk_check("nonzero", d,
                     cub::DeviceSelect::Flagged(scratch->data, bytes, places, each, flat, count,
                                                total, d->stream));
  cr__release(scratch);
  return rc;
}

static int nonzero_dense(crk_device *d, cr_tensor *out, const cr_tensor *x, int32_t flat) {
  int64_t total = cr_numel(x), n = 0;
  cr_tensor count = {}, places = {};
  int32_t one = 1;
  CR_TRY(cr_empty(&count, 1, &one, CR_I64, x->device));
  int rc = CR_OK;
  if (total > 0) {
    rc = count_set(d, (const uint8_t *)crk_ptr(x), total, (int64_t *)crk_ptr(&count));
    if (rc >= 0) rc = crk_download("nonzero", d, &n, crk_ptr(&count), sizeof n);
  }
  if (rc >= 0 && n > INT32_MAX)
    rc =
        cr__fail(CR_EUNSUPPORTED, "nonzero: %s has too many elements that are not 0", cr__shape(x));
  int32_t shape[] = {(int32_t)n, x->rank};
  if (rc >= 0) rc = cr__out("nonzero", out, flat ? 1 : 2, shape, CR_I64, x->device);
  if (rc >= 0 && !flat) rc = cr_empty(&places, 1, shape, CR_I64, x->device);
  if (rc >= 0 && n > 0) {
    int64_t *to = (int64_t *)crk_ptr(flat ? out : &places);
    rc = select_set(d, (const uint8_t *)crk_ptr(x), total, to, (int64_t *)crk_ptr(&count));
    if (rc >= 0 && !flat && x->rank > 0) {
      dimensions of = {};
      of.rank = x->rank;
      for (int32_t k = 0; k < x->rank; k++) of.size[k] = x->shape[k];
      unravel_kernel<<<(unsigned)crk_ceil_div(n, THREADS), THREADS, 0, d->stream>>>(
          (int64_t *)crk_ptr(out), to, n, of);
    }
    if (rc >= 0) rc = crk_launched("nonzero", d);
  }
  if (rc < 0) cr_free(out);
  cr_free(&places);
  cr_free(&count);
  return rc;
}

int crk_nonzero(cr_tensor *out, const cr_tensor *x, int32_t flat) {
  CRK_DEVICE(d, "nonzero", x);
  CR_TRY(crk_may_wait("nonzero", d));
  cr_tensor temp = {};
  const cr_tensor *dense = cr__dense(x, x->dtype, &temp);
  int rc = dense ? nonzero_dense(d, out, dense, flat) : cr__last_code();
  cr_free(&temp);
  return rc;
}
