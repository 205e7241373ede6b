/* Group norm of samples of any size: x is read for the sums and again for the result.
 *
 * Sums of d and d^2 are taken for each channel, where d is x minus a pivot near the channel's mean:
 * in f32 over at most some 64 rows a thread, and in f64 beyond (norm.h). bias_before is never added
 * to x; it shifts the means of the channels, and the table and the merging of channels take that
 * into account.
 *
 * Invariants: sums are added in a fixed order (no atomics), so results do not depend on timing; out
 * may be x itself. */
#include "norm/norm.h"

/* A block's threads are `lines` rows of `tile` columns; a column is V channels. */
typedef struct two_pass {
  crk_group_work w;
  double inverse_n; /* 1 / the count of numbers in a group */
  float *sums;      /* [samples][blocks][C][2] */
  float *pivots;    /* [samples][C] */
  float *table;     /* [samples][3][C]: mean, scale, shift */
  int64_t chunk;    /* rows of a block in the first pass; in the second pass: */
  int64_t apply_chunk;
  int32_t blocks, apply_blocks; /* blocks of a sample */
  int32_t tile, lines, apply_tile, apply_lines;
} two_pass;

/* HELD: loads of a thread that are in flight at once. */
enum { MOST_THREADS = 512, APPLY_THREADS = 256, TABLE_THREADS = 256, HELD = 4 };

/* Sums of a chunk of rows of one sample for all channels. Rows are read as whole lines of `tile` *
 * 16 bytes, with 4 loads of a thread in flight. A thread keeps its V channels, so its sums stay in
 * registers; shared memory adds them over the lines. One block for each chunk, samples in order. */
template <typename T, int V>
__global__ void __launch_bounds__(MOST_THREADS)
    group_sums_kernel(const __grid_constant__ two_pass s) {
  extern __shared__ __align__(16) float joined[]; /* [2][lines][tile * V] */
  int sample = blockIdx.x / s.blocks, block = blockIdx.x % s.blocks;
  int line = threadIdx.x / s.tile, columns = s.w.channels / V, span = s.tile * V;
  int64_t start = block * s.chunk, end = start + s.chunk < s.w.rows ? start + s.chunk : s.w.rows;
  const T *sample_x = (const T *)s.w.x + sample * s.w.x_sample;
  float *to = s.sums + (int64_t)blockIdx.x * s.w.channels * 2;
  for (int c0 = 0; c0 < columns; c0 += s.tile) {
    int column = c0 + threadIdx.x % s.tile;
    float sum[V] = {}, square[V] = {};
    if (column < columns) {
      const T *x = sample_x + (int64_t)column * V;
      int64_t step = s.lines * s.w.x_row, row = start + line;
      const T *p = x + row * s.w.x_row;
      float pivot[V];
      crk_pivot<T, V>(x, s.w.rows, s.w.x_row, pivot);
      if (block == 0 && line == 0) {
#pragma unroll
        for (int j = 0; j < V; j++)
          s.pivots[(int64_t)sample * s.w.channels + column * V + j] = pivot[j];
      }
      crk_pack<T, V> held[HELD];
      for (; row + (HELD - 1) * s.lines < end; row += HELD * s.lines, p += HELD * step) {
#pragma unroll
        for (int i = 0; i < HELD; i++) held[i] = *(const crk_pack<T, V> *)(p + i * step);
#pragma unroll
        for (int i = 0; i < HELD; i++) crk_add_row<T, V>(held[i], pivot, sum, square);
      }
      for (; row < end; row += s.lines, p += step)
        crk_add_row<T, V>(*(const crk_pack<T, V> *)p, pivot, sum, square);
    }
    crk_put_sums<V>(joined + threadIdx.x * V, sum);
    crk_put_sums<V>(joined + s.lines * span + threadIdx.x * V, square);
    __syncthreads();
    for (int c = threadIdx.x; c < span; c += blockDim.x) {
      float a = 0, b = 0;
      for (int i = 0; i < s.lines; i++) {
        a += joined[i * span + c];
        b += joined[(s.lines + i) * span + c];
      }
      if (c0 * V + c < s.w.channels) *(float2 *)(to + 2 * (c0 * V + c)) = make_float2(a, b);
    }
    __syncthreads();
  }
}

