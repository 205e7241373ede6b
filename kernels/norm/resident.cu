/* Group norm of samples that fit in shared memory: one launch, and x is read once.
 *
 * The groups of a sample are independent, so a sample is divided into slices of some groups'
 * channels, one for each block. Slices that are still too large go to group.cu. A cluster of blocks
 * could share one, but on an H200 a launch of clusters takes 10 us longer, which is what reading x
 * twice costs.
 *
 * Invariants: sums are added in a fixed order; a block's whole part of x is in shared memory before
 * anything is written, so out may be x itself (norm.h describes the arithmetic). */
#include "norm/norm.h"

enum { MOST_THREADS = 512, TOGETHER = 4, FEW_LINES = 8 };

typedef struct resident {
  crk_group_work w;
  double inverse_n;           /* 1 / the count of numbers in a group */
  int32_t slices;             /* slices of a sample */
  int32_t channels, groups;   /* of a slice */
  int32_t tile, lines, parts; /* columns of a slice; rows at once; partial sums of a channel */
  int32_t threads;
  bool plain; /* parameters are dense and have x's dtype */
} resident;

/* The layout of a block's shared memory: the offsets of its parts in bytes; x itself comes first.
 */
typedef struct shared_layout {
  int sums, partials, pivots, table, moments, total;
} shared_layout;

static __host__ __device__ shared_layout layout(const resident &r, int element) {
  shared_layout p;
  p.sums = (int)(r.w.rows * r.channels) * element;
  p.partials = p.sums + 2 * r.lines * r.channels * 4;
  if (r.parts == r.lines) { /* the sums themselves are the partial sums */
    p.pivots = p.partials;
    p.partials = p.sums;
  } else {
    p.pivots = p.partials + (2 * r.parts * r.channels * 4 + 15) / 16 * 16;
  }
  p.table = p.pivots + (r.channels * 8 + 15) / 16 * 16;
  p.moments = p.table + (r.channels * 12 + 15) / 16 * 16;
  p.total = p.moments + r.groups * 16;
  return p;
}

__device__ __forceinline__ void copy_async(void *to, const void *from) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

/* Adds the sums of the lines to `parts` partial sums of each channel, if that is fewer. */
__device__ __forceinline__ void add_partials(const resident &r, const float *sums, float *partials,
                                             const int n) {
  if (r.parts < r.lines) {
    for (int i = threadIdx.x; i < r.parts * n; i += r.threads) {
      int c = i % n, part = i / n;
      float a = 0, b = 0;
      for (int k = part * r.lines / r.parts; k < (part + 1) * r.lines / r.parts; k++) {
        a += sums[k * n + c];
        b += sums[(r.lines + k) * n + c];
      }
      partials[i] = a;
      partials[r.parts * n + i] = b;
    }
    __syncthreads();
  }
}

/* Mean and 1 / sqrt(var + eps) of each group, a warp for each. */
__device__ __forceinline__ void group_moments(const crk_group_work &w, const resident &r,
                                              double2 *moments, const float *partials,
                                              const double *pivots, const int n, const int size,
                                              int rows) {
  for (int g = threadIdx.x / 32; g < r.groups; g += r.threads / 32) {
    double sum = 0, square = 0, pivot = pivots[g * size];
    for (int i = threadIdx.x % 32; i < size * r.parts; i += 32) {
      int part = i / size, c = g * size + i % size;
      double a = partials[part * n + c], b = partials[(r.parts + part) * n + c];
      double off = pivots[c] - pivot, m = part == 0 ? rows : 0;
      sum += a + m * off;
      square += b + off * (2 * a + m * off);
    }
    sum = crk_warp_sum(sum);
    square = crk_warp_sum(square);
    if (threadIdx.x % 32 == 0) moments[g] = crk_moments(sum, square, r.inverse_n, pivot, w.eps);
  }
}

/* One slice. All its rows of x are copied to shared memory at once; each thread later reads what it
 * has copied itself, so its V channels stay the same. Sums are taken for each channel around a
 * pivot near its mean, then for each group in f64; then the result is computed straight from shared
 * memory. Threads are `lines` rows of `tile` columns of 16 bytes. Several blocks share a
 * multiprocessor, so that one reads while another writes. Grid: slices, samples, fastest first. */
