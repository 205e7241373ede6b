/* linear_geglu of the table: a product whose columns are values and gates, GEGLU behind it.
 *
 * Off (the option linear_geglu), and for all that the kernels of linear_geglu.h do not take, it is
 * `linear` and `geglu`, one after the other. On, the search times that and every kernel that fits,
 * and keeps the fastest under the sizes; without a search the first kernel that fits is taken.
 * CR_GEGLU=N takes way N of `ways` wherever it fits, for measuring. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "algorithms.h"
#include "elementwise.h"
#include "linear.h"
#include "linear_geglu.h"

typedef struct job {
  crk_device *d;
  cr_tensor *out;
  const cr_tensor *x, *weight, *bias;
  int64_t rows, x_pitch, w_pitch, out_pitch; /* in elements */
  int32_t width, inner;
  int ways[16], n; /* those that fit */
} job;

/* ---- the two operations ---- */

static int apart(job *j) {
  cr_tensor both = {};
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, j->out->shape, sizeof shape);
  shape[j->out->rank - 1] *= 2;
  int rc = cr_empty(&both, j->out->rank, shape, j->x->dtype, j->d->device);
  if (rc >= 0) rc = crk_linear(&both, j->x, j->weight, j->bias, NULL, CR_ACT_NONE);
  if (rc >= 0) rc = crk_geglu(j->out, &both);
  cr_free(&both);
  return rc;
}

/* ---- one kernel ---- */

