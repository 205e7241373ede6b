/* Which table of functions serves which device (backend.h).
 *
 * Invariant: the CPU's table is complete before the first cr__backend_for returns, and never
 * changes afterwards, so no lock is needed to read it. */
#include "base/backend.h"

#include <pthread.h>

static cr__backend cpu = {.name = "CPU"};
static _Atomic(const cr__backend *) cuda;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void fill_cpu(void) {
  cr__cpu_matrix_ops(&cpu);
  cr__cpu_elementwise_ops(&cpu);
  cr__cpu_move_ops(&cpu);
  cr__cpu_norm_ops(&cpu);
  cr__cpu_diffusion_ops(&cpu);
  cr__cpu_picture_ops(&cpu);
  cr__cpu_random_ops(&cpu);
  cr__cpu_fp8_ops(&cpu);
}

const cr__backend *cr__backend_for(const char *name, int32_t device) {
  if (device == CR_CPU) {
    pthread_once(&once, fill_cpu);
    return &cpu;
  }
  if (device >= CR_CUDA) {
    const cr__backend *b = cuda;
    if (b == NULL && cr__cuda_load(name) == CR_OK) b = cuda;
    return b;
  }
  cr__fail(CR_EDEVICE, "%s: there is no device %d", name, device);
  return NULL;
}

CR_EXPORT void cr__backend_set_cuda(const cr__backend *backend) { cuda = backend; }

int cr__backend_lacks(const char *name, const cr__backend *backend) {
  return cr__fail(CR_EUNSUPPORTED, "%s: the %s backend does not have this operation", name,
                  backend->name);
}

int cr__same_device(const char *name, const cr_tensor *a, const cr_tensor *b) {
  if (b == NULL || a->device == b->device) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the tensors are on different devices", name);
}
