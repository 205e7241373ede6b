/* The first k of each row in order, and short rows sorted as a whole: a block for each row.
 *
 * Elements are compared as keys (order.h), and equal ones by their positions, so no two are equal.
 * A block gathers the candidates for the first k in shared memory and sorts them there (Batcher
 * 1968, bitonic). Where a row has more elements than fit in that memory, radix passes narrow it
 * first. Each pass takes those elements that equal the k-th one in all bits known so far, counts
 * them by the next 11 bits of the key (and, once the whole key is known, of the position), and so
 * learns these bits of the k-th one. It ends when the elements up to that value fit. A row is read
 * from memory once, and by later passes from the caches. A few long rows are split into parts, and
 * the first k of each part go through the same once more. What does not suit this, a large share of
 * long rows, is sorted as a whole. */
#include <cub/block/block_scan.cuh>

#include "device/strided.h"
#include "reduce/order.h"
#include "reduce/reduce.h"

enum { THREADS = 256, DIGIT = 11, BINS = 1 << DIGIT, EACH = BINS / THREADS };
/* The least entries that a block has memory for; rows up to SHORT are sorted here, longer ones (up
 * to MEDIUM) if there are few elements in all; the elements of a part. */
enum { ROOM = 1024, SHORT = 512, MEDIUM = 4096, FEW = 1 << 17, PART = 1 << 13 };

typedef struct selection {
  void *out;           /* [rows parts k] */
  int64_t *index;      /* the same shape; indices from 1 */
  const void *x;       /* [rows n] */
  const int64_t *from; /* [rows n]: the indices of positions; NULL: their numbers from 1 */
  int64_t n;
  int32_t parts, k, room;
  crk_order order;
} selection;

template <typename K> struct entry {
  K key;
  uint32_t place;
  __device__ __forceinline__ bool after(const entry &o) const {
    return key != o.key ? key > o.key : place > o.place;
  }
};

/* Calls f(bits, position) for n elements, 16 bytes at once where the address allows. */
template <typename S, typename F>
__device__ __forceinline__ void each_element(const S *x, uint32_t n, F f) {
  constexpr uint32_t V = 16 / sizeof(S);
  uint32_t head = (uint32_t)((16 - (uintptr_t)x % 16) % 16 / sizeof(S));
  if (head > n) head = n;
  if (threadIdx.x < head) f(x[threadIdx.x], threadIdx.x);
  uint32_t vectors = (n - head) / V;
  for (uint32_t v = threadIdx.x; v < vectors; v += blockDim.x) {
    crk_vector<S, V> e = *(const crk_vector<S, V> *)(x + head + v * V);
#pragma unroll
    for (uint32_t j = 0; j < V; j++) f(e.v[j], head + v * V + j);
  }
  uint32_t rest = head + vectors * V + threadIdx.x;
  if (rest < n) f(x[rest], rest);
}

/* What is known of the k-th element: bits of its key, then of its position. */
template <typename K> struct prefix {
  K key_mask, key;
  uint32_t place_mask, place;
  __device__ __forceinline__ bool fits(K k, uint32_t p) const {
    return (k & key_mask) == key && (p & place_mask) == place;
  }
  __device__ __forceinline__ bool up_to(K k, uint32_t p) const {
    return (k & key_mask) < key || ((k & key_mask) == key && (p & place_mask) <= place);
  }
};

/* Narrows the row until at most `room` elements are up to the prefix; `counts` has BINS numbers. */
template <typename K, typename S>
__device__ prefix<K> narrow(const S *x, uint32_t n, uint32_t k, uint32_t room, const crk_order &o,
                            uint32_t *counts) {
  typedef cub::BlockScan<uint32_t, THREADS> scanner;
  __shared__ typename scanner::TempStorage temp;
  __shared__ uint32_t found, before, inside;
  prefix<K> p = {0, 0, 0, 0};
  int key_bits = 8 * sizeof(S), place_bits = 32 - __clz((int)n);
  uint32_t total = n,
           left = k; /* elements up to the prefix; the rank of the k-th among those that match it */
  while (total > room) {
    bool by_place = key_bits == 0;
    int bits = by_place ? place_bits : key_bits, width = bits < DIGIT ? bits : DIGIT;
    int shift = bits - width;
    uint32_t mask = (1u << width) - 1;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
    __syncthreads();
    each_element(x, n, [&](S element, uint32_t place) {
      K key = crk_key(element, o);
      if (p.fits(key, place))
        atomicAdd(counts + ((uint32_t)((by_place ? (K)place : key) >> shift) & mask), 1u);
    });
    __syncthreads();
    uint32_t sum = 0, first;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum += counts[threadIdx.x * EACH + i];
    scanner(temp).ExclusiveSum(sum, first);
    if (first < left && left <= first + sum) { /* true for one thread */
      uint32_t bin = threadIdx.x * EACH;
      while (first + counts[bin] < left) first += counts[bin++];
      found = bin;
      before = first;
      inside = counts[bin];
    }
    __syncthreads();
    total = k - left + before + inside;
    left -= before;
    if (by_place) {
      p.place_mask |= mask << shift;
      p.place |= found << shift;
      place_bits = shift;
    } else {
      p.key_mask |= (K)mask << shift;
      p.key |= (K)found << shift;
      key_bits = shift;
    }
    __syncthreads(); /* before counts and found are written again */
  }
  return p;
}