/* Turns the blocks' sums into the table of one group: a block for each sample and group. */
__global__ void __launch_bounds__(TABLE_THREADS)
    group_table_kernel(const __grid_constant__ two_pass s) {
  __shared__ double shared[2][TABLE_THREADS / 32];
  int sample = blockIdx.x / s.w.groups, group = blockIdx.x % s.w.groups;
  int channels = s.w.channels, size = channels / s.w.groups, first = group * size;
  const float *sums = s.sums + (int64_t)sample * s.blocks * channels * 2;
  const float *pivots = s.pivots + (int64_t)sample * channels;
  double pivot = pivots[first] + crk_before(s.w, sample, first), sum = 0, square = 0;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < (uint32_t)(s.blocks * size); i += TABLE_THREADS) {
    uint32_t block = i / (uint32_t)size;
    int channel = first + (int)(i - block * (uint32_t)size);
    float2 v = *(const float2 *)(sums + ((int64_t)block * channels + channel) * 2);
    int64_t rows = s.w.rows - block * s.chunk;
    double n = (double)(rows < s.chunk ? rows : s.chunk);
    double off = pivots[channel] + crk_before(s.w, sample, channel) - pivot;
    sum += v.x + n * off;
    square += v.y + off * (2 * (double)v.x + n * off);
  }
  sum = crk_warp_sum(sum);
  square = crk_warp_sum(square);
  if (threadIdx.x % 32 == 0) {
    shared[0][threadIdx.x / 32] = sum;
    shared[1][threadIdx.x / 32] = square;
  }
  __syncthreads();
  sum = square = 0;
  for (int i = 0; i < TABLE_THREADS / 32; i++) {
    sum += shared[0][i];
    square += shared[1][i];
  }
  double2 moments = crk_moments(sum, square, s.inverse_n, pivot, s.w.eps);
  float *table = s.table + (int64_t)sample * 3 * channels;
  for (int c = first + threadIdx.x; c < first + size; c += TABLE_THREADS) {
    double before = crk_before(s.w, sample, c);
    double weight = crk_parameter_at(s.w.weight, c * s.w.weight.stride, 1);
    double bias = crk_parameter_at(s.w.bias, c * s.w.bias.stride, 0);
    crk_affine a = s.w.dtype == CR_F32 ? crk_group_channel<false>(moments, before, weight, bias)
                                       : crk_group_channel<true>(moments, before, weight, bias);
    table[c] = a.mean;
    table[channels + c] = a.scale;
    table[2 * channels + c] = a.shift;
  }
}

/* The result of a chunk of rows, with threads as in the sums. Chunks are taken from the last to the
 * first, since the end of x was read last and may still be in the cache. */
template <typename T, typename O, int V, bool SILU>
__global__ void __launch_bounds__(APPLY_THREADS, 3)
    group_apply_kernel(const __grid_constant__ two_pass s) {
  int64_t task = (int64_t)gridDim.x - 1 - blockIdx.x;
  int sample = (int)(task / s.apply_blocks);
  int64_t start = task % s.apply_blocks * s.apply_chunk;
  int64_t end = start + s.apply_chunk < s.w.rows ? start + s.apply_chunk : s.w.rows;
  int columns = s.w.channels / V, line = threadIdx.x / s.apply_tile, lines = s.apply_lines;
  const float *table = s.table + (int64_t)sample * 3 * s.w.channels;
  for (int column = threadIdx.x % s.apply_tile; column < columns; column += s.apply_tile) {
    int64_t row = start + line;
    const T *p = (const T *)s.w.x + sample * s.w.x_sample + row * s.w.x_row + column * V;
    O *q = (O *)s.w.out + sample * s.w.out_sample + row * s.w.out_row + column * V;
    int64_t step = lines * s.w.x_row, out_step = lines * s.w.out_row;
    float mean[V], scale[V], shift[V], inverse[V];
    crk_take_inverses<O, V>(inverse, s.w.divisor + column * V);
    crk_take_floats<V>(mean, table + column * V);
    crk_take_floats<V>(scale, table + s.w.channels + column * V);
    crk_take_floats<V>(shift, table + 2 * s.w.channels + column * V);
    crk_pack<T, V> held[HELD];
    for (; row + (HELD - 1) * lines < end; row += HELD * lines) {
#pragma unroll
      for (int i = 0; i < HELD; i++) held[i] = *(const crk_pack<T, V> *)(p + i * step);
#pragma unroll
      for (int i = 0; i < HELD; i++)
        *(crk_pack<O, V> *)(q + i * out_step) =
            crk_group_apply<T, O, V, SILU>(held[i], mean, scale, shift, inverse, s.w.e4m3);
      p += HELD * step;
      q += HELD * out_step;
    }
    for (; row < end; row += lines, p += step, q += out_step)
      *(crk_pack<O, V> *)q = crk_group_apply<T, O, V, SILU>(*(const crk_pack<T, V> *)p, mean, scale,
                                                            shift, inverse, s.w.e4m3);
  }
}

