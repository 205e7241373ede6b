/* Copying, converting, concatenating and padding.
 *
 * Copies between equal dtypes move bytes, in units as wide (up to 16 bytes) as the innermost
 * dimension, the strides and the addresses of both sides allow. Where the two sides are dense along
 * different dimensions, tiles go through shared memory (tiles.cu). Copies that convert are
 * elementwise operations. A copy to the CPU waits; a copy from it does not. */
#include <string.h>

#include "device/map.h"
#include "memory/transfer.h"
#include "move/move.h"

enum { THREADS = 256, ITEMS = 4 };

/* ---- moving bytes on one card ---- */

/* Copies unit i of x to unit i of the result; a thread's 4 units are a block's width apart, and are
 * all loaded before the first is stored. */
template <typename U>
__global__ void __launch_bounds__(THREADS) move_kernel(const __grid_constant__ crk_strided<2> w) {
  uint32_t first = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
  U value[ITEMS];
  int64_t to[ITEMS];
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    uint32_t i = first + u * THREADS;
    if (i >= w.items) break;
    int64_t at[2];
    crk_offsets(w, i, at);
    to[u] = at[0];
    value[u] = *(const U *)(w.data[1] + at[1]);
  }
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    if (first + u * THREADS >= w.items) break;
    *(U *)(w.data[0] + to[u]) = value[u];
  }
}

template <typename U> static void move_units(crk_device *d, const crk_plan *p) {
  crk_plan_split(p, CRK_MAX_ITEMS, [&](const crk_plan &part) {
    crk_strided<2> w = crk_strided_of<2>(&part, 1);
    unsigned blocks = (unsigned)crk_ceil_div(w.items, THREADS * ITEMS);
    move_kernel<U><<<blocks, THREADS, 0, d->stream>>>(w);
    return (int)CR_OK;
  });
}

/* Widens a plan's elements as far as the innermost dimension allows, if all operands are dense
 * along it. */
static void widen(crk_plan *p) {
  int64_t width = 16 / p->size[0];
  for (int32_t i = 0; i < p->operands; i++) {
    if (p->stride[i][0] != 1) return;
    width = crk_plan_width(p, i, width);
  }
  p->shape[0] /= width;
  for (int32_t i = 0; i < p->operands; i++) {
    p->size[i] *= width;
    for (int32_t k = 1; k < p->rank; k++) p->stride[i][k] /= width;
  }
  crk_plan_merge(p, true); /* drops a dimension that became one unit */
}

static int move_plan(const char *name, crk_device *d, crk_plan *p) {
  widen(p);
  if (crk_tiles_can(p)) {
    crk_tiles(d, p);
    return crk_launched(name, d);
  }
  crk_with_unit(p->size[0], [&](auto unit) { move_units<decltype(unit)>(d, p); });
  return crk_launched(name, d);
}

/* A kernel starts sooner than the driver's copy, which is faster for many bytes. */
#define MEMCPY_BYTES ((int64_t)4 << 20)

static int move_bytes(const char *name, crk_device *d, const cr_tensor *out, const cr_tensor *x) {
  if (cr_numel(out) == 0) return CR_OK;
  const cr_tensor *operands[] = {out, x};
  crk_plan p = crk_plan_of(2, operands, out->rank, out->shape);
  crk_plan_merge(&p, true);
  bool dense = p.rank == 1 && p.stride[0][0] == 1 && p.stride[1][0] == 1;
  int64_t bytes = p.shape[0] * p.size[0];
  if (dense && p.data[0] == p.data[1]) return CR_OK;
  if (dense && bytes >= MEMCPY_BYTES) {
    CRK_TRY(
        name, d,
        cudaMemcpyAsync(p.data[0], p.data[1], (size_t)bytes, cudaMemcpyDeviceToDevice, d->stream));
    return CR_OK;
  }
  return move_plan(name, d, &p);
}

/* ---- converting on one card ---- */

struct same_value {
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[1]) const {
    return x[0];
  }
};

