/* Flash attention by Hopper's own products, for the head sizes where it is faster than the plain
 * tensor-core kernel (attention_flash_small.cu). */
#include <stdlib.h>
#include <string.h>

#include "attention_flash_sizes.h"
#include "attention_hopper_next.h"

template <typename T, typename C> static int launch(crk_device *d, const crk_attention *a) {
  static const bool compiled = flash::hopper_compiled(flash::attention_hopper_kernel<T, C>);
  return compiled ? flash::hopper_launch(d, a, flash::attention_hopper_kernel<T, C>, C::ROWS,
                                         C::THREADS, C::BYTES)
                  : 0;
}

template <typename T, typename C> static int launch_next(crk_device *d, const crk_attention *a) {
  return flash::hopper_launch(d, a, flash::attention_hopper_next_kernel<T, C>, C::ROWS, C::THREADS,
                              C::BYTES);
}

template <typename T> static int choose(crk_device *d, const crk_attention *a) {
  if (a->S <= 64) return 0; /* nothing to overlap: the plain kernel's smaller blocks win */
  /*                                  D, GROUPS, KEYS, BLOCKS, POLY */
  const char *choice = getenv("CR_ATTENTION");
  if (choice && strcmp(choice, "next") == 0) {
    if (a->d == 40) return launch_next<T, flash::hopper_next_tile<40, 4, 128, 1, 4>>(d, a);
    if (a->d == 64) return launch_next<T, flash::hopper_next_tile<64, 3, 64, 1, 2>>(d, a);
    if (a->d == 80) return launch_next<T, flash::hopper_next_tile<80, 3, 64, 1, 0>>(d, a);
  }
  switch (a->d) {
  case 40:
    return launch<T, flash::hopper_tile<40, 4, 128, 1, 4>>(d, a);
  case 64:
    return launch<T, flash::hopper_tile<64, 3, 64, 1, 2>>(d, a);
  default:
    return 0;
  }
}

int crk_flash_hopper(crk_device *d, const crk_attention *a) {
  if (a->d == 512) return crk_flash_hopper_wide(d, a);
  return a->dtype == CR_F16 ? choose<__half>(d, a) : choose<__nv_bfloat16>(d, a);
}
