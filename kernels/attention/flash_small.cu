/* Flash attention with heads of up to 80: 32 queries a warp, which halves what is read of shared
 * memory per product, and the queries in registers. Head size 40 is spatial attention's at 64x64
 * latents, nearly all of the UNet's attention: 16 warps run on a multiprocessor (128 registers), so
 * that some compute exponentials while others multiply. */
#include "attention/flash.h"
#include "attention/flash_sizes.h"

#define SIZE(size, ...)                                                                            \
  int crk_flash_f16_##size(crk_device *d, const crk_attention *a) {                                \
    return flash::launch<__half, flash::tile<__VA_ARGS__>>(d, a);                                  \
  }                                                                                                \
  int crk_flash_bf16_##size(crk_device *d, const crk_attention *a) {                               \
    return flash::launch<__nv_bfloat16, flash::tile<__VA_ARGS__>>(d, a);                           \
  }

/*   D, DV, M, WARPS, KEYS, STAGES, Q_REGS, BLOCKS */
SIZE(16, 16, 16, 2, 8, 64, 2, true, 2)
SIZE(32, 32, 32, 2, 8, 64, 2, true, 2)
SIZE(40, 40, 40, 2, 8, 128, 2, true, 2)
SIZE(48, 48, 48, 2, 4, 64, 2, true, 3)
SIZE(64, 64, 64, 2, 4, 64, 2, true, 3)
SIZE(80, 80, 80, 2, 4, 64, 2, false, 3)