template <typename From>
static bool convert_from(crk_device *d, const crk_plan *p, crk_dtypes dtypes) {
  switch (dtypes.of[0]) {
#define TO(dtype, type)                                                                            \
  CRK_CASE(dtype, type, (crk_map_vectors<T, From, 1>(d, p, dtypes, same_value())))
    TO(CR_F32, float)
    TO(CR_F16, __half)
    TO(CR_BF16, __nv_bfloat16)
    TO(CR_U8, uint8_t)
#undef TO
  default:
    return false;
  }
  return true;
}

static void convert(crk_device *d, const cr_tensor *out, const cr_tensor *x) {
  if (cr_numel(out) == 0) return;
  crk_dtypes dtypes;
  crk_plan p = crk_map_plan({out, x}, &dtypes);
  bool done = false;
  if (x->dtype == CR_F32) done = convert_from<float>(d, &p, dtypes);
  if (x->dtype == CR_F16) done = convert_from<__half>(d, &p, dtypes);
  if (x->dtype == CR_BF16) done = convert_from<__nv_bfloat16>(d, &p, dtypes);
  if (x->dtype == CR_U8) done = convert_from<uint8_t>(d, &p, dtypes);
  if (done) return;
  bool whole = !cr__is_float(out->dtype) && !cr__is_float(x->dtype);
  if (whole || x->dtype == CR_I64) /* i64 has more significant bits than f64 */
    crk_map_elements<int64_t, 1>(d, &p, dtypes, same_value());
  else if (out->dtype == CR_F64 || x->dtype == CR_F64)
    crk_map_elements<double, 1>(d, &p, dtypes, same_value());
  else
    crk_map_elements<float, 1>(d, &p, dtypes, same_value());
}

static int copy_on_card(crk_device *d, const cr_tensor *out, const cr_tensor *x) {
  if (out->dtype == x->dtype) return move_bytes("copy", d, out, x);
  convert(d, out, x);
  return crk_launched("copy", d);
}

/* ---- between devices ---- */

static int64_t bytes_of(const cr_tensor *t) { return cr_numel(t) * cr_dtype_size(t->dtype); }

/* x is made dense on the CPU and uploaded in its dtype; the card converts it and applies out's
 * strides. */
static int copy_up(const cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "copy", out);
  cr_tensor host = {}, staging = {};
  x = cr__dense(x, x->dtype, &host);
  if (!x) return cr__last_code();
  int rc;
  if (out->dtype == x->dtype && cr_is_contiguous(out)) {
    rc = crk_upload("copy", d, crk_ptr(out), cr_data(x), bytes_of(x));
  } else {
    rc = cr_empty(&staging, x->rank, x->shape, x->dtype, out->device);
    if (rc >= 0) rc = crk_upload("copy", d, crk_ptr(&staging), cr_data(x), bytes_of(x));
    if (rc >= 0) rc = copy_on_card(d, out, &staging);
  }
  cr_free(&staging);
  cr_free(&host);
  return rc;
}

/* The card makes x dense in the result's dtype before the download. */
static int copy_down(cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(d, "copy", x);
  CR_TRY(crk_may_wait("copy to the CPU", d));
  cr_tensor host = {}, staging = {};
  int rc = CR_OK;
  if (x->dtype != out->dtype || !cr_is_contiguous(x)) {
    rc = cr_empty(&staging, x->rank, x->shape, out->dtype, x->device);
    if (rc >= 0) rc = copy_on_card(d, &staging, x);
    x = &staging;
  }
  if (rc >= 0 && cr_is_contiguous(out)) {
    rc = crk_download("copy", d, cr_data(out), crk_ptr(x), bytes_of(x));
  } else if (rc >= 0) {
    rc = cr_empty(&host, x->rank, x->shape, x->dtype, CR_CPU);
    if (rc >= 0) rc = crk_download("copy", d, cr_data(&host), crk_ptr(x), bytes_of(x));
    if (rc >= 0) rc = cr_copy(out, &host);
  }
  cr_free(&staging);
  cr_free(&host);
  return rc;
}

/* Copies from one card to another, directly where the machine supports it. The current streams of
 * the two cards wait for each other: x's stream waits for the copy, too, because x may be freed
 * right after this call. */
