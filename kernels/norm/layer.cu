/* Layer norm over the last dimension, plus a broadcast position encoding.
 *
 * Invariants: x is read once where rows fit in registers (up to 1280 numbers); the variance is
 * taken around the mean, never as a difference of large sums; out may be x itself. */
#include <initializer_list>

#include "norm/norm.h"

/* Leading dimensions are rows; strides in elements; the last dimension is dense everywhere. */
typedef struct layer {
  const void *x, *weight, *bias, *after; /* the last three may be NULL */
  void *out;
  uint32_t rows;
  int64_t x_stride[CR_MAX_RANK], out_stride[CR_MAX_RANK], after_stride[CR_MAX_RANK];
  uint32_t size[CR_MAX_RANK];
  int32_t leading, width;
  float eps, inverse_width;
} layer;

typedef struct offsets {
  int64_t x, out, after;
} offsets;

__device__ __forceinline__ offsets row_offsets(const layer &w, uint32_t row) {
  offsets at = {0, 0, 0};
#pragma unroll 1
  for (int n = w.leading - 1; n > 0; n--) {
    uint32_t next = row / w.size[n];
    int64_t index = row - next * w.size[n];
    at.x += index * w.x_stride[n];
    at.out += index * w.out_stride[n];
    at.after += index * w.after_stride[n];
    row = next;
  }
  at.x += row * w.x_stride[0];
  at.out += row * w.out_stride[0];
  at.after += row * w.after_stride[0];
  return at;
}

/* V numbers of P as floats, in loads of at most 16 bytes. */
template <typename P, int V> __device__ __forceinline__ void take(float *to, const void *p) {
  const int N = V * sizeof(P) > 16 ? 16 / (int)sizeof(P) : V;
#pragma unroll
  for (int i = 0; i < V; i += N)
    crk_unpack<P, N>(to + i, *(const crk_pack<P, N> *)((const P *)p + i));
}

/* Blocks on a multiprocessor, as many as their registers allow. */
enum { BLOCK = 128 };
template <typename T> static constexpr int blocks_per_multiprocessor(void) { return 4; }
template <> constexpr int blocks_per_multiprocessor<__half>(void) { return 5; }

/* A row for LANES threads of a warp, each of which holds up to PIECES times V neighbouring numbers
 * in registers. LANES is the fewest that hold the row: a row of 320 halves takes 8 lanes of 5
 * pieces, so that no thread idles. FULL: the row is exactly that long, and there are weight and
 * bias. The mean comes first, then sums around it, which for f32 also correct the mean's rounding
 * error. The grid has as many blocks as the card holds; each warp handles one row after another,
 * and loads the next before it works on the current one. P is the type of weight, bias and after,
 * which are read again for each row (the L1 cache has them, and registers are scarcer). */
template <typename T, typename P, int LANES, int PIECES, bool AFTER, bool FULL>
__global__ void __launch_bounds__(BLOCK, blocks_per_multiprocessor<T>())
    layer_kernel(const __grid_constant__ layer w) {
  const int V = 16 / sizeof(T);
  typedef crk_pack<T, V> pack;
  const uint32_t step = gridDim.x * (BLOCK / LANES);
  const int lane = threadIdx.x % LANES;
  uint32_t row = blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
  /* All lanes of a warp continue while its first row exists, since they take part in the shuffles.
   */
  uint32_t first = row - threadIdx.x % 32 / LANES;
  pack next[PIECES];
  if (row < w.rows) {
    const T *x = (const T *)w.x + row_offsets(w, row).x + lane * V;
#pragma unroll
    for (int i = 0; i < PIECES; i++)
      if (FULL || (i * LANES + lane) * V < w.width) next[i] = *(const pack *)(x + i * LANES * V);
  }
  for (; first < w.rows; first += step, row += step) {
    float x[PIECES][V];
#pragma unroll
    for (int i = 0; i < PIECES; i++) crk_unpack<T, V>(x[i], next[i]);
    if (row + step < w.rows) {
      const T *p = (const T *)w.x + row_offsets(w, row + step).x + lane * V;
#pragma unroll
      for (int i = 0; i < PIECES; i++)
        if (FULL || (i * LANES + lane) * V < w.width) next[i] = *(const pack *)(p + i * LANES * V);
    }
    float sum = 0, square = 0, rest = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      if (!FULL && (i * LANES + lane) * V >= w.width) break;
#pragma unroll
      for (int j = 0; j < V; j++) sum += x[i][j];
    }
#pragma unroll
    for (int n = LANES / 2; n > 0; n >>= 1) sum += __shfl_xor_sync(~0u, sum, n);
    float mean = sum * w.inverse_width;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      if (!FULL && (i * LANES + lane) * V >= w.width) break;
#pragma unroll
      for (int j = 0; j < V; j++) {
        x[i][j] -= mean;
        if (sizeof(T) == 4) rest += x[i][j];
        square = __fmaf_rn(x[i][j], x[i][j], square);
      }
    }
