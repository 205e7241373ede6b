/* Loading and launching code that was compiled at run time, with the runtime's library functions.
 *
 * Invariant: code belongs to one context of its card, and refuses to run in another. */
#include <stdlib.h>

#include "device/cuda.h"

struct cr_code {
  crk_device *d;
  uint64_t context;
  cudaLibrary_t library;
  cudaKernel_t kernel;
};

enum { MOST_ARGUMENTS = 64, SHARED_AT_ONCE = 48 << 10 };

static int code_load(cr_code **out, int32_t device, const void *image, const char *function) {
  crk_device *d = crk_device_get("kernel", device);
  if (!d) return CR_EDEVICE;
  cr_code *c = (cr_code *)calloc(1, sizeof *c);
  if (!c) return cr__fail(CR_ENOMEM, "kernel: out of memory");
  c->d = d;
  c->context = d->context;
  int rc =
      crk_check("kernel", d, cudaLibraryLoadData(&c->library, image, NULL, NULL, 0, NULL, NULL, 0));
  if (rc >= 0) {
    cudaError_t error = cudaLibraryGetKernel(&c->kernel, c->library, function);
    if (error != cudaSuccess) {
      cudaGetLastError();
      rc = cr__fail(CR_EINVAL, "kernel: the code has no __global__ function %s", function);
    }
  }
  if (rc < 0) {
    if (c->library) cudaLibraryUnload(c->library);
    free(c);
    return rc;
  }
  *out = c;
  return CR_OK;
}

static int code_launch(cr_code *c, const int32_t *grid, const int32_t *block, int32_t shared,
                       int32_t n, const cr_argument *arguments) {
  crk_device *d = c->d;
  if (!crk_device_get("kernel", d->device)) return CR_EDEVICE;
  if (c->context != d->context)
    return cr__fail(CR_ECLOSED,
                    "kernel: the card was restarted after this code was loaded; load it again");
  if (n > MOST_ARGUMENTS)
    return cr__fail(CR_EUNSUPPORTED, "kernel: %d arguments are too many; the most is %d", n,
                    MOST_ARGUMENTS);
  void *pointers[MOST_ARGUMENTS], *values[MOST_ARGUMENTS];
  for (int32_t i = 0; i < n; i++) {
    if (arguments[i].tensor) {
      pointers[i] = crk_ptr(arguments[i].tensor);
      values[i] = &pointers[i];
    } else {
      values[i] = (void *)arguments[i].value;
    }
  }
  if (shared > SHARED_AT_ONCE)
    CRK_TRY("kernel", d,
            cudaKernelSetAttributeForDevice(c->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            shared, d->card));
  CRK_TRY("kernel", d,
          cudaLaunchKernel((const void *)c->kernel,
                           dim3((unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]),
                           dim3((unsigned)block[0], (unsigned)block[1], (unsigned)block[2]), values,
                           (size_t)shared, d->stream));
  return crk_launched("kernel", d);
}

static void code_free(cr_code *c) {
  if (c->context == c->d->context) cudaLibraryUnload(c->library);
  free(c);
}

void crk_fill_code(cr__backend *b) {
  b->code_load = code_load;
  b->code_launch = code_launch;
  b->code_free = code_free;
}
