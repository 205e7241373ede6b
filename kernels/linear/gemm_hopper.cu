/* GEMMs of 16-bit numbers by our own kernel (gemm_hopper.h) or the library's. On a Hopper the
 * search times both and keeps the faster for these sizes. Ours wins where bias and residual are
 * fused and the result is not wide: for the output layers of attention and feed-forward networks,
 * by up to a third, or 2 % of a step at 256 px. Without a search, and in a recording of unknown
 * sizes, the library's is used. CR_LINEAR_OWN=0 leaves all to the library, and 1 uses ours wherever
 * it fits, for measurements. */
#include <stdio.h>

#include "device/switches.h"
#include "linear/gemm_hopper.h"

/* The candidates; the store remembers one by its number, and CR_LINEAR_OWN has the same numbers. */
enum { LIBRARY, OWN, CANDIDATES };

typedef linear::tile<160, 4> wide;

/* A single row may have any step; this sets that of a dense matrix. */
static crk_gemm with_steps(const crk_gemm *p) {
  crk_gemm q = *p;
  if (q.m == 1) q.a.row_step = q.k, q.out.row_step = q.residual.row_step = q.n;
  return q;
}

/* Whether a tensor map can describe the rows: dense, at multiples of 16 bytes. */
static bool rows_fit(const void *p, int64_t step, int64_t dense_step, int64_t columns) {
  return dense_step == 1 && step >= columns && step % 8 == 0 && (uintptr_t)p % 16 == 0 &&
         step < INT32_MAX;
}

/* Whether results may be written while the residual is still read: it is the same matrix, or does
 * not overlap. */
static bool apart(const crk_gemm *p) {
  if (!p->residual.p) return true;
  uintptr_t out = (uintptr_t)p->out.p, residual = (uintptr_t)p->residual.p;
  if (out == residual) return p->out.row_step == p->residual.row_step;
  return out + (uintptr_t)(p->m * p->out.row_step * 2) <= residual ||
         residual + (uintptr_t)(p->m * p->residual.row_step * 2) <= out;
}

/* Whether our kernel takes a GEMM (with_steps). */
static bool fits(const crk_device *d, const crk_gemm *p) {
  if (d->major != 9 || (p->dtype != CR_F16 && p->dtype != CR_BF16) || p->fp8 || p->batch != 1 ||
      p->act != CR_ACT_NONE || p->k % 8 || p->n % 8 || p->m > INT32_MAX / 2 ||
      p->n > INT32_MAX / 2 || p->k > INT32_MAX / 2 ||
      (crk_ceil_div(p->m, wide::BLK_M) + wide::GROUP_M) * crk_ceil_div(p->n, wide::BLK_N) >
          INT32_MAX / 2)
    return false;
  if (!rows_fit(p->a.p, p->a.row_step, p->a.column_step, p->k) ||
      !rows_fit(p->b.p, p->b.column_step, p->b.row_step, p->k) ||
      !rows_fit(p->out.p, p->out.row_step, p->out.column_step, p->n) ||
      (p->residual.p &&
       !rows_fit(p->residual.p, p->residual.row_step, p->residual.column_step, p->n)) ||
      !apart(p))
    return false;
  return hopper::compiled<linear::kernel<__half, __half, wide, true>>(d) &&
         hopper::tensor_map_encoder();
}

static int run_candidate(void *arg, int i) {
  crk_gemm_job *j = (crk_gemm_job *)arg;
  if (i == LIBRARY) {
    int rc = crk_gemm_library(j->d, &j->p);
    return rc == CRK_NOT_TAKEN ? (int)CR_EUNSUPPORTED : rc;
  }
  return j->p.dtype == CR_F16
             ? linear::launch<__half, __half, wide, true>(j->d, &j->p)
             : linear::launch<__nv_bfloat16, __nv_bfloat16, wide, true>(j->d, &j->p);
}

static void key_text(const crk_gemm *p, char *text) {
  snprintf(text, CRK_ALGORITHM_KEY + 1,
           "cublaslt %zu rows 1 %s %lldx%lldx%lld lines %lld %lld %lld %lld bias %d residual %d in "
           "place %d",
           cublasLtGetVersion(), cr_dtype_name(p->dtype), (long long)p->m, (long long)p->k,
           (long long)p->n, (long long)p->a.row_step, (long long)p->b.column_step,
           (long long)p->out.row_step, (long long)(p->residual.p ? p->residual.row_step : 0),
           p->bias != NULL, p->residual.p != NULL, p->residual.p == p->out.p);
}

static int choose(crk_device *d, const crk_gemm *p) {
  int forced = crk_switch_value(CRK_SWITCH_LINEAR_OWN);
  if (forced >= 0) return forced;
  if (!d->search || !crk_libraries_wanted()) return LIBRARY;
  char text[CRK_ALGORITHM_KEY + 1];
  key_text(p, text);
  int i = crk_gemm_autotune(d, p, text, CANDIDATES, LIBRARY, run_candidate);
  return i < 0 ? LIBRARY : i;
}

int crk_gemm_fused(crk_device *d, const crk_gemm *p) {
  crk_gemm_job j = {d, with_steps(p)};
  if (!fits(d, &j.p)) return crk_gemm_library(d, p);
  int i = choose(d, &j.p);
  if (d->fault[0]) return CR_EDEVICE;
  return i == LIBRARY ? crk_gemm_library(d, p) : run_candidate(&j, i);
}