#pragma unroll
    for (int n = LANES / 2; n > 0; n >>= 1) {
      if (sizeof(T) == 4) rest += __shfl_xor_sync(~0u, rest, n);
      square += __shfl_xor_sync(~0u, square, n);
    }
    rest *= w.inverse_width;
    float variance = square * w.inverse_width - rest * rest;
    float inverse = 1.0f / sqrtf((variance < 0 ? 0 : variance) + w.eps);
    if (row >= w.rows) continue;
    offsets at = row_offsets(w, row);
    T *out = (T *)w.out + at.out + lane * V;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      int c = (i * LANES + lane) * V;
      if (!FULL && c >= w.width) break;
      float p[V], q[V];
#pragma unroll
      for (int j = 0; j < V; j++)
        x[i][j] = sizeof(T) == 4 ? (x[i][j] - rest) * inverse : x[i][j] * inverse;
      if (FULL) {
        take<P, V>(p, (const P *)w.weight + c);
        take<P, V>(q, (const P *)w.bias + c);
#pragma unroll
        for (int j = 0; j < V; j++) x[i][j] = __fmaf_rn(x[i][j], p[j], q[j]);
      } else {
        if (w.weight) {
          take<P, V>(p, (const P *)w.weight + c);
#pragma unroll
          for (int j = 0; j < V; j++) x[i][j] *= p[j];
        }
        if (w.bias) {
          take<P, V>(p, (const P *)w.bias + c);
#pragma unroll
          for (int j = 0; j < V; j++) x[i][j] += p[j];
        }
      }
      if (AFTER) {
        take<P, V>(p, (const P *)w.after + at.after + c);
#pragma unroll
        for (int j = 0; j < V; j++) x[i][j] += p[j];
      }
      *(pack *)(out + i * LANES * V) = crk_repack<T, V>(x[i]);
    }
  }
}

/* The sum over a block of 256 threads, in all of them. */
__device__ __forceinline__ float block_sum(float x, float *shared) {
  x = crk_warp_reduce(x, [](float a, float b) { return a + b; });
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < 8; i++) x += shared[i];
  return x;
}

/* Any width and alignment: a block for each row, which is read three times (from the cache). */
template <typename T, typename P>
__global__ void __launch_bounds__(256) layer_wide_kernel(const __grid_constant__ layer w) {
  __shared__ float shared[8];
  offsets at = row_offsets(w, blockIdx.x);
  const T *x = (const T *)w.x + at.x;
  float sum = 0, square = 0;
  for (int c = threadIdx.x; c < w.width; c += 256) sum += crk_float(x[c]);
  float mean = block_sum(sum, shared) / (float)w.width;
  sum = 0;
  for (int c = threadIdx.x; c < w.width; c += 256) {
    float delta = crk_float(x[c]) - mean;
    sum += delta;
    square = __fmaf_rn(delta, delta, square);
  }
  float rest = block_sum(sum, shared) / (float)w.width;
  float variance = block_sum(square, shared) / (float)w.width - rest * rest;
  float inverse = 1.0f / sqrtf((variance < 0 ? 0 : variance) + w.eps);
  const P *weight = (const P *)w.weight, *bias = (const P *)w.bias;
  const P *after = (const P *)w.after;
  T *out = (T *)w.out + at.out;
  for (int c = threadIdx.x; c < w.width; c += 256) {
    float y = (crk_float(x[c]) - mean - rest) * inverse;
    if (weight) y *= crk_float(weight[c]);
    if (bias) y += crk_float(bias[c]);
    if (after) y += crk_float(after[at.after + c]);
    out[c] = crk_from<T>(y);
  }
}

