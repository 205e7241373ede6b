/* GEMMs by cuBLASLt: descriptors, the choice of an algorithm, the call.
 *
 * The library stores matrices by columns, so everything is transposed: out' = b' a'. A matrix with
 * dense rows is in memory the transposed one with dense columns. M and N change places, and the
 * bias, one number for each of our columns, is one for each of the library's rows.
 *
 * Invariants: sums are f32 (f64 for f64), also where K is split over blocks; f32 operands are
 * rounded to TF32 only if the card's option says so. What is set up for a shape is kept in `plans`
 * until its card is reset, so that a call costs a few microseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/algorithms.h"
#include "linear/linear.h"

enum {
  WORKSPACE_MOST = 32 << 20,
  CANDIDATES = 16,
  PLANS_MOST = 4096 /* of a card; then all are dropped, as a program's shapes may never end */
};
static const double BUDGET_MS = 25; /* for timing one shape */

/* Everything that the choice of an algorithm depends on, except the card. Compared as bytes. */
typedef struct plan_key {
  int64_t m, n, k, batch;                     /* in our order */
  int64_t ld_a, ld_b, ld_out, ld_res;         /* from one dense row or column to the next */
  int64_t step_a, step_b, step_out, step_res; /* from one matrix to the next */
  int32_t dtype, tf32;
  int32_t a_transposed, b_transposed; /* the columns of a (of b) are dense, not its rows */
  int32_t relu, bias, residual;
  int32_t align_a, align_b, align_out, align_res; /* bytes, at most 16 */
  int32_t fp8; /* CRK_FP8_*, plus FP8_FAST if sums may have fewer bits */
} plan_key;

enum { FP8_FAST = 16 };

typedef struct plan {
  struct plan *next;
  plan_key key;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, residual, out; /* a is the library's first operand, our b */
  bool refused;                               /* the library has no algorithm */
  bool proposed, decided;                     /* `first` is set; `best` is set */
  cublasLtMatmulAlgo_t first, best;           /* the library's proposal; the fastest */
  size_t first_workspace, best_workspace;
} plan;

enum { SLOTS = 1024 };
static struct {
  uint64_t context;
  int n;
  plan *slots[SLOTS];
} plans[CRK_MAX_CARDS];

static void plan_clear(plan *p) {
  if (p->operation) cublasLtMatmulDescDestroy(p->operation);
  if (p->a) cublasLtMatrixLayoutDestroy(p->a);
  if (p->b) cublasLtMatrixLayoutDestroy(p->b);
  if (p->residual) cublasLtMatrixLayoutDestroy(p->residual);
  if (p->out) cublasLtMatrixLayoutDestroy(p->out);
}

static void plans_drop(int card) {
  for (int i = 0; i < SLOTS; i++)
    for (plan *p = plans[card].slots[i], *next; p; p = next) {
      next = p->next;
      plan_clear(p);
      free(p);
    }
  memset(&plans[card], 0, sizeof plans[card]);
}

static int lt_check(const crk_gemm *p, cublasStatus_t rc) {
  if (rc == CUBLAS_STATUS_SUCCESS) return CR_OK;
  return cr__fail(CR_EDEVICE, "%s: cuBLAS: %s (%lld x %lld x %lld, %s)", p->name,
                  cublasLtGetStatusString(rc), (long long)p->m, (long long)p->k, (long long)p->n,
                  cr_dtype_name(p->dtype));
}

/* ---- descriptors ---- */

static cudaDataType_t type_of(int32_t dtype) {
  return dtype == CR_F16    ? CUDA_R_16F
         : dtype == CR_BF16 ? CUDA_R_16BF
         : dtype == CR_F64  ? CUDA_R_64F
                            : CUDA_R_32F;
}

