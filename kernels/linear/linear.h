/* What the GEMM files share: one GEMM as its kernels see it.
 *
 *   out[i] = act(a[i] b[i] + bias) + residual[i],  i < batch
 *
 * with a [M K], b [K N], out and residual [M N]. Elements may have any row and column step, and
 * matrices any batch step (0: the same matrix for all). linear.cu folds tensors into these. */
#ifndef CRK_LINEAR_H
#define CRK_LINEAR_H

#include "device/algorithms.h"
#include "device/cuda.h"

typedef struct crk_matrix {
  void *p;
  int64_t row_step, column_step, batch_step; /* elements */
} crk_matrix;

typedef struct crk_gemm {
  const char *name; /* the operation's name, for messages */
  int32_t dtype;    /* of all operands, except with fp8 */
  int64_t m, n, k;  /* none of them is 0 */
  int64_t batch;
  crk_matrix a, b, out, residual; /* residual.p is NULL if there is none */
  const void *bias;               /* [N] dense, or NULL */
  int32_t act;
  int32_t fp8; /* CRK_FP8_*: a and b are 8-bit codes, the others have `dtype` */
  const float *a_scale,
      *b_scale; /* of codes, unless CRK_FP8_BARE: of rows [M] (NULL: 1), of columns [N] */
} crk_gemm;

/* Codes (crescent.h): none; E4M3 with plain sums; E4M3 with sums times both scales; int8 with sums
 * times both scales. */
enum { CRK_FP8_NONE, CRK_FP8_BARE, CRK_FP8_SCALED, CRK_INT8 };

enum { CRK_NOT_TAKEN = 1 }; /* crk_gemm_library returns this if it has no algorithm */

/* cuBLASLt's GEMM with bias, residual and activation (none or RELU) as epilogue, by the fastest
 * algorithm known (cublaslt.cu). CRK_NOT_TAKEN, with nothing queued, if the library does not
 * support the steps or the epilogue. out may be residual. */
int crk_gemm_library(crk_device *d, const crk_gemm *p);
/* The same, by the library or by our own kernel where that is faster (gemm_hopper.cu). */
int crk_gemm_fused(crk_device *d, const crk_gemm *p);
/* A GEMM for which several kernels compete, as the candidates of a search get it. */
typedef struct crk_gemm_job {
  crk_device *d;
  crk_gemm p;
} crk_gemm_job;
/* Which of n candidates is fastest (autotune.cu): the store's choice under `key`, or the result of
 * timing run(&job, i) now, which is then remembered. `library` is the candidate that first has to
 * do a search of its own. Negative: not known, and it cannot be timed now. */
int crk_gemm_autotune(crk_device *d, const crk_gemm *p, const char *key, int n, int library,
                      crk_candidate run);
/* cr_linear of the table (linear.cu). */
int crk_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
               const cr_tensor *residual, int32_t act);
/* The plain GEMM for any steps (plain.cu); it ignores bias, residual and act. */
int crk_gemm_plain(crk_device *d, const crk_gemm *p);
/* out = act(y + bias) + residual of p, for any steps; y may be out, which may be residual
 * (plain.cu). */
int crk_gemm_epilogue(crk_device *d, const crk_gemm *p, const crk_matrix *y);

/* Divides the steps bias, activation and residual of a GEMM: `first` has the first `steps` of them,
 * `rest` has the others. */
static inline void crk_gemm_split(const crk_gemm *p, int steps, crk_gemm *first, crk_gemm *rest) {
  *first = *rest = *p;
  if (steps < 3) first->residual.p = NULL;
  if (steps < 2) first->act = CR_ACT_NONE;
  if (steps < 1) first->bias = NULL;
  if (steps > 0) rest->bias = NULL;
  if (steps > 1) rest->act = CR_ACT_NONE;
  if (steps > 2) rest->residual.p = NULL;
}

/* Whether a matrix has dense rows (column step 1), as the library requires. */
static inline bool crk_rows_dense(const crk_matrix *x, int64_t rows, int64_t columns) {
  return (x->column_step == 1 || columns == 1) && (x->row_step >= columns || rows == 1);
}

#endif
