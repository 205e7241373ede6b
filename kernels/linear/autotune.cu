/* Finds out which of several kernels is fastest for a GEMM: remembered, or timed (linear.h). */
#include "linear/linear.h"

/* Times the candidates. Results go to other memory where they would overwrite the residual.
 * Negative: nothing could be timed. */
static int fastest(crk_device *d, const crk_gemm *p, int n, int library, crk_candidate run) {
  crk_gemm_job j = {d, *p};
  cr_storage *other = NULL;
  if (p->residual.p == p->out.p) {
    other = cr__storage_new(p->m * p->out.row_step * cr_dtype_size(p->dtype), d->device);
    if (!other) return CR_ENOMEM;
    j.p.out.p = other->data;
  }
  run(&j, library);
  int best = d->fault[0] ? (int)CR_EDEVICE : crk_fastest(p->name, d, n, run, &j, 25);
  if (other) cr__release(other);
  return best;
}

int crk_gemm_autotune(crk_device *d, const crk_gemm *p, const char *key, int n, int library,
                      crk_candidate run) {
  int32_t best;
  if (crk_algorithm_find(d, key, &best, sizeof best) && best >= 0 && best < n) return best;
  if (!crk_may_search(d)) return CR_EUNSUPPORTED;
  best = fastest(d, p, n, library, run);
  if (best >= 0) crk_algorithm_remember(d, key, &best, sizeof best);
  return best;
}