static cublasStatus_t make_layout(cublasLtMatrixLayout_t *out, const plan_key *key,
                                  cudaDataType_t type, int64_t rows, int64_t columns, int64_t ld,
                                  int64_t step) {
  cublasStatus_t rc = cublasLtMatrixLayoutCreate(out, type, (uint64_t)rows, (uint64_t)columns, ld);
  if (rc || key->batch == 1) return rc;
  int32_t batch = (int32_t)key->batch;
  rc = cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                        sizeof batch);
  if (rc) return rc;
  return cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                          sizeof step);
}

/* What 8-bit operands need: how sums are kept, the kind of scales, and the bias's type, whose
 * default differs from the result's for some results. */
static cublasStatus_t describe_fp8(cublasLtMatmulDesc_t operation, const plan_key *key,
                                   cudaDataType_t type) {
  if (!key->fp8) return CUBLAS_STATUS_SUCCESS;
  int8_t fast = (key->fp8 & FP8_FAST) != 0;
  int32_t bias_type = (int32_t)type, mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  cublasStatus_t rc = cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM,
                                                     &fast, sizeof fast);
  if (!rc && key->bias)
    rc = cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                        sizeof bias_type);
  if (rc || (key->fp8 & ~FP8_FAST) != CRK_FP8_SCALED) return rc;
  rc = cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode,
                                      sizeof mode);
  if (rc) return rc;
  return cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode,
                                        sizeof mode);
}

static cublasStatus_t describe(plan *p) {
  const plan_key *key = &p->key;
  bool wide = key->dtype == CR_F64;
  cudaDataType_t type = type_of(key->dtype), in = key->fp8 ? CUDA_R_8F_E4M3 : type;
  cublasComputeType_t compute = wide                                ? CUBLAS_COMPUTE_64F
                                : key->dtype == CR_F32 && key->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                    : CUBLAS_COMPUTE_32F;
  cublasOperation_t transpose_a = key->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                    transpose_b = key->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue =
      key->relu   ? key->bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU
      : key->bias ? CUBLASLT_EPILOGUE_BIAS
                  : CUBLASLT_EPILOGUE_DEFAULT;
  cublasStatus_t rc =
      cublasLtMatmulDescCreate(&p->operation, compute, wide ? CUDA_R_64F : CUDA_R_32F);
  if (!rc)
    rc = cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose_a,
                                        sizeof transpose_a);
  if (!rc)
    rc = cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &transpose_b,
                                        sizeof transpose_b);
  if (!rc)
    rc = cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                        sizeof epilogue);
  if (!rc) rc = describe_fp8(p->operation, key, type);
  if (!rc)
    rc = key->b_transposed ? make_layout(&p->a, key, in, key->k, key->n, key->ld_b, key->step_b)
                           : make_layout(&p->a, key, in, key->n, key->k, key->ld_b, key->step_b);
  if (!rc)
    rc = key->a_transposed ? make_layout(&p->b, key, in, key->m, key->k, key->ld_a, key->step_a)
                           : make_layout(&p->b, key, in, key->k, key->m, key->ld_a, key->step_a);
  if (!rc) rc = make_layout(&p->out, key, type, key->n, key->m, key->ld_out, key->step_out);
  if (!rc) rc = make_layout(&p->residual, key, type, key->n, key->m, key->ld_res, key->step_res);
  return rc;
}

/* Sets a call's pointers in the operation: bias and scales. */
static cublasStatus_t set_pointers(plan *q, const crk_gemm *p) {
  cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
  if (p->bias)
    rc = cublasLtMatmulDescSetAttribute(q->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias,
                                        sizeof p->bias);
  if (rc || p->fp8 != CRK_FP8_SCALED) return rc;
  rc = cublasLtMatmulDescSetAttribute(q->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                      &p->b_scale, sizeof p->b_scale);
  if (rc) return rc;
  return cublasLtMatmulDescSetAttribute(q->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                                        &p->a_scale, sizeof p->a_scale);
}