template <typename T, int V> static void launch_two_pass(crk_device *d, const two_pass *s) {
  int threads = s->tile * s->lines, apply_threads = s->apply_tile * s->apply_lines;
  unsigned blocks = (unsigned)(s->w.samples * s->blocks);
  unsigned apply = (unsigned)((int64_t)s->w.samples * s->apply_blocks);
  group_sums_kernel<T, V>
      <<<blocks, threads, (size_t)(threads * V) * 2 * sizeof(float), d->stream>>>(*s);
  group_table_kernel<<<(unsigned)(s->w.samples * s->w.groups), TABLE_THREADS, 0, d->stream>>>(*s);
  void (*kernel)(const two_pass) = s->w.divisor ? s->w.silu
                                                      ? group_apply_kernel<T, uint8_t, V, true>
                                                      : group_apply_kernel<T, uint8_t, V, false>
                                   : s->w.silu ? group_apply_kernel<T, T, V, true>
                                                : group_apply_kernel<T, T, V, false>;
  kernel<<<apply, apply_threads, 0, d->stream>>>(*s);
}

static int group_norm_two_pass(crk_device *d, const crk_group_work *w) {
  two_pass s = {*w};
  s.inverse_n = 1.0 / ((double)w->rows * (w->channels / w->groups));
  int32_t v = w->vectors ? 16 / cr_dtype_size(w->dtype) : 1, columns = w->channels / v;
  s.tile = columns < MOST_THREADS ? columns : MOST_THREADS;
  s.lines = MOST_THREADS / s.tile;
  s.apply_tile = columns < APPLY_THREADS ? columns : APPLY_THREADS;
  s.apply_lines = APPLY_THREADS / s.apply_tile;
  /* For the sums, some four blocks a multiprocessor, but at most 64 rows a thread and at least 4.
   */
  int64_t chunk = crk_ceil_div(w->rows * w->samples, 4 * d->multiprocessors);
  if (chunk > 64 * s.lines) chunk = 64 * s.lines;
  if (chunk < 4 * s.lines) chunk = 4 * s.lines;
  s.chunk = chunk;
  s.apply_chunk = 16 * s.apply_lines; /* many small chunks, so that all blocks end together */
  int64_t blocks = crk_ceil_div(w->rows, s.chunk), apply = crk_ceil_div(w->rows, s.apply_chunk);
  if (apply * w->samples > INT32_MAX || (int64_t)w->samples * w->groups > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "group_norm: %d samples of %lld rows are too many for a card",
                    w->samples, (long long)w->rows);
  s.blocks = (int32_t)blocks;
  s.apply_blocks = (int32_t)apply;
  int64_t sums = w->samples * blocks * w->channels * 2, table = (int64_t)w->samples * w->channels;
  cr_storage *scratch = cr__storage_new((sums + 4 * table) * (int64_t)sizeof(float), d->device);
  if (!scratch) return cr__last_code();
  s.sums = (float *)scratch->data;
  s.pivots = s.sums + sums;
  s.table = s.pivots + table;
  int rc = CR_OK;
  switch (w->dtype) {
  case CR_F32:
    w->vectors ? launch_two_pass<float, 4>(d, &s) : launch_two_pass<float, 1>(d, &s);
    break;
  case CR_F16:
    w->vectors ? launch_two_pass<__half, 8>(d, &s) : launch_two_pass<__half, 1>(d, &s);
    break;
  default:
    w->vectors ? launch_two_pass<__nv_bfloat16, 8>(d, &s)
               : launch_two_pass<__nv_bfloat16, 1>(d, &s);
  }
  rc = crk_launched("group_norm", d);
  cr__release(scratch);
  return rc;
}

/* ---- tensors ---- */

/* Whether x [N ... C] is samples of equally spaced dense rows; sets their distances. */
static bool as_rows(const cr_tensor *x, int64_t *sample, int64_t *row) {
  int last = x->rank - 1;
  if (x->shape[last] > 1 && x->stride[last] != 1) return false;
  *sample = x->shape[0] > 1 ? x->stride[0] : 0;
  *row = 0;
  int64_t below = 1; /* rows within the dimensions seen so far */
  for (int k = last - 1; k > 0; k--) {
    if (x->shape[k] == 1) continue;
    if (below == 1) {
      *row = x->stride[k];
    } else if (x->stride[k] != below * *row) {
      return false;
    }
    below *= x->shape[k];
  }
  return true;
}

static crk_parameter parameter(const cr_tensor *t) {
  crk_parameter p = {NULL, CR_F32, 0};
  if (t) p = {crk_ptr(t), t->dtype, t->shape[t->rank - 1] > 1 ? t->stride[t->rank - 1] : 0};
  return p;
}