/* Boxes of 64 columns of `high` rows of p [rows columns]. */
static bool describe(CUtensorMap *map, int32_t dtype, void *p, int64_t rows, int64_t columns,
                     int64_t pitch, int high) {
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, step[1] = {(cuuint64_t)pitch * 2};
  cuuint32_t box[2] = {64, (cuuint32_t)high}, each[2] = {1, 1};
  return hopper::encoder()(
             map,
             dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, p, size, step, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Clusters of blocks that the card holds at once. */
template <typename C, typename K>
static int clusters_at_once(crk_device *d, K kernel, const cudaLaunchConfig_t *config, int *out) {
  static int known[CRK_MAX_CARDS];
  if (C::CLUSTER == 1) known[d->card] = d->multiprocessors;
  if (!known[d->card])
    CRK_TRY("linear_geglu", d, cudaOccupancyMaxActiveClusters(&known[d->card], kernel, config));
  *out = known[d->card] > 0 ? known[d->card] : 1;
  return CR_OK;
}

template <typename T, typename C> static int launch(job *j, int skew) {
  auto kernel = geglu::kernel<T, C>;
  crk_device *d = j->d;
  CRK_TRY("linear_geglu", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {(unsigned)C::CLUSTER, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {(unsigned)(d->multiprocessors / C::CLUSTER * C::CLUSTER), 1, 1};
  config.blockDim = {(unsigned)C::THREADS, 1, 1};
  config.dynamicSmemBytes = C::BYTES;
  config.stream = d->stream;
  config.attrs = &cluster;
  config.numAttrs = C::CLUSTER > 1;

  geglu::sizes s = {};
  s.width = j->width, s.inner = j->inner;
  s.row_tiles = (int)crk_ceil_div(j->rows, C::ROWS * (C::KEPT ? 1 : C::CLUSTER));
  s.column_tiles = (int)crk_ceil_div(j->width, C::HALF * (C::KEPT ? C::CLUSTER : 1));
  s.group = 16 / C::CLUSTER;
  s.skew = skew;
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  int clusters;
  CR_TRY((clusters_at_once<C>(d, kernel, &config, &clusters)));
  if (C::KEPT) {
    /* Blocks that keep neighbouring tiles of w then read the same rows of x at the same time. */
    int split = clusters / s.column_tiles;
    if (split > 0 && split * s.column_tiles >= clusters * 97 / 100 && split <= s.row_tiles) {
      s.split = split;
      clusters = split * s.column_tiles;
    }
  }
  if (tiles < clusters) clusters = (int)tiles;
  config.gridDim.x = (unsigned)(clusters * C::CLUSTER);

  CUtensorMap x, w, out;
  const void *bias = j->bias ? crk_ptr(j->bias) : NULL;
  if (!describe(&x, j->x->dtype, crk_ptr(j->x), j->rows, j->inner, j->x_pitch,
                C::KEPT ? 64 / C::CLUSTER : 128) ||
      !describe(&w, j->x->dtype, crk_ptr(j->weight), 2 * (int64_t)j->width, j->inner, j->w_pitch,
                C::HALF) ||
      !describe(&out, j->x->dtype, crk_ptr(j->out), j->rows, j->width, j->out_pitch, 64))
    return cr__fail(CR_EDEVICE, "linear_geglu: the driver cannot describe %s x %s", cr__shape(j->x),
                    cr__shape(j->weight));
  CRK_TRY("linear_geglu", d, cudaLaunchKernelEx(&config, kernel, x, w, out, (const T *)bias, s));
  return crk_launched("linear_geglu", d);
}

/* M64, HALF, KEPT, STAGES, CLUSTER, OUTS */
typedef geglu::tile<1, 128, 5, 6, 1, 1> kept_128;
typedef geglu::tile<2, 64, 10, 6, 1, 1> kept_64;
typedef geglu::tile<1, 128, 5, 6, 2, 1> kept_128_by_two;
typedef geglu::tile<2, 64, 10, 6, 2, 1> kept_64_by_two;
typedef geglu::tile<1, 128, 0, 4, 1, 2> fetched;
typedef geglu::tile<1, 128, 0, 4, 2, 2> fetched_by_two;

enum {
  APART,
  KEPT_128, /* inner dimension up to 320 */
  KEPT_128_BY_TWO,
  KEPT_64, /* up to 640 */
  KEPT_64_BY_TWO,
  FETCHED, /* any */
  FETCHED_LATE,
  FETCHED_BY_TWO,
  FETCHED_BY_TWO_LATE,
  WAYS
};
enum { SKEW = 2 };

template <typename T> static int run_way(job *j, int way) {
  switch (way) {
  case KEPT_128:
    return launch<T, kept_128>(j, 0);
  case KEPT_128_BY_TWO:
    return launch<T, kept_128_by_two>(j, 0);
  case KEPT_64:
    return launch<T, kept_64>(j, 0);
  case KEPT_64_BY_TWO:
    return launch<T, kept_64_by_two>(j, 0);
  case FETCHED:
    return launch<T, fetched>(j, 0);
  case FETCHED_LATE:
    return launch<T, fetched>(j, SKEW);
  case FETCHED_BY_TWO:
    return launch<T, fetched_by_two>(j, 0);
  case FETCHED_BY_TWO_LATE:
    return launch<T, fetched_by_two>(j, SKEW);
  default:
    return apart(j);
  }
}

static int run(void *arg, int i) {
  job *j = (job *)arg;
  return j->x->dtype == CR_F16 ? run_way<__half>(j, j->ways[i])
                               : run_way<__nv_bfloat16>(j, j->ways[i]);
}

/* ---- the choice ---- */

/* x as [rows columns] with dense rows that bulk copies take: at multiples of 16 bytes. */
static bool as_rows(const cr_tensor *x, int64_t *rows, int64_t *pitch) {
  int32_t last = x->rank - 1;
  int64_t n = 1, step = x->shape[last];
  if (x->shape[last] > 1 && x->stride[last] != 1) return false;
  for (int32_t i = last - 1; i >= 0; i--) {
    if (x->shape[i] == 1) continue;
    if (n == 1)
      step = x->stride[i];
    else if (x->stride[i] != n * step)
      return false;
    n *= x->shape[i];
  }
  *rows = n;
  *pitch = step;
  return step >= x->shape[last] && step % 8 == 0 && n <= INT32_MAX - 256 &&
         (x->offset * 2 + (int64_t)(uintptr_t)x->storage->data) % 16 == 0;
}

static bool fits(job *j) {
  int32_t dtype = j->x->dtype;
  if (dtype != CR_F16 && dtype != CR_BF16) return false;
  if (j->weight->dtype != dtype || j->out->dtype != dtype) return false;
  if (j->bias && (j->bias->dtype != dtype || j->bias->stride[0] != 1)) return false;
  int64_t out_rows, w_rows;
  if (!as_rows(j->x, &j->rows, &j->x_pitch) || !as_rows(j->out, &out_rows, &j->out_pitch) ||
      !as_rows(j->weight, &w_rows, &j->w_pitch) || j->inner < 64)
    return false;
  if ((int64_t)crk_ceil_div(j->rows, 64) * crk_ceil_div(j->width, 64) > INT32_MAX) return false;
  static const bool compiled = hopper::compiled(geglu::kernel<__half, fetched>);
  return compiled && hopper::encoder();
}

static void key_text(const job *j, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu geglu 2 %s %lldx%dx%d lines %lld %lld %lld bias %d", cublasLtGetVersion(),
           cr_dtype_name(j->x->dtype), (long long)j->rows, j->inner, j->width,
           (long long)j->x_pitch, (long long)j->w_pitch, (long long)j->out_pitch, j->bias != NULL);
}

/* The index of the way to take, the fastest if that is known or may be found out now. */
static int choose(job *j) {
  int32_t way;
  const char *forced = getenv("CR_GEGLU");
  if (forced && *forced) {
    way = atoi(forced);
    for (int i = 0; i < j->n; i++)
      if (j->ways[i] == way) return i;
    return 0;
  }
  if (j->d->search) {
    char text[CRK_ALGORITHM_KEY + 1];
    key_text(j, text);
    if (crk_algorithm_find(j->d, text, &way, sizeof way))
      for (int i = 0; i < j->n; i++)
        if (j->ways[i] == way) return i;
    if (crk_may_search(j->d) && apart(j) >= 0) { /* whose own search is done with that */
      int best = crk_fastest("linear_geglu", j->d, j->n, run, j, 25);
      if (best >= 0) {
        way = j->ways[best];
        crk_algorithm_remember(j->d, text, &way, sizeof way);
        return best;
      }
    }
  }
  return 1; /* keeps w if it fits */
}

static int linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias) {
  CRK_DEVICE(d, "linear_geglu", x);
  job j = {d, out, x, weight, bias};
  j.width = out->shape[out->rank - 1];
  j.inner = weight->shape[1];
  if (!(d->fusion & CRK_FUSE_LINEAR_GEGLU) || !fits(&j)) return apart(&j);
  for (int way = 0; way < WAYS; way++) {
    int most = way == KEPT_128 || way == KEPT_128_BY_TWO ? kept_128::KEPT * 64
               : way == KEPT_64 || way == KEPT_64_BY_TWO ? kept_64::KEPT * 64
                                                         : INT32_MAX;
    if (j.inner <= most) j.ways[j.n++] = way;
  }
  int i = choose(&j);
  return d->fault[0] ? CR_EDEVICE : run(&j, i);
}

void crk_fill_geglu(cr__backend *b) { b->linear_geglu = linear_geglu; }