/* Bitonic sort; size is a power of two. */
template <typename K> __device__ void sort_entries(entry<K> *e, uint32_t size) {
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t step = run / 2; step > 0; step /= 2) {
      for (uint32_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
        uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
        entry<K> low = e[a], high = e[b];
        if (low.after(high) == ((a & run) == 0)) {
          e[a] = high;
          e[b] = low;
        }
      }
      __syncthreads();
    }
  }
}

template <typename K, typename S>
__global__ void __launch_bounds__(THREADS) topk_kernel(const __grid_constant__ selection s) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ uint32_t taken;
  entry<K> *entries = (entry<K> *)shared;
  int64_t row = blockIdx.x / s.parts, part = blockIdx.x - row * s.parts;
  int64_t begin = s.n * part / s.parts;
  uint32_t n = (uint32_t)(s.n * (part + 1) / s.parts - begin);
  const S *x = (const S *)s.x + row * s.n + begin;
  prefix<K> p = {0, 0, 0, 0};
  if (n > (uint32_t)s.room)
    p = narrow<K, S>(x, n, (uint32_t)s.k, (uint32_t)s.room, s.order, (uint32_t *)shared);
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();
  each_element(x, n, [&](S element, uint32_t place) {
    K key = crk_key(element, s.order);
    if (p.up_to(key, place)) entries[atomicAdd(&taken, 1u)] = {key, place};
  });
  __syncthreads();
  uint32_t total = taken, size = 1;
  while (size < total) size *= 2;
  for (uint32_t i = total + threadIdx.x; i < size; i += blockDim.x) entries[i] = {(K) ~(K)0, ~0u};
  __syncthreads();
  sort_entries(entries, size);
  S *out = (S *)s.out + (int64_t)blockIdx.x * s.k;
  int64_t *index = s.index + (int64_t)blockIdx.x * s.k;
  for (uint32_t i = threadIdx.x; i < (uint32_t)s.k; i += blockDim.x) {
    uint32_t place = entries[i].place;
    out[i] = x[place];
    index[i] = s.from ? s.from[row * s.n + begin + place] : begin + place + 1;
  }
}

static int32_t room_for(int64_t n) {
  int32_t room = 1;
  while (room < n) room *= 2;
  return room;
}

/* Launches a block for each part of each row, as large as its number of entries. */
template <typename K, typename S>
static int launch(crk_device *d, const selection &s, int64_t rows) {
  static uint64_t
      allowed[CRK_MAX_CARDS]; /* the context in which the kernel may use all shared memory */
  int64_t n = crk_ceil_div(s.n, s.parts);
  int32_t room = n <= s.room ? room_for(n) : s.room, threads = THREADS;
  while (n <= s.room && threads > 32 && threads >= room) threads /= 2;
  int bytes = room * (int)sizeof(entry<K>);
  if (n > s.room && bytes < BINS * (int)sizeof(uint32_t)) bytes = BINS * (int)sizeof(uint32_t);
  if (allowed[d->card] != d->context) {
    CRK_TRY("topk", d,
            cudaFuncSetAttribute(topk_kernel<K, S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 d->shared_memory - 4096));
    allowed[d->card] = d->context;
  }
  topk_kernel<K, S><<<(unsigned)(rows * s.parts), threads, (size_t)bytes, d->stream>>>(s);
  return crk_launched("topk", d);
}

