/* Flash attention by Hopper's own products, for the head sizes where it is faster than the plain
 * tensor-core kernel (attention_flash_small.cu). */
#include "attention_flash_sizes.h"
#include "attention_hopper.h"

/* Whether the kernel is there for this card: built for sm_90 without the `a`, or for another card,
 * it is empty, and an empty kernel has few registers. */
template <typename K> static bool compiled(K kernel) {
  cudaFuncAttributes attributes;
  bool ok = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!ok) cudaGetLastError();
  return ok && attributes.numRegs > 64;
}

template <typename T, typename C> static int launch(crk_device *d, const crk_attention *a) {
  auto kernel = flash::attention_hopper_kernel<T, C>;
  static const bool there = compiled(kernel);
  if (!there) return 0;
  int tiles = (int)crk_ceil_div(a->T, C::ROWS);
  int64_t blocks = (int64_t)tiles * a->heads * a->batch;
  if (blocks > INT32_MAX) return 0;
  CRK_TRY("attention", d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  kernel<<<(unsigned)blocks, C::THREADS, C::BYTES, d->stream>>>(*a, tiles,
                                                                a->scale * 1.44269504088896340736f);
  CR_TRY(crk_launched("attention", d));
  return 1;
}

template <typename T> static int choose(crk_device *d, const crk_attention *a) {
  /*                             D, GROUPS, KEYS, BLOCKS, POLY */
  switch (a->d) {
  case 40:
    return launch<T, flash::hopper_tile<40, 4, 128, 1, 4>>(d, a);
  case 64:
    return launch<T, flash::hopper_tile<64, 3, 64, 1, 2>>(d, a);
  case 80:
    return launch<T, flash::hopper_tile<80, 3, 64, 1, 0>>(d, a);
  default:
    return 0;
  }
}

int crk_flash_hopper(crk_device *d, const crk_attention *a) {
  return a->dtype == CR_F16 ? choose<__half>(d, a) : choose<__nv_bfloat16>(d, a);
}