/* The library's proposals, best first. Returns how many; 0 if it supports no such GEMM. */
static int propose(cublasLtHandle_t lt, const plan *p, int most,
                   cublasLtMatmulHeuristicResult_t *results) {
  cublasLtMatmulPreference_t preference;
  if (cublasLtMatmulPreferenceCreate(&preference)) return 0;
  uint64_t workspace = WORKSPACE_MOST;
  uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, align_a = (uint32_t)p->key.align_b,
           align_b = (uint32_t)p->key.align_a, align_c = (uint32_t)p->key.align_res,
           align_d = (uint32_t)p->key.align_out;
  struct {
    cublasLtMatmulPreferenceAttributes_t what;
    const void *value;
    size_t size;
  } wishes[] = {
      {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
      {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a, sizeof align_a},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b, sizeof align_b},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_d, sizeof align_d},
  };
  cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
  for (size_t i = 0; !rc && i < sizeof wishes / sizeof *wishes; i++)
    rc = cublasLtMatmulPreferenceSetAttribute(preference, wishes[i].what, wishes[i].value,
                                              wishes[i].size);
  int proposed = 0, n = 0;
  if (!rc)
    rc = cublasLtMatmulAlgoGetHeuristic(lt, p->operation, p->a, p->b, p->residual, p->out,
                                        preference, most, results, &proposed);
  cublasLtMatmulPreferenceDestroy(preference);
  for (int i = 0; !rc && i < proposed; i++)
    if (results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= WORKSPACE_MOST)
      results[n++] = results[i];
  return n;
}

/* Adds proposals after the first n: those for GEMMs with a few more rows. For round sizes the
 * library may propose only a few algorithms, sometimes a single one, that are not always the
 * fastest. Returns how many it adds. */
static int propose_more(cublasLtHandle_t lt, const plan *p, const crk_gemm *gemm, int most,
                        cublasLtMatmulHeuristicResult_t *results, int n) {
  if (p->key.batch > 1 || p->key.a_transposed) return 0;
  plan other = {};
  other.key = p->key;
  other.key.m += 8;
  int more = 0, added = 0;
  if (!describe(&other) && !set_pointers(&other, gemm))
    more = propose(lt, &other, most, results + n);
  plan_clear(&other);
  for (int i = n; i < n + more; i++) {
    bool known = false;
    for (int k = 0; k < n + added && !known; k++)
      known = memcmp(&results[k].algo, &results[i].algo, sizeof results[i].algo) == 0;
    cublasLtMatmulHeuristicResult_t real;
    if (known ||
        cublasLtMatmulAlgoCheck(lt, p->operation, p->a, p->b, p->residual, p->out, &results[i].algo,
                                &real) != CUBLAS_STATUS_SUCCESS ||
        real.workspaceSize > WORKSPACE_MOST)
      continue;
    real.algo = results[i].algo;
    results[n + added++] = real;
  }
  return added;
}

/* ---- calling ---- */

/* out = the GEMM p by `algorithm`, where `out` is p's own or other memory for a trial. The
 * operation's pointers have been set. */
static cublasStatus_t call(cublasLtHandle_t lt, const crk_device *d, const plan *q,
                           const crk_gemm *p, void *out, const cublasLtMatmulAlgo_t *algorithm,
                           void *workspace, size_t workspace_size) {
  static const float one32 = 1, zero32 = 0;
  static const double one64 = 1, zero64 = 0;
  bool wide = p->dtype == CR_F64;
  const void *one = wide ? (const void *)&one64 : &one32,
             *zero = wide ? (const void *)&zero64 : &zero32;
  return cublasLtMatmul(lt, q->operation, one, p->b.p, q->a, p->a.p, q->b,
                        p->residual.p ? one : zero, p->residual.p ? p->residual.p : out,
                        q->residual, out, q->out, algorithm, workspace, workspace_size, d->stream);
}

typedef struct trial {
  crk_device *d;
  const plan *plan;
  const crk_gemm *gemm;
  void *out, *workspace;
  const cublasLtMatmulHeuristicResult_t *results;
} trial;

