/* Sums, means, extremes and variances over any set of dimensions.
 *
 * As on the CPU, floats are summed in double and integers in int64; extremes are compared in float,
 * double or int64. Which of two kernels runs depends on x's densest dimension: if it is reduced, a
 * team of threads reads the elements of one result in order (rows); if it stays, neighbouring
 * threads have neighbouring results (columns). Where there are too few results to fill the card,
 * each is split into pieces, and a second kernel merges their states. No atomics: the order of
 * merging is fixed, and so is the result. */
#include "device/strided.h"
#include "reduce/reduce.h"

enum { THREADS = 256, WARP = 32, LANES = 32, LINES = 8, UNROLL = 4 };
/* For columns that are read as vectors: 8 lanes of 16 bytes are a cache line. */
enum { VECTOR_LANES = 8, VECTOR_LINES = THREADS / VECTOR_LANES };

/* The dimensions of x in two groups. Strides in bytes; `kept` has the result's, too. */
typedef struct reduction {
  crk_strided<2> kept;    /* operand 0 is the result, 1 is x */
  crk_strided<1> reduced; /* offsets in x */
  int64_t results, count;
  int64_t piece; /* elements of a piece */
  int32_t pieces;
  int32_t op, out_dtype, x_dtype;
  void *states; /* [results pieces]; NULL: results are written directly */
} reduction;

/* The offset of element i of the reduced dimensions, which may be more than 2^31. */
__device__ __forceinline__ int64_t reduced_offset(const crk_strided<1> &w, int64_t i) {
  int64_t offset = 0;
  for (int k = 0; k < w.rank - 1; k++) {
    int64_t rest = i < CRK_MAX_ITEMS ? crk_divide((uint32_t)i, w.size[k]) : i / w.size[k].d;
    offset += (i - rest * w.size[k].d) * w.stride[0][k];
    i = rest;
  }
  return offset + i * w.stride[0][w.rank - 1];
}

/* x's element as the state's number type; T is void for any dtype. */
template <typename A, typename T>
__device__ __forceinline__ A element(const reduction &r, const char *p) {
  if constexpr (std::is_void_v<T>)
    return crk_load<A>(p, r.x_dtype);
  else
    return crk_load_as<A>(*(const T *)p);
}

template <typename A>
__device__ __forceinline__ void finish(const reduction &r, char *to, const crk_sum_state<A> &s) {
  if (r.op == CR_MEAN)
    crk_store<double>(to, r.out_dtype, (double)s.sum / (double)r.count);
  else
    crk_store<A>(to, r.out_dtype, s.sum);
}

__device__ __forceinline__ void finish(const reduction &r, char *to, const crk_var_state &s) {
  double mean = s.first / (double)r.count;
  double v = s.second / (double)r.count - mean * mean;
  crk_store<double>(to, r.out_dtype, v < 0 ? 0.0 : v); /* rounding can make it negative */
}

template <typename A>
__device__ __forceinline__ void finish(const reduction &r, char *to, const crk_best_state<A> &s) {
  crk_store<int64_t>(to, r.out_dtype, s.index + 1);
}

template <typename A>
__device__ __forceinline__ void finish(const reduction &r, char *to,
                                       const crk_extreme_state<A> &s) {
  crk_store<A>(to, r.out_dtype, s.best);
}

template <typename S>
__device__ __forceinline__ void store_state(const reduction &r, int64_t result, int64_t piece,
                                            char *to, const S &s) {
  if (r.states)
    ((S *)r.states)[result * r.pieces + piece] = s;
  else
    finish(r, to, s);
}

template <typename S> __device__ __forceinline__ S shuffle_down(const S &s, int step) {
  uint32_t words[sizeof(S) / 4];
  memcpy(words, &s, sizeof words);
#pragma unroll
  for (int k = 0; k < (int)(sizeof words / 4); k++)
    words[k] = __shfl_down_sync(~0u, words[k], step);
  S other;
  memcpy(&other, words, sizeof words);
  return other;
}

/* Merges the states of TEAM threads into the first of them, neighbours first. Nobody uses what
 * lanes beyond the end of the team merge. */