/* ---- launching ---- */

template <typename T, typename P, int LANES, int PIECES>
static void launch_lanes(crk_device *d, const layer *w) {
  int64_t blocks = crk_ceil_div(w->rows, BLOCK / LANES);
  int64_t most = blocks_per_multiprocessor<T>() * d->multiprocessors;
  if (blocks > most) blocks = most;
  bool full = w->width == LANES * PIECES * 16 / (int)sizeof(T) && w->weight && w->bias;
  auto kernel = full ? (w->after ? layer_kernel<T, P, LANES, PIECES, true, true>
                                 : layer_kernel<T, P, LANES, PIECES, false, true>)
                     : (w->after ? layer_kernel<T, P, LANES, PIECES, true, false>
                                 : layer_kernel<T, P, LANES, PIECES, false, false>);
  kernel<<<(unsigned)blocks, BLOCK, 0, d->stream>>>(*w);
}

template <typename T, typename P> static void launch(crk_device *d, const layer *w) {
  const int V = 16 / sizeof(T), PIECES = 40 / V;
  bool fits = w->width % V == 0 && w->width <= 32 * PIECES * V &&
              crk_aligned(w->x, w->leading, w->x_stride, sizeof(T), 16) &&
              crk_aligned(w->out, w->leading, w->out_stride, sizeof(T), 16) &&
              crk_aligned(w->after, w->leading, w->after_stride, sizeof(P), 16) &&
              crk_aligned(w->weight, 0, NULL, 0, 16) && crk_aligned(w->bias, 0, NULL, 0, 16);
  if (!fits) {
    layer_wide_kernel<T, P><<<w->rows, 256, 0, d->stream>>>(*w);
  } else if (w->width <= 8 * PIECES * V) {
    launch_lanes<T, P, 8, PIECES>(d, w);
  } else if (w->width <= 16 * PIECES * V) {
    launch_lanes<T, P, 16, PIECES>(d, w);
  } else {
    launch_lanes<T, P, 32, PIECES>(d, w);
  }
}

/* ---- tensors ---- */

static bool dense_rows(const cr_tensor *t) {
  return t->shape[t->rank - 1] <= 1 || t->stride[t->rank - 1] == 1;
}

/* The leading dimensions of x, merged where all three tensors allow it. */
static void merge(layer *w, const cr_tensor *x, const cr_tensor *out, const cr_tensor *after) {
  w->leading = 0;
  for (int k = 0; k < x->rank - 1; k++) {
    if (x->shape[k] == 1) continue;
    int64_t own = 0;
    int a = after ? k - (x->rank - after->rank) : -1;
    if (a >= 0 && after->shape[a] > 1) own = after->stride[a];
    int n = w->leading;
    if (n > 0 && w->x_stride[n - 1] == x->stride[k] * x->shape[k] &&
        w->out_stride[n - 1] == out->stride[k] * x->shape[k] &&
        w->after_stride[n - 1] == own * x->shape[k]) {
      n--;
      w->size[n] *= (uint32_t)x->shape[k];
    } else {
      w->size[n] = (uint32_t)x->shape[k];
      w->leading++;
    }
    w->x_stride[n] = x->stride[k];
    w->out_stride[n] = out->stride[k];
    w->after_stride[n] = own;
  }
  if (w->leading == 0) {
    w->leading = 1;
    w->size[0] = 1;
  }
}

