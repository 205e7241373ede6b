/* Writing rows where an index says, or adding them there. Rows with one index race where they are
 * written, and any of them stays; where they are added, the order of sums in floats is open. */
#include "device/numbers.h"
#include "move/move.h"

enum { THREADS = 256 };

typedef struct scattering {
  crk_walk<2> row; /* one row: operand 0 the target's, 1 x's */
  crk_divisor columns;
  int64_t items;
  const char *index;
  bool wide;                                          /* the index is i64, not i32 */
  int64_t index_stride, rows, to_stride, from_stride; /* strides in bytes */
} scattering;

/* Where element i goes to and comes from; indices outside of the target move to its nearest row. */
__device__ __forceinline__ void places_of(const scattering &s, int64_t i, int64_t *to,
                                          int64_t *from) {
  int64_t t = i < CRK_MAX_ITEMS ? crk_divide((uint32_t)i, s.columns) : i / s.columns.d;
  int64_t at[2];
  crk_offsets(s.row, (uint32_t)(i - t * s.columns.d), at);
  const char *p = s.index + t * s.index_stride;
  int64_t row = s.wide ? *(const int64_t *)p : *(const int32_t *)p;
  row = row < 0 ? 0 : row >= s.rows ? s.rows - 1 : row;
  *to = at[0] + row * s.to_stride;
  *from = at[1] + t * s.from_stride;
}

template <typename U>
__global__ void __launch_bounds__(THREADS) write_kernel(const __grid_constant__ scattering s) {
  int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, to, from;
  if (i >= s.items) return;
  places_of(s, i, &to, &from);
  *(U *)(s.row.data[0] + to) = *(const U *)(s.row.data[1] + from);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) add_kernel(const __grid_constant__ scattering s) {
  int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, to, from;
  if (i >= s.items) return;
  places_of(s, i, &to, &from);
  atomicAdd((T *)(s.row.data[0] + to), *(const T *)(s.row.data[1] + from));
}

int crk_scatter_rows(cr_tensor *t, const cr_tensor *index, const cr_tensor *x, int32_t add) {
  static const char name[] = "scatter_rows";
  CRK_DEVICE(d, name, t);
  if (index->shape[0] == 0) return CR_OK;
  CR_TRY(crk_check_rows(name, d, t, index));
  if (cr_numel(x) == 0) return CR_OK;
  cr_tensor to = cr__part(t, 0, 0, 1), from = cr__part(x, 0, 0, 1);
  const cr_tensor *operands[] = {&to, &from};
  crk_plan p = crk_plan_of(2, operands, t->rank, to.shape);
  crk_plan_merge(&p, true);
  int64_t size = cr_dtype_size(t->dtype);
  if (crk_plan_total(&p) > CRK_MAX_ITEMS)
    return cr__fail(CR_EUNSUPPORTED, "%s: rows of %s are too long", name, cr__shape(t));
  scattering s = {};
  s.row = crk_walk_of<2>(&p, 1);
  s.columns = crk_divisor_of(s.row.items);
  s.items = (int64_t)s.row.items * index->shape[0];
  s.index = (const char *)crk_ptr(index);
  s.wide = index->dtype == CR_I64;
  s.index_stride = index->stride[0] * cr_dtype_size(index->dtype);
  s.rows = t->shape[0];
  s.to_stride = t->stride[0] * size;
  s.from_stride = x->stride[0] * size;
  unsigned blocks = (unsigned)crk_ceil_div(s.items, THREADS);
  if (!add) {
    crk_with_unit(size,
                  [&](auto u) { write_kernel<decltype(u)><<<blocks, THREADS, 0, d->stream>>>(s); });
    return crk_launched(name, d);
  }
  switch (t->dtype) {
    CRK_CASE(CR_F32, float, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
    CRK_CASE(CR_F64, double, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
    CRK_CASE(CR_F16, __half, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
    CRK_CASE(CR_BF16, __nv_bfloat16, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
    CRK_CASE(CR_I32, int, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
    CRK_CASE(CR_I64, unsigned long long, add_kernel<T><<<blocks, THREADS, 0, d->stream>>>(s))
  default:
    return cr__fail(CR_EUNSUPPORTED, "%s: %s is not added up on a card: i32, i64 or floats", name,
                    cr_dtype_name(t->dtype));
  }
  return crk_launched(name, d);
}
