/* Sorting along the last dimension by CUB's radix sort (Adinets & Merrill 2022, "Onesweep").
 *
 * Elements become unsigned keys in their order; a row's number stands above a key, so that one sort
 * of the whole tensor leaves each row in its place. Keys of 64 bits leave no room for that: they
 * are sorted by themselves, and then by rows, which a stable sort may do. What is sorted along is
 * each element's place; elements and places are gathered at the end. */
#include <cub/device/device_radix_sort.cuh>

#include "device/strided.h"
#include "reduce/reduce.h"

enum { THREADS = 256 };

/* How a dtype's bits are ordered. */
typedef struct order {
  bool floats, negatives; /* neither: unsigned */
  bool descending;
  uint64_t infinity; /* bits of it */
} order;

static order order_of(int32_t dtype, bool descending) {
  order o = {cr__is_float(dtype), dtype != CR_U8 && dtype != CR_BOOL, descending, 0};
  if (dtype == CR_F16) o.infinity = 0x7c00;
  if (dtype == CR_BF16) o.infinity = 0x7f80;
  if (dtype == CR_F32) o.infinity = 0x7f800000;
  if (dtype == CR_F64) o.infinity = 0x7ff0000000000000;
  return o;
}

/* S: an unsigned integer of the element's size. A nan comes last, -0 with 0. */
template <typename S> __device__ __forceinline__ uint64_t key_of(S bits, const order &o) {
  constexpr uint64_t sign = (uint64_t)1 << (8 * sizeof(S) - 1), all = sign | (sign - 1);
  uint64_t u = bits, key = u;
  if (o.floats) {
    if (u == sign) u = 0;
    key = (u & ~sign) > o.infinity ? all : u & sign ? ~u & all : u | sign;
  } else if (o.negatives) {
    key = u ^ sign;
  }
  return o.descending ? ~key & all : key;
}

template <typename K, typename S>
__global__ void __launch_bounds__(THREADS)
    keys_kernel(K *keys, uint32_t *places, const S *x, uint32_t items, crk_divisor n, int32_t shift,
                order o) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= items) return;
  uint64_t key = key_of(x[i], o);
  if (shift > 0) key |= (uint64_t)crk_divide(i, n) << shift;
  keys[i] = (K)key;
  places[i] = i;
}

/* The rows of places, as keys. */
__global__ void __launch_bounds__(THREADS)
    rows_kernel(uint32_t *keys, const uint32_t *places, uint32_t items, crk_divisor n) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i < items) keys[i] = crk_divide(places[i], n);
}

template <typename S>
__global__ void __launch_bounds__(THREADS)
    gather_kernel(S *out, int64_t *index, const S *x, const uint32_t *places, uint32_t items,
                  crk_divisor n) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= items) return;
  uint32_t place = places[i];
  out[i] = x[place];
  index[i] = (int64_t)(place - crk_divide(i, n) * n.d);
}

/* Places in the order of keys, of which the lowest `bits` count. */
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

/* Keys of K from elements of S; all dense. */
template <typename K, typename S>
static int sort_as(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x, order o) {
  int64_t items = cr_numel(x), columns = x->shape[x->rank - 1], rows = items / columns;
  int32_t own = 8 * (int32_t)sizeof(S), above = bits_of(rows);
  bool twice = rows > 1 && own + above > 8 * (int32_t)sizeof(K);
  crk_divisor n = crk_divisor_of(columns);
  unsigned blocks = (unsigned)crk_ceil_div(items, THREADS);
  int64_t of_keys = items * (int64_t)sizeof(K), of_places = items * (int64_t)sizeof(uint32_t);
  cr_storage *memory = cr__storage_new(2 * of_keys + 2 * of_places, d->device);
  if (!memory) return cr__last_code();
  K *keys = (K *)memory->data, *sorted = keys + items;
  uint32_t *places = (uint32_t *)(sorted + items), *result = places + items;
  bool joined = rows > 1 && !twice;
  keys_kernel<K, S><<<blocks, THREADS, 0, d->stream>>>(keys, places, (const S *)crk_ptr(x),
                                                       (uint32_t)items, n, joined ? own : 0, o);
  int rc = by_keys(d, keys, sorted, places, result, items, joined ? own + above : own);
  if (rc >= 0 && twice) {
    uint32_t *of_rows = (uint32_t *)keys;
    rows_kernel<<<blocks, THREADS, 0, d->stream>>>(of_rows, result, (uint32_t)items, n);
    rc = by_keys(d, of_rows, (uint32_t *)sorted, result, places, items, above);
    result = places;
  }
  if (rc >= 0) {
    gather_kernel<S>
        <<<blocks, THREADS, 0, d->stream>>>((S *)crk_ptr(out), (int64_t *)crk_ptr(index),
                                            (const S *)crk_ptr(x), result, (uint32_t)items, n);
  }
  cr__release(memory);
  return rc < 0 ? rc : crk_launched("sort", d);
}

static int sort_dense(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                      order o) {
  bool one = x->rank == 1 || cr_numel(x) == x->shape[x->rank - 1];
  switch (cr_dtype_size(x->dtype)) {
  case 1:
    return one ? sort_as<uint32_t, uint8_t>(d, out, index, x, o)
               : sort_as<uint64_t, uint8_t>(d, out, index, x, o);
  case 2:
    return one ? sort_as<uint32_t, uint16_t>(d, out, index, x, o)
               : sort_as<uint64_t, uint16_t>(d, out, index, x, o);
  case 4:
    return one ? sort_as<uint32_t, uint32_t>(d, out, index, x, o)
               : sort_as<uint64_t, uint32_t>(d, out, index, x, o);
  default:
    return sort_as<uint64_t, uint64_t>(d, out, index, x, o);
  }
}

int crk_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending) {
  CRK_DEVICE(d, "sort", x);
  if (cr_numel(x) >= CRK_MAX_ITEMS)
    return cr__fail(CR_EUNSUPPORTED, "sort: %s is too large for a card", cr__shape(x));
  cr_tensor in = {}, values = {}, places = {};
  bool direct = cr_is_contiguous(out) && cr_is_contiguous(index);
  int rc = cr_is_contiguous(x) ? CR_OK : cr_copy(&in, x);
  if (rc >= 0 && !direct) rc = cr_empty(&values, x->rank, x->shape, x->dtype, x->device);
  if (rc >= 0 && !direct) rc = cr_empty(&places, x->rank, x->shape, CR_I64, x->device);
  if (rc >= 0)
    rc = sort_dense(d, direct ? out : &values, direct ? index : &places, in.storage ? &in : x,
                    order_of(x->dtype, descending != 0));
  if (rc >= 0 && !direct) rc = cr_copy(out, &values);
  if (rc >= 0 && !direct) rc = cr_copy(index, &places);
  cr_free(&in);
  cr_free(&values);
  cr_free(&places);
  return rc;
}
