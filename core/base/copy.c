/* Copying and converting. Unlike the other operations (core/ops) these belong to the base, since
 * backends and file readers also use them to make tensors dense. */
#include "base/backend.h"

CR_EXPORT int cr_copy(cr_tensor *out, const cr_tensor *x) {
  if (cr__check_interrupt("copy")) return CR_EINTERRUPT;
  CR_TRY(cr__alive("copy", x));
  bool fresh = out->storage == NULL;
  CR_TRY(cr__out("copy", out, x->rank, x->shape, fresh ? x->dtype : out->dtype,
                 fresh ? x->device : out->device));
  /* If one of the two tensors is on a GPU, its backend does the copy. */
  int32_t device = out->device != CR_CPU ? out->device : x->device;
  return CR_BACKEND("copy", device, copy, out, x);
}

CR_EXPORT int cr_cast(cr_tensor *out, const cr_tensor *x, int32_t dtype) {
  if (cr__check_interrupt("cast")) return CR_EINTERRUPT;
  CR_TRY(cr__alive("cast", x));
  if (dtype < 0 || dtype >= CR_DTYPES) {
    return cr__fail(CR_EINVAL, "cast: there is no dtype %d", dtype);
  }
  CR_TRY(cr__out("cast", out, x->rank, x->shape, dtype, x->device));
  return CR_BACKEND("cast", x->device, copy, out, x);
}

CR_EXPORT const cr_tensor *cr__dense(const cr_tensor *x, int32_t dtype, cr_tensor *temp) {
  if (x->dtype == dtype && cr_is_contiguous(x)) return x;
  return cr_cast(temp, x, dtype) < 0 ? NULL : temp;
}