static int run(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
               const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *before,
               const cr_tensor *divisor, crk_device *d) {
  crk_group_work w = {crk_ptr(x), crk_ptr(out), parameter(weight), parameter(bias),
                      parameter(before)};
  w.dtype = x->dtype;
  w.samples = x->shape[0];
  w.channels = x->shape[x->rank - 1];
  w.groups = groups;
  w.rows = cr_numel(x) / w.samples / w.channels;
  w.silu = silu != 0;
  w.eps = eps;
  if (divisor) w.divisor = (const float *)crk_ptr(divisor), w.e4m3 = out->dtype == CR_U8;
  if (before) w.before_sample = before->stride[0];
  as_rows(x, &w.x_sample, &w.x_row);
  as_rows(out, &w.out_sample, &w.out_row);
  int64_t size = cr_dtype_size(w.dtype), steps[2] = {w.x_sample, w.x_row},
          out_steps[2] = {w.out_sample, w.out_row};
  w.vectors = w.channels * size % 16 == 0 && crk_aligned(w.x, 2, steps, size, 16) &&
              crk_aligned(w.out, 2, out_steps, cr_dtype_size(out->dtype),
                          16 / size * cr_dtype_size(out->dtype));
  int rc = w.vectors ? crk_group_norm_resident(d, &w) : 0;
  return rc != 0 ? (rc < 0 ? rc : CR_OK) : group_norm_two_pass(d, &w);
}

/* x + bias_before as a tensor of its own; bias_before is [N C], x [N ... C]. */
static int add_before(cr_tensor *out, const cr_tensor *x, const cr_tensor *bias_before) {
  cr_tensor wide = *bias_before;
  wide.rank = x->rank;
  for (int k = 1; k < x->rank; k++) wide.shape[k] = 1;
  wide.shape[x->rank - 1] = bias_before->shape[1];
  wide.stride[x->rank - 1] = bias_before->stride[1];
  CR_TRY(cr_empty(out, x->rank, x->shape, x->dtype, x->device));
  return CR_BACKEND("group_norm", x->device, binary, out, CR_ADD, x, &wide);
}

static int group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                      const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before,
                      const cr_tensor *divisor) {
  if (cr_numel(x) == 0) return CR_OK;
  if (x->dtype == CR_F64)
    return cr__fail(CR_EUNSUPPORTED, "group_norm: f64 is not supported on a card; use f32");
  CRK_DEVICE(d, "group_norm", x);
  bool silu_apart = silu && !(d->fusion & CRK_FUSE_NORM_SILU);
  int64_t sample, row;
  cr_tensor sum = {0}, dense = {0}, made = {0};
  const cr_tensor *from = x;
  cr_tensor *to = out;
  int rc = CR_OK;
  if (bias_before && !(d->fusion & CRK_FUSE_NORM_BIAS)) {
    rc = add_before(&sum, x, bias_before);
    from = &sum;
    bias_before = NULL;
  }
  if (rc >= 0 && !as_rows(from, &sample, &row)) {
    from = cr__dense(x, x->dtype, &dense);
    if (!from) rc = cr__last_code();
  }
  if (rc >= 0 && !as_rows(out, &sample, &row)) {
    rc = cr_empty(&made, out->rank, out->shape, out->dtype, out->device);
    to = &made;
  }
  if (rc >= 0)
    rc = run(to, from, groups, weight, bias, eps, silu && !silu_apart, bias_before, divisor, d);
  if (rc >= 0 && silu_apart) rc = CR_BACKEND("group_norm", d->device, unary, to, CR_SILU, to);
  if (rc >= 0 && to == &made) rc = cr_copy(out, &made);
  cr_free(&made);
  cr_free(&dense);
  cr_free(&sum);
  return rc;
}

int crk_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                   const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before) {
  return group_norm(out, x, groups, weight, bias, eps, silu, bias_before, NULL);
}

int crk_quant_group_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t groups,
                         const cr_tensor *weight, const cr_tensor *bias, double eps, int32_t silu,
                         const cr_tensor *bias_before, const cr_tensor *divisor) {
  CRK_DEVICE(d, "quant_group_norm", x);
  const int all = CRK_FUSE_NORM_SILU | CRK_FUSE_NORM_BIAS;
  if (!scale && (d->fusion & all) == all && x->dtype != CR_F64)
    return group_norm(codes, x, groups, weight, bias, eps, silu, bias_before, divisor);
  cr_tensor y = {};
  CR_TRY(cr_group_norm(&y, x, groups, weight, bias, eps, silu, bias_before));
  int rc = CR_BACKEND("quantize", x->device, quantize, codes, scale, &y, divisor);
  cr_free(&y);
  return rc;
}