static int run_trial(void *arg, int i) {
  const trial *t = (const trial *)arg;
  const cublasLtMatmulHeuristicResult_t *r = &t->results[i];
  return call(t->d->lt, t->d, t->plan, t->gemm, t->out, &r->algo, t->workspace, r->workspaceSize)
             ? CR_EUNSUPPORTED
             : CR_OK;
}

/* Times the proposals on the operands themselves. `out` is overwritten, which the GEMM is about to
 * do anyway; where it is also the residual, trials write to other memory. -1: nothing could be
 * timed. */
static int fastest(crk_device *d, const plan *q, const crk_gemm *p, int n,
                   const cublasLtMatmulHeuristicResult_t *results) {
  size_t most = 0;
  for (int i = 0; i < n; i++)
    if (results[i].workspaceSize > most) most = results[i].workspaceSize;
  bool in_place = p->residual.p == p->out.p;
  int64_t bytes =
      ((p->batch - 1) * p->out.batch_step + p->m * q->key.ld_out) * cr_dtype_size(p->dtype);
  cr_storage *workspace = most ? cr__storage_new((int64_t)most, d->device) : NULL,
             *other = in_place ? cr__storage_new(bytes, d->device) : NULL;
  int chosen = -1;
  if ((workspace || !most) && (other || !in_place)) {
    trial t = {d,      q, p, other ? other->data : p->out.p, workspace ? workspace->data : NULL,
               results};
    chosen = crk_fastest(p->name, d, n, run_trial, &t, BUDGET_MS);
  }
  if (workspace) cr__release(workspace);
  if (other) cr__release(other);
  return chosen;
}

static const char *fp8_text(int32_t fp8) {
  static const char *const texts[] = {"", " e4m3", " e4m3 scaled"};
  return fp8 == (CRK_FP8_BARE | FP8_FAST)     ? " e4m3 fast"
         : fp8 == (CRK_FP8_SCALED | FP8_FAST) ? " e4m3 scaled fast"
                                              : texts[fp8];
}

static void key_text(const plan_key *k, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu product %s%s%s %lldx%lldx%lld batch %lld lines %lld%s %lld%s %lld %lld "
           "steps %lld %lld %lld %lld align %d %d %d %d epilogue%s%s%s",
           cublasLtGetVersion(), cr_dtype_name(k->dtype), k->tf32 ? " tf32" : "", fp8_text(k->fp8),
           (long long)k->m, (long long)k->k, (long long)k->n, (long long)k->batch,
           (long long)k->ld_a, k->a_transposed ? "t" : "", (long long)k->ld_b,
           k->b_transposed ? "t" : "", (long long)k->ld_out, (long long)k->ld_res,
           (long long)k->step_a, (long long)k->step_b, (long long)k->step_out,
           (long long)k->step_res, k->align_a, k->align_b, k->align_out, k->align_res,
           k->bias ? " bias" : "", k->relu ? " relu" : "", k->residual ? " residual" : "");
}

static void take_first(plan *q, int n, const cublasLtMatmulHeuristicResult_t *results) {
  q->refused = n == 0;
  q->proposed = n > 0;
  if (n == 0) return;
  q->first = results[0].algo;
  q->first_workspace = results[0].workspaceSize;
}

/* Sets `best` from the store or by timing, or leaves it where neither is possible now. It is no
 * failure that nothing can be timed, unless the card has failed. */
static int choose_algorithm(crk_device *d, plan *q, const crk_gemm *p) {
  char text[CRK_ALGORITHM_KEY + 1];
  key_text(&q->key, text);
  cublasLtMatmulAlgo_t known;
  cublasLtMatmulHeuristicResult_t results[2 * CANDIDATES];
  if (crk_algorithm_find(d, text, &known, sizeof known) &&
      cublasLtMatmulAlgoCheck(d->lt, q->operation, q->a, q->b, q->residual, q->out, &known,
                              &results[0]) == CUBLAS_STATUS_SUCCESS &&
      results[0].workspaceSize <= WORKSPACE_MOST) {
    q->best = known;
    q->best_workspace = results[0].workspaceSize;
    q->decided = true;
    return CR_OK;
  }
  if (!crk_may_search(d)) return CR_OK;
  int n = propose(d->lt, q, CANDIDATES, results);
  take_first(q, n, results);
  if (n == 0) return CR_OK;
  n += propose_more(d->lt, q, p, CANDIDATES, results, n);
  int chosen = n > 1 ? fastest(d, q, p, n, results) : 0;
  if (d->fault[0]) return CR_EDEVICE;
  q->best = results[chosen < 0 ? 0 : chosen].algo;
  q->best_workspace = results[chosen < 0 ? 0 : chosen].workspaceSize;
  q->decided = true; /* even if nothing could be timed, so that not every call tries again */
  if (chosen >= 0) crk_algorithm_remember(d, text, &q->best, sizeof q->best);
  return CR_OK;
}