static int send(const cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(from, "copy", x);
  const void *source = crk_ptr(x);
  CRK_TRY("copy", from, cudaEventRecord(from->order[crk_stream], from->stream));
  CRK_DEVICE(to, "copy", out);
  void *target = crk_ptr(out);
  CRK_TRY("copy", to, cudaStreamWaitEvent(to->stream, from->order[crk_stream], 0));
  CRK_TRY(
      "copy", to,
      cudaMemcpyPeerAsync(target, to->card, source, from->card, (size_t)bytes_of(x), to->stream));
  CRK_TRY("copy", to, cudaEventRecord(to->order[crk_stream], to->stream));
  if (!crk_device_get("copy", x->device)) return CR_EDEVICE;
  CRK_TRY("copy", from, cudaStreamWaitEvent(from->stream, to->order[crk_stream], 0));
  return CR_OK;
}

/* x is made dense and sent in its dtype; the target card converts it and applies out's strides. */
static int copy_across(const cr_tensor *out, const cr_tensor *x) {
  CRK_DEVICE(from, "copy", x);
  CR_TRY(crk_may_wait("copy to another card", from));
  CRK_DEVICE(to, "copy", out);
  CR_TRY(crk_may_wait("copy from another card", to));
  cr_tensor dense = {}, staging = {};
  int rc = CR_OK;
  if (!cr_is_contiguous(x)) {
    rc = cr_empty(&dense, x->rank, x->shape, x->dtype, x->device);
    if (rc >= 0 && !crk_device_get("copy", x->device)) rc = CR_EDEVICE;
    if (rc >= 0) rc = copy_on_card(from, &dense, x);
    x = &dense;
  }
  if (rc >= 0 && out->dtype == x->dtype && cr_is_contiguous(out)) {
    rc = send(out, x);
  } else if (rc >= 0) {
    rc = cr_empty(&staging, x->rank, x->shape, x->dtype, out->device);
    if (rc >= 0) rc = send(&staging, x);
    if (rc >= 0 && !crk_device_get("copy", out->device)) rc = CR_EDEVICE;
    if (rc >= 0) rc = copy_on_card(to, out, &staging);
  }
  cr_free(&staging);
  cr_free(&dense);
  return rc;
}

static int copy(cr_tensor *out, const cr_tensor *x) {
  if (cr_numel(out) == 0) return CR_OK;
  if (x->device == CR_CPU) return copy_up(out, x);
  if (out->device == CR_CPU) return copy_down(out, x);
  if (x->device == out->device) {
    CRK_DEVICE(d, "copy", out);
    return copy_on_card(d, out, x);
  }
  return copy_across(out, x);
}

/* ---- concatenating ---- */

enum { PARTS = 4 };

/* Rows of the result are the parts' rows one after another: columns first[k] .. first[k + 1] - 1
 * belong to part k. Counted in units; strides in bytes; operand 0 is the result. */
typedef struct concat_args {
  crk_strided<PARTS + 1> rows;
  crk_divisor columns;
  uint32_t items;
  uint32_t first[PARTS + 1];
} concat_args;

template <typename U>
__global__ void __launch_bounds__(THREADS) concat_kernel(const __grid_constant__ concat_args j) {
  uint32_t begin = blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
  U value[ITEMS];
  U *to[ITEMS];
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    uint32_t i = begin + u * THREADS;
    if (i >= j.items) break;
    uint32_t row = crk_divide(i, j.columns);
    uint32_t column = i - row * j.columns.d;
    int64_t at[PARTS + 1];
    crk_offsets(j.rows, row, at);
    to[u] = (U *)(j.rows.data[0] + at[0]) + column;
    const char *from = j.rows.data[1] + at[1];
    uint32_t first = 0;
#pragma unroll
    for (int k = 1; k < PARTS; k++) {
      if (column >= j.first[k]) {
        from = j.rows.data[k + 1] + at[k + 1];
        first = j.first[k];
      }
    }
    value[u] = ((const U *)from)[column - first];
  }
#pragma unroll
  for (int u = 0; u < ITEMS; u++) {
    if (begin + u * THREADS >= j.items) break;
    *to[u] = value[u];
  }
}