template <typename T, typename O, int V, bool SILU>
__global__ void __launch_bounds__(MOST_THREADS, 2)
    group_resident_kernel(const __grid_constant__ resident r) {
  extern __shared__ __align__(16) unsigned char memory[];
  const crk_group_work &w = r.w;
  const shared_layout at = layout(r, sizeof(T));
  crk_pack<T, V> *data = (crk_pack<T, V> *)memory;
  float *sums = (float *)(memory + at.sums), *partials = (float *)(memory + at.partials);
  double *pivots = (double *)(memory + at.pivots);
  float *table =
      (float *)(memory +
                at.table); /* [3][channels]: bias_before, weight, bias; later the crk_affine */
  double2 *moments = (double2 *)(memory + at.moments);

  const int n = r.channels, stride = r.tile * r.lines;
  int slice = blockIdx.x % r.slices, sample = blockIdx.x / r.slices;
  int line = threadIdx.x / r.tile, column = threadIdx.x % r.tile;
  int channel = slice * n + column * V, rows = (int)w.rows;
  bool working = line < r.lines;

  /* ---- load: the slice of x, and meanwhile the parameters as f32 ---- */
  if (working) {
    const T *p = (const T *)w.x + sample * w.x_sample + channel + line * w.x_row;
    for (int i = 0; line + i * r.lines < rows; i++, p += r.lines * w.x_row)
      copy_async(data + i * stride + threadIdx.x, p);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
#pragma unroll 2
  for (int c = threadIdx.x; c < n; c += r.threads) {
    int i = slice * n + c;
    float before = 0, weight = 1, bias = 0;
    if (r.plain) {
      if (w.before.data)
        before = crk_float(((const T *)w.before.data + sample * w.before_sample)[i]);
      if (w.weight.data) weight = crk_float(((const T *)w.weight.data)[i]);
      if (w.bias.data) bias = crk_float(((const T *)w.bias.data)[i]);
    } else {
      before = (float)crk_before(w, sample, i);
      weight = (float)crk_parameter_at(w.weight, i * w.weight.stride, 1);
      bias = (float)crk_parameter_at(w.bias, i * w.bias.stride, 0);
    }
    table[c] = before;
    table[n + c] = weight;
    table[2 * n + c] = bias;
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();

  /* ---- sums of each thread's channels, then `parts` partial sums of each channel ---- */
  if (working) {
    float pivot[V], sum[V] = {}, square[V] = {};
    crk_pivot<T, V>((const T *)(data + column), rows, n, pivot);
#pragma unroll 4
    for (int i = 0; i < (rows - line + r.lines - 1) / r.lines; i++)
      crk_add_row<T, V>(data[i * stride + threadIdx.x], pivot, sum, square);
    crk_put_sums<V>(sums + threadIdx.x * V, sum);
    crk_put_sums<V>(sums + (stride + threadIdx.x) * V, square);
    if (line == 0) {
#pragma unroll
      for (int j = 0; j < V; j++)
        pivots[column * V + j] = (double)pivot[j] + (double)table[column * V + j];
    }
  }
  __syncthreads();
  add_partials(r, sums, partials, n);

  /* ---- mean and 1 / sqrt(var + eps) of each group, a warp for each; factors of each channel ----
   */
  const int size = n / r.groups;
  group_moments(w, r, moments, partials, pivots, n, size, rows);
  __syncthreads();
  for (int c = threadIdx.x; c < n; c += r.threads) {
    crk_affine a = crk_group_channel<sizeof(T) == 2>(moments[c / size], table[c], table[n + c],
                                                     table[2 * n + c]);
    table[c] = a.mean;
    table[n + c] = a.scale;
    table[2 * n + c] = a.shift;
  }
  __syncthreads();

  /* ---- results ---- */
  if (working) {
    float mean[V], scale[V], shift[V], inverse[V];
    crk_take_inverses<O, V>(inverse, w.divisor + channel);
    crk_take_floats<V>(mean, table + column * V);
    crk_take_floats<V>(scale, table + n + column * V);
    crk_take_floats<V>(shift, table + 2 * n + column * V);
    O *q = (O *)w.out + sample * w.out_sample + channel + line * w.out_row;
#pragma unroll 4
    for (int i = 0; i < (rows - line + r.lines - 1) / r.lines; i++, q += r.lines * w.out_row)
      *(crk_pack<O, V> *)q = crk_group_apply<T, O, V, SILU>(data[i * stride + threadIdx.x], mean,
                                                            scale, shift, inverse, w.e4m3);
  }
}

/* Sets r to `slices` slices and `threads` threads; false if that does not fit. */
static bool cut_so(const crk_device *d, resident *r, int slices, int threads, int element) {
  const crk_group_work *w = &r->w;
  int v = 16 / element;
  if (w->groups % slices || w->channels % (slices * v)) return false;
  r->slices = slices;
  r->threads = threads;
  r->channels = w->channels / slices;
  r->groups = w->groups / slices;
  r->tile = r->channels / v;
  if (r->tile > threads) return false;
  r->lines = threads / r->tile;
  r->parts = threads / r->channels;
  if (r->parts < 1) r->parts = 1;
  if (r->parts > r->lines || r->lines <= FEW_LINES) r->parts = r->lines;
  return w->rows * r->channels * element <= d->shared_memory &&
         layout(*r, element).total <= d->shared_memory && (int64_t)w->samples * slices <= INT32_MAX;
}

/* Chooses the slices and threads that should be fastest, by a cost in microseconds on a card whose
 * multiprocessors move 32 bytes a nanosecond; false if none fits, or if reading x twice is faster.
 */
static bool cut(const crk_device *d, resident *r, int element) {
  const crk_group_work *w = &r->w;
  /* A block reads, sums and writes in turn; several blocks at different stages fill each other's
   * gaps. The numbers here and below are fitted to measurements on an H200. */
  static const double overlap[TOGETHER + 1] = {0, 1.35, 1.25, 1.15, 1.1};
  double bytes = (double)w->samples * (double)w->rows * w->channels * element;
  double best = 3.0 * bytes * 1.2 / d->multiprocessors / 32e3 + 7;
  bool found = false;
  resident least = *r;
  for (int slices = 1; slices <= w->groups; slices++) {
    for (int threads = 256; threads <= MOST_THREADS; threads *= 2) {
      if (!cut_so(d, r, slices, threads, element)) continue;
      /* The bytes of a slice's row; cache lines are 128 bytes, sectors 32. */
      int64_t width = r->channels * element;
      double waste = width % 64 == 0 ? 1 : width % 32 == 0 ? 1.1 : 1.5;
      if (width < 64 && slices > 1) waste *= 1.5;
      int64_t together = (d->shared_memory + 1024) / (layout(*r, element).total + 1024);
      if (together > TOGETHER * 256 / threads) together = TOGETHER * 256 / threads;
      int64_t share = crk_ceil_div((int64_t)w->samples * slices, d->multiprocessors);
      if (share < together) together = share;
      int64_t waves = crk_ceil_div(share, together);
      double cost = 2.0 * waste * (double)(share * w->rows * width) / 32e3 * overlap[together] *
                        (together * threads < 512 ? 1.2 : 1.0) +
                    2.0 * (double)waves;
      if (cost >= best) continue;
      found = true;
      best = cost;
      least = *r;
    }
  }
  *r = least;
  return found;
}

template <typename T, int V> static cudaError_t launch(crk_device *d, const resident *r) {
  void (*kernel)(const resident) = r->w.divisor ? r->w.silu
                                                      ? group_resident_kernel<T, uint8_t, V, true>
                                                      : group_resident_kernel<T, uint8_t, V, false>
                                   : r->w.silu ? group_resident_kernel<T, T, V, true>
                                                : group_resident_kernel<T, T, V, false>;
  int bytes = layout(*r, sizeof(T)).total;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return e;
  kernel<<<(unsigned)(r->w.samples * r->slices), r->threads, (size_t)bytes, d->stream>>>(*r);
  return cudaSuccess;
}

int crk_group_norm_resident(crk_device *d, const crk_group_work *w) {
  resident r = {*w};
  const crk_parameter *given[3] = {&w->weight, &w->bias, &w->before};
  r.plain = true;
  for (int i = 0; i < 3; i++)
    r.plain =
        r.plain && (!given[i]->data || (given[i]->dtype == w->dtype && given[i]->stride == 1));
  r.inverse_n = 1.0 / ((double)w->rows * (w->channels / w->groups));
  if (!cut(d, &r, cr_dtype_size(w->dtype))) return 0;
  switch (w->dtype) {
  case CR_F32:
    CRK_TRY("group_norm", d, (launch<float, 4>(d, &r)));
    break;
  case CR_F16:
    CRK_TRY("group_norm", d, (launch<__half, 8>(d, &r)));
    break;
  default:
    CRK_TRY("group_norm", d, (launch<__nv_bfloat16, 8>(d, &r)));
  }
  int rc = crk_launched("group_norm", d);
  return rc < 0 ? rc : 1;
}
