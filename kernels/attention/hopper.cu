/* Flash attention with wgmma on a Hopper, for the head sizes where it is faster than the mma.sync
 * kernel (flash_small.cu). */
#include "attention/flash_hopper.h"
#include "attention/flash_sizes.h"

template <typename T, typename C> static int launch(crk_device *d, const crk_attention *a) {
  return hopper::compiled<flash::attention_hopper_kernel<T, C>>(d)
             ? flash::hopper_launch(d, a, flash::attention_hopper_kernel<T, C>, C::ROWS, C::THREADS,
                                    C::BYTES)
             : 0;
}

/* Also 0 where there is little to overlap: there the mma.sync kernel's smaller blocks are faster.
 */
template <typename T> static int choose(crk_device *d, const crk_attention *a) {
  using flash::hopper_tile; /* D, GROUPS, KEYS, STAGES, BLOCKS, POLY */
  if (a->S <= 64 || a->T <= 64) return 0;
  if (a->d == 40) return launch<T, hopper_tile<40, 4, 128, 3, 1, 0>>(d, a);
  if (a->d == 64) return launch<T, hopper_tile<64, 3, 128, 3, 1, 0>>(d, a);
  if (a->d == 80 && a->T > 256) return launch<T, hopper_tile<80, 3, 64, 4, 1, 2>>(d, a);
  return 0;
}

int crk_flash_hopper(crk_device *d, const crk_attention *a) {
  if (a->d == 512) return crk_flash_hopper_wide(d, a);
  return a->dtype == CR_F16 ? choose<__half>(d, a) : choose<__nv_bfloat16>(d, a);
}