/* The number of elements of t from dimension `dim` on if they are dense; else 0. */
static int64_t row_length(const cr_tensor *t, int32_t dim) {
  int64_t length = 1;
  for (int32_t k = t->rank - 1; k >= dim; k--) {
    if (t->shape[k] != 1 && t->stride[k] != length) return 0;
    length *= t->shape[k];
  }
  return length;
}

/* Concatenates up to 4 parts whose rows are dense, in one pass. Returns false if it cannot. */
static bool concat(crk_device *d, cr_tensor *out, int32_t n, const cr_tensor *const *xs,
                   int32_t dim) {
  const cr_tensor *operands[PARTS + 1] = {out};
  int64_t lengths[PARTS], size = cr_dtype_size(out->dtype), unit = 16;
  int32_t parts = 0;
  for (int32_t k = 0; k < n; k++) {
    if (xs[k]->shape[dim] == 0) continue;
    if (parts == PARTS) return false;
    lengths[parts] = row_length(xs[k], dim);
    if (lengths[parts] == 0) return false;
    operands[++parts] = xs[k];
  }
  int64_t columns = row_length(out, dim);
  if (columns == 0) return false;
  /* The leading dimensions are rows; dimension `dim` and those after it are columns. */
  crk_plan p = {};
  p.operands = parts + 1;
  p.rank = dim;
  for (int32_t i = 0; i <= parts; i++) {
    p.data[i] = (char *)crk_ptr(operands[i]);
    p.size[i] = 1; /* so that strides are in bytes */
    while ((uintptr_t)p.data[i] % (uintptr_t)unit) unit /= 2;
    if (i > 0) unit = crk_gcd(unit, lengths[i - 1] * size);
    for (int32_t k = 0; k < dim; k++) {
      p.shape[dim - 1 - k] = out->shape[k];
      p.stride[i][dim - 1 - k] = operands[i]->shape[k] == 1 ? 0 : operands[i]->stride[k] * size;
      if (out->shape[k] > 1) unit = crk_gcd(unit, p.stride[i][dim - 1 - k]);
    }
  }
  if (unit < size) return false;
  crk_plan_merge(&p, false);
  int64_t items = crk_plan_total(&p) * (columns * size / unit);
  if (items > CRK_MAX_ITEMS) return false;
  concat_args j = {};
  j.rows = crk_strided_of<PARTS + 1>(&p, 1);
  j.columns = crk_divisor_of(columns * size / unit);
  j.items = (uint32_t)items;
  int64_t first = 0;
  for (int32_t k = 0; k <= PARTS; k++) {
    j.first[k] = k < parts ? (uint32_t)first : UINT32_MAX;
    if (k < parts) first += lengths[k] * size / unit;
  }
  unsigned blocks = (unsigned)crk_ceil_div(items, THREADS * ITEMS);
  crk_with_unit(unit,
                [&](auto u) { concat_kernel<decltype(u)><<<blocks, THREADS, 0, d->stream>>>(j); });
  return true;
}

static int cat(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim) {
  CRK_DEVICE(d, "cat", out);
  if (cr_numel(out) == 0) return CR_OK;
  if (concat(d, out, n, xs, dim)) return crk_launched("cat", d);
  int32_t at = 0;
  for (int32_t k = 0; k < n; k++) {
    cr_tensor t = cr__part(out, dim, at, xs[k]->shape[dim]);
    CR_TRY(move_bytes("cat", d, &t, xs[k]));
    at += xs[k]->shape[dim];
  }
  return CR_OK;
}

/* ---- padding ---- */

static int pad(cr_tensor *out, const cr_tensor *x, const int32_t *before, double value) {
  CRK_DEVICE(d, "pad", out);
  CR_TRY(cr_fill(out, value));
  cr_tensor inside = cr__inside(out, x, before);
  return move_bytes("pad", d, &inside, x);
}

void crk_fill_move(cr__backend *b) {
  b->copy = copy;
  b->cat = cat;
  b->gather = crk_gather;
  b->scatter = crk_scatter;
  b->nonzero = crk_nonzero;
  b->pad = pad;
}