/* ---- plans ---- */

static int32_t alignment(const void *p) {
  uintptr_t low = (uintptr_t)p & 15;
  return low ? (int32_t)(low & -low) : 16;
}

/* How x [rows columns] is stored: dense rows, or transposed; false: neither. */
static bool layout_of(const crk_matrix *x, int64_t rows, int64_t columns, int64_t *ld,
                      int32_t *transposed) {
  if (crk_rows_dense(x, rows, columns)) {
    *transposed = 0;
    *ld = rows == 1 ? columns : x->row_step;
    return true;
  }
  crk_matrix other = {x->p, x->column_step, x->row_step, x->batch_step};
  if (!crk_rows_dense(&other, columns, rows)) return false;
  *transposed = 1;
  *ld = columns == 1 ? rows : other.row_step;
  return true;
}

/* The alignment in bytes, at most 16, that all rows of all matrices have. */
static int64_t rows_alignment(const crk_matrix *x, int64_t ld, int64_t batch, int64_t size) {
  int64_t low =
      ((int64_t)(uintptr_t)x->p | ld * size | (batch > 1 ? x->batch_step * size : 0)) & 15;
  return low ? low & -low : 16;
}

static bool key_of(const crk_device *d, const crk_gemm *p, plan_key *key) {
  memset(key, 0, sizeof *key);
  bool residual = p->residual.p != NULL;
  int32_t transposed;
  if (!layout_of(&p->a, p->m, p->k, &key->ld_a, &key->a_transposed) ||
      !layout_of(&p->b, p->k, p->n, &key->ld_b, &key->b_transposed) ||
      !layout_of(&p->out, p->m, p->n, &key->ld_out, &transposed) || transposed)
    return false;
  key->ld_res = key->ld_out;
  if (residual && (!layout_of(&p->residual, p->m, p->n, &key->ld_res, &transposed) || transposed))
    return false;
  if (p->batch > INT32_MAX || (p->act != CR_ACT_NONE && (p->act != CR_ACT_RELU || residual)))
    return false;
  if (p->dtype == CR_F64 && (p->bias || p->act)) return false;
  /* cublasLtMatmul's requirements for 8-bit operands: both are dense along K, and all is a multiple
   * of 16 bytes. */
  if (p->fp8 &&
      (key->a_transposed || !key->b_transposed || p->k % 16 || p->n % 16 || key->ld_a % 16 ||
       key->ld_b % 16 || alignment(p->a.p) < 16 || alignment(p->b.p) < 16 ||
       alignment(p->out.p) < 16 ||
       (p->fp8 == CRK_FP8_SCALED && (alignment(p->a_scale) < 16 || alignment(p->b_scale) < 16))))
    return false;
  /* A search faulted once (misaligned address) on a result whose rows were less aligned than the
   * residual's. It is not proven that the library was at fault, but such residuals are added in a
   * pass of their own. */
  int64_t size = cr_dtype_size(p->dtype);
  if (residual && rows_alignment(&p->residual, key->ld_res, p->batch, size) !=
                      rows_alignment(&p->out, key->ld_out, p->batch, size))
    return false;
  key->m = p->m, key->n = p->n, key->k = p->k, key->batch = p->batch;
  if (p->batch > 1) {
    key->step_a = p->a.batch_step;
    key->step_b = p->b.batch_step;
    key->step_out = p->out.batch_step;
    key->step_res = residual ? p->residual.batch_step : key->step_out;
  }
  key->dtype = p->dtype;
  key->tf32 = p->dtype == CR_F32 && d->tf32 && !p->fp8;
  key->fp8 = p->fp8 ? p->fp8 | (d->fp8_fast ? FP8_FAST : 0) : CRK_FP8_NONE;
  key->relu = p->act == CR_ACT_RELU;
  key->bias = p->bias != NULL;
  key->residual = residual;
  key->align_a = alignment(p->a.p);
  key->align_b = alignment(p->b.p);
  key->align_out = alignment(p->out.p);
  key->align_res = residual ? alignment(p->residual.p) : key->align_out;
  if (p->bias && alignment(p->bias) < key->align_out) key->align_out = alignment(p->bias);
  return true;
}

