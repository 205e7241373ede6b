/* The table of functions of each device (backend.h).
 *
 * Invariant: the CPU's table is set while the library is loaded and never changes afterwards, so it
 * can be read without a lock. */
#include "base/backend.h"

static const cr__backend *cpu;
static _Atomic(const cr__backend *) cuda;

CR_EXPORT const cr__backend *cr__backend_for(const char *name, int32_t device) {
  if (device == CR_CPU) return cpu;
  if (device >= CR_CUDA) {
    const cr__backend *b = cuda;
    if (b == NULL && cr__cuda_load(name) == CR_OK) b = cuda;
    return b;
  }
  cr__fail(CR_EDEVICE, "%s: there is no device %d", name, device);
  return NULL;
}

void cr__backend_set_cpu(const cr__backend *backend) { cpu = backend; }

CR_EXPORT void cr__backend_set_cuda(const cr__backend *backend) { cuda = backend; }

CR_EXPORT int cr__backend_lacks(const char *name, int32_t device) {
  const cr__backend *backend = cr__backend_for(name, device);
  return backend ? cr__fail(CR_EUNSUPPORTED, "%s: the %s backend does not have this operation",
                            name, backend->name)
                 : CR_EDEVICE;
}

int cr__same_device(const char *name, const cr_tensor *a, const cr_tensor *b) {
  if (b == NULL || a->device == b->device) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the tensors are on different devices", name);
}