/* Temporary tensors, freed once the work is queued. */
typedef struct temporaries {
  cr_tensor x, out, weight, bias, after, expanded;
} temporaries;

/* A parameter [n] of type `dtype`, dense; false on failure. */
static bool parameter(const void **to, const cr_tensor *from, int32_t dtype, cr_tensor *temp) {
  *to = NULL;
  if (!from) return true;
  from = cr__dense(from, dtype, temp);
  if (from) *to = crk_ptr(from);
  return from != NULL;
}

static int run(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
               double eps, const cr_tensor *after, crk_device *d, temporaries *t) {
  int32_t width = x->shape[x->rank - 1];
  int64_t rows = cr_numel(x) / width;
  if (rows > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "layer_norm: %lld rows are too many for a card",
                    (long long)rows);
  const cr_tensor *given[3] = {weight, bias, after};
  int32_t type = x->dtype; /* of the parameters: x's dtype, or f32 if any has another one */
  for (int i = 0; i < 3; i++)
    if (given[i] && given[i]->dtype != type) type = CR_F32;

  const cr_tensor *from = x;
  cr_tensor *to = out;
  if (!dense_rows(x)) from = cr__dense(x, x->dtype, &t->x);
  if (!from) return cr__last_code();
  if (!dense_rows(out)) {
    CR_TRY(cr_empty(&t->out, out->rank, out->shape, out->dtype, out->device));
    to = &t->out;
  }
  layer w = {crk_ptr(from)};
  w.out = crk_ptr(to);
  w.rows = (uint32_t)rows;
  w.width = width;
  w.eps = (float)eps;
  w.inverse_width = 1.0f / (float)width;
  if (!parameter(&w.weight, weight, type, &t->weight) || !parameter(&w.bias, bias, type, &t->bias))
    return cr__last_code();
  if (after && after->rank > 0 && after->shape[after->rank - 1] != width) {
    int32_t shape[CR_MAX_RANK];
    for (int k = 0; k < after->rank; k++) shape[k] = after->shape[k];
    shape[after->rank - 1] = width;
    CR_TRY(cr_expand(&t->expanded, after, after->rank, shape));
    after = &t->expanded;
  } else if (after && after->rank == 0) {
    CR_TRY(cr_expand(&t->expanded, after, 1, &width));
    after = &t->expanded;
  }
  if (after && (after->dtype != type || !dense_rows(after))) {
    CR_TRY(cr_cast(&t->after, after, type));
    after = &t->after;
  }
  if (after) w.after = crk_ptr(after);
  merge(&w, from, to, after);
  if (x->dtype == CR_F32) {
    launch<float, float>(d, &w);
  } else if (x->dtype == CR_F16 && type == CR_F16) {
    launch<__half, __half>(d, &w);
  } else if (x->dtype == CR_F16) {
    launch<__half, float>(d, &w);
  } else if (type == CR_BF16) {
    launch<__nv_bfloat16, __nv_bfloat16>(d, &w);
  } else {
    launch<__nv_bfloat16, float>(d, &w);
  }
  CR_TRY(crk_launched("layer_norm", d));
  return to == out ? CR_OK : cr_copy(out, to);
}

int crk_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                   const cr_tensor *bias, double eps, const cr_tensor *after) {
  if (cr_numel(x) == 0) return CR_OK;
  if (x->dtype == CR_F64)
    return cr__fail(CR_EUNSUPPORTED, "layer_norm: f64 is not supported on a card; use f32");
  CRK_DEVICE(d, "layer_norm", x);
  bool apart = after && !(d->fusion & CRK_FUSE_NORM_AFTER);
  temporaries made = {};
  int rc = run(out, x, weight, bias, eps, apart ? NULL : after, d, &made);
  if (rc >= 0 && apart) rc = CR_BACKEND("layer_norm", d->device, binary, out, CR_ADD, out, after);
  for (cr_tensor *t : {&made.x, &made.out, &made.weight, &made.bias, &made.after, &made.expanded})
    cr_free(t);
  return rc;
}
