/* The public random tensors: argument checks. The device's table draws. */
#include "base/backend.h"
#include "base/generator.h"

static int random_tensor(const char *name, cr_tensor *out, int32_t rank, const int32_t *shape,
                         int32_t dtype, int32_t device, cr_generator *g, bool normal) {
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  if (g == NULL) return cr__fail(CR_EINVAL, "%s: a generator is needed", name);
  if (dtype < 0 || dtype >= CR_DTYPES || !cr__is_float(dtype)) {
    return cr__fail(CR_EINVAL, "%s: a float dtype is needed, not %s", name, cr_dtype_name(dtype));
  }
  CR_TRY(cr__out(name, out, rank, shape, dtype, device));
  if (device != CR_CPU &&
      g->kind == CR_RNG_TORCH_CPU) { /* a sequential generator draws on the CPU */
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

CR_EXPORT int cr_generator_skip(cr_generator *g, int64_t n, int32_t dtype) {
  if (n < 0) return cr__fail(CR_EINVAL, "generator: cannot skip %lld numbers", (long long)n);
  if (dtype < 0 || dtype >= CR_DTYPES || !cr__is_float(dtype))
    return cr__fail(CR_EINVAL, "generator: a float dtype is needed, not %s", cr_dtype_name(dtype));
  if (n == 0) return CR_OK;
  if (g->kind != CR_RNG_TORCH_CPU) {
    g->offset += cr__generator_stride(g, n, dtype == CR_F64);
    return CR_OK;
  }
  if (n > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "generator: cannot skip %lld numbers at once", (long long)n);
  cr_tensor drawn = {0};
  int32_t shape[1] = {(int32_t)n};
  int rc = cr_randn(&drawn, 1, shape, dtype, CR_CPU, g);
  cr_free(&drawn);
  return rc;
}

CR_EXPORT int cr_rand(cr_tensor *out, int32_t rank, const int32_t *shape, int32_t dtype,
                      int32_t device, cr_generator *g) {
  return random_tensor("rand", out, rank, shape, dtype, device, g, false);
}