static unsigned slot_of(const plan_key *key) {
  uint64_t h = 0, words[sizeof *key / 8];
  memcpy(words, key, sizeof words);
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    h = (h ^ words[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
  return (unsigned)(h % SLOTS);
}

/* The plan of a key; a new one has only its descriptors. NULL: the message is set. */
static plan *plan_of(crk_device *d, const crk_gemm *p, const plan_key *key) {
  static_assert(sizeof *key % 8 == 0, "keys are hashed by words, without gaps");
  if (plans[d->card].context != d->context || plans[d->card].n >= PLANS_MOST) {
    plans_drop(d->card);
    plans[d->card].context = d->context;
  }
  plan **slot = &plans[d->card].slots[slot_of(key)];
  for (plan *q = *slot; q; q = q->next)
    if (memcmp(&q->key, key, sizeof *key) == 0) return q;
  plan *q = (plan *)calloc(1, sizeof *q);
  if (!q) {
    cr__fail(CR_ENOMEM, "%s: out of memory", p->name);
    return NULL;
  }
  q->key = *key;
  q->refused = describe(q) != CUBLAS_STATUS_SUCCESS;
  q->next = *slot;
  *slot = q;
  plans[d->card].n++;
  return q;
}

int crk_gemm_library(crk_device *d, const crk_gemm *p) {
  plan_key key;
  if (p->fp8 == CRK_INT8 || (p->fp8 == CRK_FP8_SCALED && !p->a_scale) || !crk_libraries_wanted() ||
      !key_of(d, p, &key))
    return CRK_NOT_TAKEN;
  cublasLtHandle_t lt = crk_lt(p->name, d);
  if (!lt) return CR_EDEVICE;
  plan *q = plan_of(d, p, &key);
  if (!q) return CR_ENOMEM;
  if (q->refused) return CRK_NOT_TAKEN;
  CR_TRY(lt_check(p, set_pointers(q, p)));
  if (d->search && !q->decided) CR_TRY(choose_algorithm(d, q, p));
  bool best = d->search && q->decided;
  if (!best && !q->proposed && !q->refused) {
    cublasLtMatmulHeuristicResult_t first;
    take_first(q, propose(lt, q, 1, &first), &first);
  }
  if (q->refused) return CRK_NOT_TAKEN;
  size_t size = best ? q->best_workspace : q->first_workspace;
  cr_storage *workspace = NULL;
  if (size) {
    workspace = cr__storage_new((int64_t)size, d->device);
    if (!workspace) return CR_ENOMEM;
  }
  cublasStatus_t rc = call(lt, d, q, p, p->out.p, best ? &q->best : &q->first,
                           workspace ? workspace->data : NULL, size);
  if (workspace) cr__release(workspace);
  if (rc == CUBLAS_STATUS_NOT_SUPPORTED) {
    q->refused = true; /* it was proposed, but is not supported after all */
    return CRK_NOT_TAKEN;
  }
  int launched = crk_launched(p->name, d);
  return launched < 0 ? launched : lt_check(p, rc);
}
