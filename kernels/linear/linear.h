/* What the files of the matrix products share: one product as its kernels see it.
 *
 *   out[i] = act(a[i] b[i] + bias) + residual[i],  i < batch
 *
 * with a [M K], b [K N], out and residual [M N], each element at any row and column step and each
 * matrix at any step from the last (0: the same for all). linear.cu folds tensors into these. */
#ifndef CRK_LINEAR_H
#define CRK_LINEAR_H

#include "device/algorithms.h"
#include "device/cuda.h"

typedef struct crk_matrix {
  void *p;
  int64_t row_step, column_step, batch_step; /* elements */
} crk_matrix;

typedef struct crk_gemm {
  const char *name; /* of the operation, for messages */
  int32_t dtype;    /* of all operands; but see fp8 */
  int64_t m, n, k;  /* none is 0 */
  int64_t batch;
  crk_matrix a, b, out, residual; /* residual.p NULL: none */
  const void *bias;               /* [N] dense, or NULL */
  int32_t act;
  int32_t fp8;                    /* CRK_FP8_*: a and b are codes of 8 bits, the others `dtype` */
  const float *a_scale, *b_scale; /* of codes but BARE: of rows [M] (NULL: 1), of columns [N] */
} crk_gemm;

/* Codes (crescent.h): none; E4M3's bare sums; sums times both scales; int8's sums times both. */
enum { CRK_FP8_NONE, CRK_FP8_BARE, CRK_FP8_SCALED, CRK_INT8 };

enum { CRK_NOT_TAKEN = 1 }; /* what crk_gemm_library returns where it has no algorithm */

/* cuBLASLt's product with bias, residual and (none or RELU) activation as epilogue, by the
 * fastest algorithm known (cublaslt.cu). CRK_NOT_TAKEN, with nothing queued, if the steps or
 * the epilogue are not the library's. out may be residual. */
int crk_gemm_library(crk_device *d, const crk_gemm *p);
/* The same, by the library or by a kernel of our own where that is faster (gemm_hopper.cu). */
int crk_gemm_fused(crk_device *d, const crk_gemm *p);
/* A product for which several kernels compete, as the candidates of a search get it. */
typedef struct crk_gemm_job {
  crk_device *d;
  crk_gemm p;
} crk_gemm_job;
/* Which of n candidates is fastest (autotune.cu): what the store remembers under `key`, or what
 * timing run(&job, i) tells now and is remembered then. `library` is the candidate whose own search
 * has to be done before. Negative: not known, and not to be found out now. */
int crk_gemm_autotune(crk_device *d, const crk_gemm *p, const char *key, int n, int library,
                      crk_candidate run);
/* cr_linear of the table (linear.cu). */
int crk_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
               const cr_tensor *residual, int32_t act);
/* The bare product for any steps (plain.cu): bias, residual and act are not looked at. */
int crk_gemm_plain(crk_device *d, const crk_gemm *p);
/* out = act(y + bias) + residual of p, any steps; y may be out, which may be residual
 * (plain.cu). */
int crk_gemm_epilogue(crk_device *d, const crk_gemm *p, const crk_matrix *y);

/* Divides a product's steps bias, activation and residual: `first` takes the first `steps` of them
 * along, `rest` has the others. */
static inline void crk_gemm_split(const crk_gemm *p, int steps, crk_gemm *first, crk_gemm *rest) {
  *first = *rest = *p;
  if (steps < 3) first->residual.p = NULL;
  if (steps < 2) first->act = CR_ACT_NONE;
  if (steps < 1) first->bias = NULL;
  if (steps > 0) rest->bias = NULL;
  if (steps > 1) rest->act = CR_ACT_NONE;
  if (steps > 2) rest->residual.p = NULL;
}

/* A matrix of `rows` dense rows of `columns`, as the library takes it: column step 1. */
static inline bool crk_rows_dense(const crk_matrix *x, int64_t rows, int64_t columns) {
  return (x->column_step == 1 || columns == 1) && (x->row_step >= columns || rows == 1);
}

#endif
