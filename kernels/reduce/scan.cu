/* Running sums and products along the last dimension: floats in float (f64 in double), others in
 * int64. A few long rows use CUB's scan of the whole card (Merrill & Garland 2016, "Single-pass
 * parallel prefix scan"), one after another. With many rows each has a block, which carries its
 * total from tile to tile. */
#include <cub/block/block_load.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/device/device_scan.cuh>

#include "device/cuda.h"
#include "reduce/reduce.h"

enum { THREADS = 256, ITEMS = 8, TILE = THREADS * ITEMS, FEW_ROWS = 32 };

struct plus {
  static constexpr int identity = 0;
  template <typename T> __device__ __forceinline__ T operator()(T a, T b) const {
    if constexpr (std::is_same_v<T, int64_t>)
      return (T)((uint64_t)a + (uint64_t)b); /* wraps */
    else
      return a + b;
  }
};

struct times {
  static constexpr int identity = 1;
  template <typename T> __device__ __forceinline__ T operator()(T a, T b) const {
    if constexpr (std::is_same_v<T, int64_t>)
      return (T)((uint64_t)a * (uint64_t)b); /* wraps */
    else
      return a * b;
  }
};

/* One block for each row of x [rows n] and y [rows n]. */
template <typename T, typename F>
__global__ void __launch_bounds__(THREADS) rows_kernel(T *y, const T *x, int64_t n) {
  typedef cub::BlockLoad<T, THREADS, ITEMS, cub::BLOCK_LOAD_WARP_TRANSPOSE> loader;
  typedef cub::BlockStore<T, THREADS, ITEMS, cub::BLOCK_STORE_WARP_TRANSPOSE> storer;
  typedef cub::BlockScan<T, THREADS> scanner;
  __shared__ union {
    typename loader::TempStorage load;
    typename storer::TempStorage store;
    typename scanner::TempStorage scan;
  } shared;
  F op;
  T carry = F::identity;
  x += blockIdx.x * n;
  y += blockIdx.x * n;
  for (int64_t first = 0; first < n; first += TILE) {
    int valid = (int)(n - first < TILE ? n - first : TILE);
    T v[ITEMS], total;
    loader(shared.load).Load(x + first, v, valid, (T)F::identity);
    __syncthreads();
    scanner(shared.scan).InclusiveScan(v, v, op, total);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < ITEMS; k++) v[k] = op(carry, v[k]);
    carry = op(carry, total);
    storer(shared.store).Store(y + first, v, valid);
    __syncthreads();
  }
}

template <typename T, typename F>
static int scan_rows(const char *name, crk_device *d, T *y, const T *x, int64_t rows, int64_t n) {
  if (rows > FEW_ROWS || n <= TILE) {
    rows_kernel<T, F><<<(unsigned)rows, THREADS, 0, d->stream>>>(y, x, n);
    return crk_launched(name, d);
  }
  size_t bytes = 0;
  CRK_TRY(name, d, cub::DeviceScan::InclusiveScan(NULL, bytes, x, y, F(), n, d->stream));
  cr_storage *scratch = cr__storage_new((int64_t)bytes, d->device);
  if (!scratch) return cr__last_code();
  int rc = CR_OK;
  for (int64_t r = 0; r < rows && rc >= 0; r++) {
    rc = crk_check(name, d,
                   cub::DeviceScan::InclusiveScan(scratch->data, bytes, x + r * n, y + r * n, F(),
                                                  n, d->stream));
  }
  cr__release(scratch);
  return rc < 0 ? rc : crk_launched(name, d);
}

template <typename T>
static int scan_as(const char *name, crk_device *d, const cr_tensor *y, const cr_tensor *x,
                   int32_t product) {
  int64_t n = x->shape[x->rank - 1], rows = cr_numel(x) / n;
  T *to = (T *)crk_ptr(y);
  const T *from = (const T *)crk_ptr(x);
  return product ? scan_rows<T, times>(name, d, to, from, rows, n)
                 : scan_rows<T, plus>(name, d, to, from, rows, n);
}

int crk_scan(cr_tensor *out, const cr_tensor *x, int32_t product) {
  const char *name = product ? "cumprod" : "cumsum";
  CRK_DEVICE(d, name, x);
  int32_t dtype = x->dtype == CR_F64 ? CR_F64 : cr__is_float(x->dtype) ? CR_F32 : CR_I64;
  cr_tensor in = {}, sums = {};
  bool direct = out->dtype == dtype && cr_is_contiguous(out);
  int rc = CR_OK;
  if (x->dtype != dtype || !cr_is_contiguous(x)) rc = cr_cast(&in, x, dtype);
  if (rc >= 0 && !direct) rc = cr_empty(&sums, x->rank, x->shape, dtype, x->device);
  const cr_tensor *from = in.storage ? &in : x, *to = direct ? out : &sums;
  if (rc >= 0) {
    rc = dtype == CR_F64   ? scan_as<double>(name, d, to, from, product)
         : dtype == CR_F32 ? scan_as<float>(name, d, to, from, product)
                           : scan_as<int64_t>(name, d, to, from, product);
  }
  if (rc >= 0 && !direct) rc = cr_copy(out, &sums);
  cr_free(&in);
  cr_free(&sums);
  return rc;
}