static int launch_for(crk_device *d, int64_t size, const selection &s, int64_t rows) {
  switch (size) {
  case 1:
    return launch<uint32_t, uint8_t>(d, s, rows);
  case 2:
    return launch<uint32_t, uint16_t>(d, s, rows);
  case 4:
    return launch<uint32_t, uint32_t>(d, s, rows);
  default:
    return launch<uint64_t, uint64_t>(d, s, rows);
  }
}

/* Splits a few long rows into parts, whose first k make the next row; all tensors are dense. */
static int select_dense(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                        int32_t k, crk_order o) {
  int64_t n = x->shape[x->rank - 1], rows = cr_numel(x) / n, size = cr_dtype_size(x->dtype);
  selection s = {crk_ptr(out), (int64_t *)crk_ptr(index), crk_ptr(x), NULL, n, 1, k, 0, o};
  s.room = room_for(k < ROOM ? (int32_t)ROOM : k);
  cr_storage *before = NULL;
  int rc = CR_OK;
  while (rc >= 0) {
    int64_t part = 8 * (int64_t)k < PART ? (int64_t)PART : 8 * (int64_t)k, parts = s.n / part;
    if (rows >= 2 * d->multiprocessors || parts < 2) break;
    int64_t firsts = rows * parts * k;
    cr_storage *next = cr__storage_new(firsts * (8 + size), d->device);
    if (!next) {
      rc = cr__last_code();
      break;
    }
    selection cut = s;
    cut.parts = (int32_t)parts;
    cut.index = (int64_t *)next->data;
    cut.out = cut.index + firsts;
    rc = launch_for(d, size, cut, rows);
    if (before) cr__release(before);
    before = next;
    s.x = cut.out;
    s.from = cut.index;
    s.n = parts * k;
  }
  if (rc >= 0) rc = launch_for(d, size, s, rows);
  if (before) cr__release(before);
  return rc;
}

/* Whether a block can sort whole rows, or select the first k of them. */
static bool suits(const crk_device *d, const cr_tensor *x, int32_t k) {
  int64_t n = x->shape[x->rank - 1], rows = cr_numel(x) / n, size = cr_dtype_size(x->dtype);
  int64_t bytes = (int64_t)room_for(k) * (size == 8 ? 16 : 8);
  if (bytes > d->shared_memory - 4096 || rows > INT32_MAX) return false;
  if (n <= SHORT || (n <= MEDIUM && rows * n <= FEW)) return true;
  int64_t share = k <= ROOM || rows >= 2 * d->multiprocessors ? 4 : 256;
  return share * k <= n;
}

/* The first k of rows that are sorted as a whole. */
static int sort_and_cut(crk_device *d, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                        int32_t k, bool descending) {
  int32_t last = x->rank - 1;
  if (k == x->shape[last]) return crk_sort_dense(d, out, index, x, descending);
  cr_tensor values = {}, places = {};
  int rc = cr_empty(&values, x->rank, x->shape, x->dtype, x->device);
  if (rc >= 0) rc = cr_empty(&places, x->rank, x->shape, CR_I64, x->device);
  if (rc >= 0) rc = crk_sort_dense(d, &values, &places, x, descending);
  if (rc >= 0) {
    cr_tensor v = cr__part(&values, last, 0, k), p = cr__part(&places, last, 0, k);
    rc = cr_copy(out, &v);
    if (rc >= 0) rc = cr_copy(index, &p);
  }
  cr_free(&values);
  cr_free(&places);
  return rc;
}

int crk_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest) {
  CRK_DEVICE(d, "topk", x);
  cr_tensor in = {}, values = {}, places = {};
  bool direct = cr_is_contiguous(out) && cr_is_contiguous(index);
  int rc = cr_is_contiguous(x) ? CR_OK : cr_copy(&in, x);
  if (rc >= 0 && !direct) rc = cr_empty(&values, x->rank, out->shape, x->dtype, x->device);
  if (rc >= 0 && !direct) rc = cr_empty(&places, x->rank, out->shape, CR_I64, x->device);
  cr_tensor *to = direct ? out : &values, *at = direct ? index : &places;
  const cr_tensor *from = in.storage ? &in : x;
  if (rc >= 0) {
    rc = suits(d, x, k) ? select_dense(d, to, at, from, k, crk_order_of(x->dtype, largest != 0))
                        : sort_and_cut(d, to, at, from, k, largest != 0);
  }
  if (rc >= 0 && !direct) rc = cr_copy(out, &values);
  if (rc >= 0 && !direct) rc = cr_copy(index, &places);
  cr_free(&in);
  cr_free(&values);
  cr_free(&places);
  return rc;
}
