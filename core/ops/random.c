/* The public random tensors: checks; the drawing is the backend's. */
#include "base/backend.h"
#include "base/generator.h"

static int random_tensor(const char *name, cr_tensor *out, int32_t rank, const int32_t *shape,
                         int32_t dtype, int32_t device, cr_generator *g, bool normal) {
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  if (g == NULL) return cr__fail(CR_EINVAL, "%s: no generator given", name);
  if (dtype < 0 || dtype >= CR_DTYPES || !cr__is_float(dtype)) {
    return cr__fail(CR_EINVAL, "%s: needs a float dtype, got %s", name, cr_dtype_name(dtype));
  }
  CR_TRY(cr__out(name, out, rank, shape, dtype, device));
  if (device != CR_CPU && g->kind == CR_RNG_TORCH_CPU) { /* a sequential generator stays here */
    cr_tensor drawn = {0};
    CR_TRY(cr_empty(&drawn, rank, shape, dtype, CR_CPU));
    int rc = normal ? CR_BACKEND(name, CR_CPU, randn, &drawn, g)
                    : CR_BACKEND(name, CR_CPU, rand, &drawn, g);
    if (rc >= 0) rc = cr_copy(out, &drawn);
    cr_free(&drawn);
    return rc;
  }
  if (normal) return CR_BACKEND(name, device, randn, out, g);
  return CR_BACKEND(name, device, rand, out, g);
}

CR_EXPORT int cr_randn(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
                       int32_t device, cr_generator *g) {
  return random_tensor("randn", out, rank, shape, dtype, device, g, true);
}

CR_EXPORT int cr_rand(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
                      int32_t device, cr_generator *g) {
  return random_tensor("rand", out, rank, shape, dtype, device, g, false);
}
