/* linear_geglu of the table: a GEMM whose columns are values and gates, with GEGLU in its epilogue.
 *
 * Where the option linear_geglu is off, and for everything that the kernel of geglu_hopper.h does
 * not take, it runs `linear` and then `geglu`. Else the search times both ways and keeps the faster
 * for these sizes; without a search the kernel is used. CR_GEGLU=0 and 1 force the two operations
 * or the kernel, for measurements. */
#include <stdio.h>
#include <string.h>

#include "device/algorithms.h"
#include "device/switches.h"
#include "linear/geglu_hopper.h"
#include "linear/linear.h"

typedef struct job {
  crk_device *d;
  cr_tensor *out;
  const cr_tensor *x, *weight, *bias;
  int64_t rows, x_pitch, w_pitch, out_pitch; /* in elements */
  int32_t width, inner;
} job;

/* ---- the two operations ---- */

static int apart(job *j) {
  cr_tensor both = {};
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, j->out->shape, sizeof shape);
  shape[j->out->rank - 1] *= 2;
  int rc = cr_empty(&both, j->out->rank, shape, j->x->dtype, j->d->device);
  if (rc >= 0) rc = crk_linear(&both, j->x, j->weight, j->bias, NULL, CR_ACT_NONE);
  if (rc >= 0) rc = CR_BACKEND("linear_geglu", j->d->device, geglu, j->out, &both);
  cr_free(&both);
  return rc;
}

/* ---- one kernel ---- */

/* The tensor map of tiles of `high` rows by 64 columns of p [rows columns]. */
static bool describe(CUtensorMap *map, int32_t dtype, void *p, int64_t rows, int64_t columns,
                     int64_t pitch, int high) {
  return hopper::make_tensor_map(
      map, dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      p, rows, columns, pitch * 2, 64, high);
}

template <typename T> static int launch(job *j) {
  auto kernel = geglu::kernel<T>;
  crk_device *d = j->d;
  CRK_TRY("linear_geglu", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, geglu::BYTES));
  geglu::sizes s = {j->width, j->inner, (int)crk_ceil_div(j->rows, geglu::BLK_M),
                    (int)crk_ceil_div(j->width, geglu::BLK_N)};
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  unsigned blocks = (unsigned)(tiles < d->multiprocessors ? tiles : d->multiprocessors);
  CUtensorMap x, w, out;
  if (!describe(&x, j->x->dtype, crk_ptr(j->x), j->rows, j->inner, j->x_pitch, geglu::BLK_M) ||
      !describe(&w, j->x->dtype, crk_ptr(j->weight), 2 * (int64_t)j->width, j->inner, j->w_pitch,
                geglu::BLK_N) ||
      !describe(&out, j->x->dtype, crk_ptr(j->out), j->rows, j->width, j->out_pitch, 64))
    return cr__fail(CR_EDEVICE, "linear_geglu: the driver refuses tensor maps for %s x %s",
                    cr__shape(j->x), cr__shape(j->weight));
  kernel<<<blocks, geglu::THREADS, geglu::BYTES, d->stream>>>(
      x, w, out, j->bias ? (const T *)crk_ptr(j->bias) : NULL, s);
  return crk_launched("linear_geglu", d);
}

enum { APART, FUSED, CANDIDATES }; /* the values of CR_GEGLU, too */

static int run(void *arg, int i) {
  job *j = (job *)arg;
  if (i == APART) return apart(j);
  return j->x->dtype == CR_F16 ? launch<__half>(j) : launch<__nv_bfloat16>(j);
}

/* ---- the choice ---- */

/* Whether x is [rows columns] with dense rows at multiples of 16 bytes, as TMA needs. */
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
  return hopper::compiled<geglu::kernel<__half>>(j->d) && hopper::tensor_map_encoder();
}

static void key_text(const job *j, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu geglu 3 %s %lldx%dx%d lines %lld %lld %lld bias %d", cublasLtGetVersion(),
           cr_dtype_name(j->x->dtype), (long long)j->rows, j->inner, j->width,
           (long long)j->x_pitch, (long long)j->w_pitch, (long long)j->out_pitch, j->bias != NULL);
}

/* The faster way, if it is known or can be timed now. */
static int choose(job *j) {
  int32_t best;
  int forced = crk_switch_value(CRK_SWITCH_GEGLU);
  if (forced >= 0) return forced;
  if (!j->d->search) return FUSED;
  char text[CRK_ALGORITHM_KEY + 1];
  key_text(j, text);
  if (crk_algorithm_find(j->d, text, &best, sizeof best) && (best == APART || best == FUSED))
    return best;
  if (!crk_may_search(j->d) || apart(j) < 0)
    return FUSED; /* `apart` also does its GEMM's own search */
  best = crk_fastest("linear_geglu", j->d, CANDIDATES, run, j, 25);
  if (best < 0) return FUSED;
  crk_algorithm_remember(j->d, text, &best, sizeof best);
  return best;
}

static int linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias) {
  CRK_DEVICE(d, "linear_geglu", x);
  job j = {d, out, x, weight, bias};
  j.width = out->shape[out->rank - 1];
  j.inner = weight->shape[1];
  if (!(d->fusion & CRK_FUSE_LINEAR_GEGLU) || !fits(&j)) return apart(&j);
  int i = choose(&j);
  return d->fault[0] ? CR_EDEVICE : run(&j, i);
}

void crk_fill_geglu(cr__backend *b) { b->linear_geglu = linear_geglu; }
