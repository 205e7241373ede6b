/* Flash attention by Hopper's own products, for the head sizes where it is faster than the plain
 * tensor-core kernel (attention_flash_small.cu). */
#include <stdlib.h>

#include "attention_flash_sizes.h"
#include "attention_hopper.h"

template <typename T, typename C> static int launch(crk_device *d, const crk_attention *a) {
  static const bool compiled = flash::hopper_compiled(flash::attention_hopper_kernel<T, C>);
  return compiled ? flash::hopper_launch(d, a, flash::attention_hopper_kernel<T, C>, C::ROWS,
                                         C::THREADS, C::BYTES)
                  : 0;
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
  const char *wide = getenv("CR_ATTENTION"); /* on request until it has run */
  if (a->d == 512) return wide && wide[0] == 'w' ? crk_flash_hopper_wide(d, a) : 0;
  return a->dtype == CR_F16 ? choose<__half>(d, a) : choose<__nv_bfloat16>(d, a);
}