template <typename S, int TEAM> __device__ __forceinline__ void merge_team(S *s, bool largest) {
#pragma unroll
  for (int step = 1; step < WARP && step < TEAM; step *= 2)
    s->merge(shuffle_down(*s, step), largest);
  if constexpr (TEAM > WARP) {
    __shared__ S part[THREADS / WARP];
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = *s;
    __syncthreads();
    if (threadIdx.x == 0)
      for (int k = 1; k < THREADS / WARP; k++) s->merge(part[k], largest);
  }
}

/* One piece of one result for TEAM threads; blockIdx.x counts teams. A thread's four loads of a
 * turn are TEAM elements apart, so neighbouring threads read neighbours. DENSE: the reduced
 * dimensions are merged into a dense one, and 16 bytes are read at once where the address allows.
 */
template <typename S, typename T, int TEAM, bool DENSE>
__global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ reduction r) {
  typedef typename S::number A;
  int64_t team = (int64_t)blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
  int lane = threadIdx.x % TEAM;
  bool largest = r.op == CR_AMAX || r.op == CR_ARGMAX;
  bool mine = team < r.results * r.pieces;
  if (!mine) team = 0; /* it takes part in its warp's shuffles */
  int64_t result = team / r.pieces, piece = team - result * r.pieces;
  int64_t at[2];
  crk_offsets(r.kept, (uint32_t)result, at);
  const char *x = r.kept.data[1] + at[1];
  S s;
  s.start(element<A, T>(r, x), largest);
  int64_t i = piece * r.piece, end = i + r.piece < r.count ? i + r.piece : r.count;
  if constexpr (DENSE) {
    constexpr int V = 16 / sizeof(T);
    const T *p = (const T *)x;
    /* The elements before the first aligned vector. */
    int64_t head = (int64_t)((16 - (uintptr_t)(p + i) % 16) % 16 / sizeof(T));
    if (head > end - i) head = end - i;
    for (int64_t k = lane; k < head; k += TEAM) s.add(crk_load_as<A>(p[i + k]), i + k, largest);
    i += head;
    int64_t vectors = (end - i) / V;
#pragma unroll 2
    for (int64_t v = lane; v < vectors; v += TEAM) {
      crk_vector<T, V> e = *(const crk_vector<T, V> *)(p + i + v * V);
#pragma unroll
      for (int j = 0; j < V; j++) s.add(crk_load_as<A>(e.v[j]), i + v * V + j, largest);
    }
    i += vectors * V;
    for (i += lane; i < end; i += TEAM) s.add(crk_load_as<A>(p[i]), i, largest);
  } else {
    for (i += lane; i < end; i += (int64_t)TEAM * UNROLL) {
      A v[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (i + u * TEAM < end)
          v[u] = element<A, T>(r, x + reduced_offset(r.reduced, i + u * TEAM));
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (i + u * TEAM < end) s.add(v[u], i + u * TEAM, largest);
    }
  }
  merge_team<S, TEAM>(&s, largest);
  if (lane == 0 && mine) store_state(r, result, piece, r.kept.data[0] + at[0], s);
}

/* 32 neighbouring results for a block of 32 x 8 threads, each of which takes every eighth reduced
 * index; blockIdx.y is the piece. */
template <typename S, typename T>
__global__ void __launch_bounds__(THREADS) columns_kernel(const __grid_constant__ reduction r) {
  typedef typename S::number A;
  __shared__ S part[LINES][LANES];
  int lane = threadIdx.x % LANES, line = threadIdx.x / LANES;
  int64_t result = (int64_t)blockIdx.x * LANES + lane, piece = blockIdx.y;
  bool largest = r.op == CR_AMAX || r.op == CR_ARGMAX;
  bool mine = result < r.results;
  int64_t at[2];
  crk_offsets(r.kept, (uint32_t)(mine ? result : 0), at);
  const char *x = r.kept.data[1] + at[1];
  S s;
  s.start(element<A, T>(r, x), largest);
  int64_t end = (piece + 1) * r.piece < r.count ? (piece + 1) * r.piece : r.count;
  for (int64_t i = piece * r.piece + line; i < end; i += LINES * UNROLL) {
    A v[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (i + u * LINES < end)
        v[u] = element<A, T>(r, x + reduced_offset(r.reduced, i + u * LINES));
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (i + u * LINES < end) s.add(v[u], i + u * LINES, largest);
  }
  part[line][lane] = s;
  __syncthreads();
  if (line > 0 || !mine) return;
  for (int k = 1; k < LINES; k++) s.merge(part[k][lane], largest);
  store_state(r, result, piece, r.kept.data[0] + at[0], s);
}

/* The same with 16 bytes of neighbouring results for a thread, and 8 x 32 threads in a block: for
 * results that are dense in x. */
template <typename S, typename T>
__global__ void __launch_bounds__(THREADS)
    column_vectors_kernel(const __grid_constant__ reduction r) {
  typedef typename S::number A;
  constexpr int V = 16 / sizeof(T), WIDTH = VECTOR_LANES * V;
  __shared__ S part[THREADS / WARP][WIDTH];
  int lane = threadIdx.x % VECTOR_LANES, line = threadIdx.x / VECTOR_LANES;
  int64_t result = (int64_t)blockIdx.x * WIDTH + lane * V, piece = blockIdx.y;
  bool largest = r.op == CR_AMAX || r.op == CR_ARGMAX;
  int64_t at[2];
  crk_offsets(r.kept, (uint32_t)(result < r.results ? result : 0), at);
  const char *x = r.kept.data[1] + at[1];
  S s[V];
  crk_vector<T, V> e = *(const crk_vector<T, V> *)x;
#pragma unroll
  for (int j = 0; j < V; j++) s[j].start(crk_load_as<A>(e.v[j]), largest);
  int64_t end = (piece + 1) * r.piece < r.count ? (piece + 1) * r.piece : r.count;
  for (int64_t i = piece * r.piece + line; i < end; i += VECTOR_LINES * UNROLL) {
    crk_vector<T, V> v[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (i + u * VECTOR_LINES < end)
        v[u] = *(const crk_vector<T, V> *)(x + reduced_offset(r.reduced, i + u * VECTOR_LINES));
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      if (i + u * VECTOR_LINES >= end) break;
#pragma unroll
      for (int j = 0; j < V; j++)
        s[j].add(crk_load_as<A>(v[u].v[j]), i + u * VECTOR_LINES, largest);
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
#pragma unroll
    for (int step = VECTOR_LANES; step < WARP; step *= 2)
      s[j].merge(shuffle_down(s[j], step), largest);
    if (threadIdx.x % WARP < VECTOR_LANES) part[threadIdx.x / WARP][lane * V + j] = s[j];
  }
  __syncthreads();
  result = (int64_t)blockIdx.x * WIDTH + threadIdx.x;
  if (threadIdx.x >= WIDTH || result >= r.results) return;
  S sum = part[0][threadIdx.x];
  for (int k = 1; k < THREADS / WARP; k++) sum.merge(part[k][threadIdx.x], largest);
  crk_offsets(r.kept, (uint32_t)result, at);
  store_state(r, result, piece, r.kept.data[0] + at[0], sum);
}

/* Merges the pieces of one result, with TEAM threads for each. */
template <typename S, int TEAM>
__global__ void __launch_bounds__(THREADS) pieces_kernel(const __grid_constant__ reduction r) {
  int64_t result = (int64_t)blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
  int lane = threadIdx.x % TEAM;
  bool largest = r.op == CR_AMAX || r.op == CR_ARGMAX;
  if (result >= r.results) return; /* whole warps leave; a block of one team never does */
  const S *states = (const S *)r.states + result * r.pieces;
  S s;
  s.start(0, largest);
  for (int k = lane; k < r.pieces; k += TEAM) s.merge(states[k], largest);
  merge_team<S, TEAM>(&s, largest);
  if (lane > 0) return;
  int64_t at[2];
  crk_offsets(r.kept, (uint32_t)result, at);
  finish(r, r.kept.data[0] + at[0], s);
}

/* How a reduction is computed. */
typedef struct strategy {
  bool columns; /* neighbours in x belong to different results, not to the same */
  bool vectors; /* those neighbours are dense: 16 bytes at once (the rows kernel aligns itself) */
} strategy;

template <typename S, typename T, int TEAM>
static void launch_rows(crk_device *d, const reduction &r, bool vectors) {
  unsigned blocks = (unsigned)crk_ceil_div(r.results * r.pieces, THREADS / TEAM);
  if constexpr (!std::is_void_v<T>) {
    if (vectors) {
      rows_kernel<S, T, TEAM, true><<<blocks, THREADS, 0, d->stream>>>(r);
      return;
    }
  }
  rows_kernel<S, void, TEAM, false><<<blocks, THREADS, 0, d->stream>>>(r);
}

template <typename S, typename T>
static void launch_columns(crk_device *d, const reduction &r, bool vectors) {
  if constexpr (!std::is_void_v<T>) {
    if (vectors) {
      int64_t blocks = crk_ceil_div(r.results, VECTOR_LANES * (16 / (int64_t)sizeof(T)));
      dim3 grid((unsigned)blocks, (unsigned)r.pieces);
      column_vectors_kernel<S, T><<<grid, THREADS, 0, d->stream>>>(r);
      return;
    }
  }
  dim3 grid((unsigned)crk_ceil_div(r.results, LANES), (unsigned)r.pieces);
  columns_kernel<S, void><<<grid, THREADS, 0, d->stream>>>(r);
}

/* T is void for elements of any dtype, which are read one by one. */
template <typename S, typename T>
static int launch(const char *name, crk_device *d, reduction *r, strategy m) {
  if (std::is_void_v<T>) m.vectors = false;
  int team = r->count <= 1024 ? 8 : WARP;
  if (r->results < 4096 && (r->count > 8192 || r->results < 256)) team = THREADS;
  int64_t width = m.vectors ? VECTOR_LANES * (16 / cr_dtype_size(r->x_dtype)) : LANES;
  int64_t blocks = m.columns         ? crk_ceil_div(r->results, width)
                   : team == THREADS ? r->results
                                     : crk_ceil_div(r->results, THREADS / team);
  /* Enough pieces that every multiprocessor has a few blocks, but none shorter than is worthwhile.
   */
  int64_t least = m.columns ? 128 : 8192, wanted = 8 * (int64_t)d->multiprocessors;
  int64_t pieces = blocks >= wanted / 2 ? 1 : crk_ceil_div(wanted, blocks);
  if (pieces > crk_ceil_div(r->count, least)) pieces = crk_ceil_div(r->count, least);
  if (!m.columns && team != THREADS) pieces = 1;
  r->piece = crk_ceil_div(crk_ceil_div(r->count, pieces), 64) * 64;
  r->pieces = (int32_t)crk_ceil_div(r->count, r->piece);
  cr_storage *scratch = NULL;
  if (r->pieces > 1) {
    scratch = cr__storage_new(r->results * r->pieces * (int64_t)sizeof(S), d->device);
    if (!scratch) return cr__last_code();
    r->states = scratch->data;
  }
  if (m.columns)
    launch_columns<S, T>(d, *r, m.vectors);
  else if (team == 8)
    launch_rows<S, T, 8>(d, *r, m.vectors);
  else if (team == WARP)
    launch_rows<S, T, WARP>(d, *r, m.vectors);
  else
    launch_rows<S, T, THREADS>(d, *r, m.vectors);
  if (scratch) {
    if (r->results <= d->multiprocessors)
      pieces_kernel<S, THREADS><<<(unsigned)r->results, THREADS, 0, d->stream>>>(*r);
    else
      pieces_kernel<S, WARP>
          <<<(unsigned)crk_ceil_div(r->results, THREADS / WARP), THREADS, 0, d->stream>>>(*r);
    cr__release(scratch);
  }
  return crk_launched(name, d);
}

/* Floats of up to 32 bits have states of float, f64 has states of double. */
template <template <typename> class S>
static int launch_floats(const char *name, crk_device *d, reduction *r, strategy m) {
  if (r->x_dtype == CR_F32) return launch<S<float>, float>(name, d, r, m);
  if (r->x_dtype == CR_F16) return launch<S<float>, __half>(name, d, r, m);
  if (r->x_dtype == CR_BF16) return launch<S<float>, __nv_bfloat16>(name, d, r, m);
  return launch<S<double>, void>(name, d, r, m);
}

/* The same where all dtypes are summed in double. */
template <typename S>
static int launch_sums(const char *name, crk_device *d, reduction *r, strategy m) {
  if (r->x_dtype == CR_F32) return launch<S, float>(name, d, r, m);
  if (r->x_dtype == CR_F16) return launch<S, __half>(name, d, r, m);
  if (r->x_dtype == CR_BF16) return launch<S, __nv_bfloat16>(name, d, r, m);
  return launch<S, void>(name, d, r, m);
}

static int run(const char *name, crk_device *d, reduction *r, strategy m) {
  bool integers = !cr__is_float(r->x_dtype);
  switch (r->op) {
  case CR_VAR:
    return launch_sums<crk_var_state>(name, d, r, m);
  case CR_SUM:
  case CR_MEAN:
    if (integers && r->op == CR_SUM) {
      typedef crk_sum_state<int64_t> sum;
      if (r->x_dtype == CR_BOOL) return launch<sum, crk_bool>(name, d, r, m);
      if (r->x_dtype == CR_U8) return launch<sum, uint8_t>(name, d, r, m);
      return launch<sum, void>(name, d, r, m);
    }
    return launch_sums<crk_sum_state<double>>(name, d, r, m);
  case CR_AMAX:
  case CR_AMIN:
    if (integers) return launch<crk_extreme_state<int64_t>, void>(name, d, r, m);
    return launch_floats<crk_extreme_state>(name, d, r, m);
  case CR_ARGMAX:
  case CR_ARGMIN:
    if (integers) return launch<crk_best_state<int64_t>, void>(name, d, r, m);
    return launch_floats<crk_best_state>(name, d, r, m);
  default:
    return cr__backend_lacks(cr_reduce_name(r->op), d->device);
  }
}

static int reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask, int32_t keep) {
  CRK_DEVICE(d, "reduce", x);
  crk_plan kept = {}, reduced = {};
  kept.operands = 2;
  reduced.operands = 1;
  kept.data[0] = (char *)crk_ptr(out);
  kept.data[1] = reduced.data[0] = (char *)crk_ptr(x);
  kept.size[0] = cr_dtype_size(out->dtype);
  kept.size[1] = reduced.size[0] = cr_dtype_size(x->dtype);
  int64_t least = INT64_MAX;
  bool columns = false;
  int32_t own = out->rank - 1; /* out's dimension that corresponds to x's */
  for (int32_t k = x->rank - 1; k >= 0; k--) {
    bool stays = !(dim_mask >> k & 1u);
    if (stays) {
      int32_t at = kept.rank++;
      kept.shape[at] = x->shape[k];
      kept.stride[0][at] = out->stride[own];
      kept.stride[1][at] = x->stride[k];
    } else {
      int32_t at = reduced.rank++;
      reduced.shape[at] = x->shape[k];
      reduced.stride[0][at] = x->stride[k];
    }
    if (stays || keep) own--;
    if (x->shape[k] > 1 && x->stride[k] > 0 && x->stride[k] < least) {
      least = x->stride[k];
      columns = stays;
    }
  }
  int64_t results = crk_plan_total(&kept), count = crk_plan_total(&reduced);
  if (results == 0) return CR_OK;
  if (count == 0) return cr_fill(out, 0); /* only CR_SUM allows an empty reduction */
  crk_plan_merge(&kept, false);
  crk_plan_merge(&reduced, false); /* unsorted, since CR_ARG* count in this order */
  strategy m = {};
  m.columns = columns;
  if (columns) {
    int64_t width = 16 / kept.size[1];
    m.vectors = kept.stride[1][0] == 1 && crk_plan_width(&kept, 1, width) == width;
    for (int32_t k = 0; k < reduced.rank; k++)
      m.vectors = m.vectors && reduced.stride[0][k] % width == 0;
  } else {
    m.vectors = reduced.rank == 1 && reduced.stride[0][0] == 1;
    if (count < 16 && results >= 4096) m = {true, false}; /* most threads of a team would idle */
  }
  return crk_plan_split(&kept, CRK_MAX_ITEMS / 2, [&](const crk_plan &p) {
    reduction r = {};
    r.kept = crk_strided_of<2>(&p, 1);
    r.reduced = crk_strided_of<1>(&reduced, 1);
    r.kept.data[1] = p.data[1];
    r.results = crk_plan_total(&p);
    r.count = count;
    r.op = op;
    r.out_dtype = out->dtype;
    r.x_dtype = x->dtype;
    return run("reduce", d, &r, m);
  });
}

void crk_fill_reduce(cr__backend *b) {
  b->reduce = reduce;
  b->softmax = crk_softmax;
  b->scan = crk_scan;
  b->sort = crk_sort;
  b->topk = crk_topk;
}
