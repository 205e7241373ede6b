/* Sorting along the last dimension by CUB's radix sort (Adinets & Merrill 2022, "Onesweep"); short
 * rows are sorted by a block each (topk.cu).
 *
 * Elements become unsigned keys in their order, of 4 bytes (of 8 bytes for elements of 8). Where
 * the number of an element's row fits above its key, one sort of the whole tensor keeps each row in
 * its place. Else the elements are sorted by key, and then by row, which a stable sort allows. The
 * position of each element is sorted along. The fewer bits are sorted, the fewer passes there are:
 * one for 8 bits. */
#include <cub/device/device_radix_sort.cuh>

#include "device/strided.h"
#include "reduce/order.h"
#include "reduce/reduce.h"

enum { THREADS = 256 };

template <typename K, typename S>
__global__ void __launch_bounds__(THREADS)
    keys_kernel(K *keys, uint32_t *places, const S *x, uint32_t items, crk_divisor n, int32_t shift,
                crk_order o) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= items) return;
  K key = crk_key(x[i], o);
  if (shift > 0) key |= (K)crk_divide(i, n) << shift;
  keys[i] = key;
  places[i] = i;
}

/* The rows of positions, as keys. */
__global__ void __launch_bounds__(THREADS)
    rows_kernel(uint32_t *keys, const uint32_t *places, uint32_t items, crk_divisor n) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i < items) keys[i] = crk_divide(places[i], n);
}

/* Elements and their positions in their rows, from 1. Elements are decoded from the sorted keys,
 * which are read in order, where there are keys and they are unambiguous. */
template <typename K, typename S>
__global__ void __launch_bounds__(THREADS)
    finish_kernel(S *out, int64_t *index, const S *x, const K *keys, const uint32_t *places,
                  uint32_t items, crk_divisor n, crk_order o) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= items) return;
  uint32_t place = places[i];
  S bits;
  if (!keys || !crk_element_of((S)keys[i], o, &bits)) bits = x[place];
  out[i] = bits;
  index[i] = (int64_t)(place - crk_divide(i, n) * n.d) + 1;
}

/* Positions in the order of keys, of which the lowest `bits` count. */
template <typename K>
static int by_keys(crk_device *d, K *keys, K *sorted, uint32_t *places, uint32_t *result,
                   int64_t items, int32_t bits) {
  size_t bytes = 0;
  CRK_TRY("sort", d,
          cub::DeviceRadixSort::SortPairs(NULL, bytes, keys, sorted, places, result, items, 0, bits,
                                          d->stream));
  cr_storage *scratch = cr__storage_new((int64_t)bytes, d->device);
  if (!scratch) return cr__last_code();
  int rc = crk_check("sort", d,
                     cub::DeviceRadixSort::SortPairs(scratch->data, bytes, keys, sorted, places,
                                                     result, items, 0, bits, d->stream));
  cr__release(scratch);
  return rc;
}

static int32_t bits_of(int64_t n) {
  int32_t bits = 0;
  while ((int64_t)1 << bits < n) bits++;
  return bits;
}

/* Sorts elements of S by keys of K; all tensors are dense. */
template <typename K, typename S>
static int sort_as(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                   crk_order o) {
  int64_t items = cr_numel(x), columns = x->shape[x->rank - 1], rows = items / columns;
  int32_t own = 8 * (int32_t)sizeof(S), above = bits_of(rows);
  bool joined = own + above <= 8 * (int32_t)sizeof(K);
  crk_divisor n = crk_divisor_of(columns);
  unsigned blocks = (unsigned)crk_ceil_div(items, THREADS);
  int64_t of_keys = items * (int64_t)sizeof(K), of_places = items * (int64_t)sizeof(uint32_t);
  cr_storage *memory = cr__storage_new(2 * of_keys + 2 * of_places, d->device);
  if (!memory) return cr__last_code();
  K *keys = (K *)memory->data, *sorted = keys + items;
  uint32_t *places = (uint32_t *)(sorted + items), *result = places + items;
  const S *from = (const S *)crk_ptr(x);
  keys_kernel<K, S><<<blocks, THREADS, 0, d->stream>>>(keys, places, from, (uint32_t)items, n,
                                                       joined && above ? own : 0, o);
  int rc = by_keys(d, keys, sorted, places, result, items, joined ? own + above : own);
  if (rc >= 0 && !joined) {
    uint32_t *of_rows = (uint32_t *)keys;
    rows_kernel<<<blocks, THREADS, 0, d->stream>>>(of_rows, result, (uint32_t)items, n);
    rc = by_keys(d, of_rows, (uint32_t *)sorted, result, places, items, above);
    result = places;
  }
  if (rc >= 0) {
    finish_kernel<K, S>
        <<<blocks, THREADS, 0, d->stream>>>((S *)crk_ptr(out), (int64_t *)crk_ptr(index), from,
                                            joined ? sorted : NULL, result, (uint32_t)items, n, o);
  }
  cr__release(memory);
  return rc < 0 ? rc : crk_launched("sort", d);
}

int crk_sort_dense(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                   bool descending) {
  if (cr_numel(x) >= CRK_MAX_ITEMS)
    return cr__fail(CR_EUNSUPPORTED, "sort: %s is too large for a card", cr__shape(x));
  crk_order o = crk_order_of(x->dtype, descending);
  switch (cr_dtype_size(x->dtype)) {
  case 1:
    return sort_as<uint32_t, uint8_t>(d, out, index, x, o);
  case 2:
    return sort_as<uint32_t, uint16_t>(d, out, index, x, o);
  case 4:
    return sort_as<uint32_t, uint32_t>(d, out, index, x, o);
  default:
    return sort_as<uint64_t, uint64_t>(d, out, index, x, o);
  }
}

int crk_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending) {
  return crk_topk(out, index, x, x->shape[x->rank - 1], descending);
}
