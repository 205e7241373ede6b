/* Flash attention with heads of up to 80: 32 queries a warp, which halves the reads of shared
 * memory for each mma, and the queries in registers. Head size 40 is that of spatial attention at
 * 64x64 latents, nearly all of the UNet's attention: 16 warps run on a multiprocessor (128
 * registers), so that some compute exponentials while others multiply. */
#include "attention/flash.h"
#include "attention/flash_sizes.h"

/* size, D, DV, M, WARPS, KEYS, STAGES, Q_REGS, BLOCKS */
CRK_FLASH_SIZE(16, 16, 16, 2, 8, 64, 2, true, 2)
CRK_FLASH_SIZE(32, 32, 32, 2, 8, 64, 2, true, 2)
CRK_FLASH_SIZE(40, 40, 40, 2, 8, 128, 2, true, 2)
CRK_FLASH_SIZE(48, 48, 48, 2, 4, 64, 2, true, 3)
CRK_FLASH_SIZE(64, 64, 64, 2, 4, 64, 2, true, 3)
CRK_FLASH_SIZE(80, 80, 80, 2, 4, 64, 2, false, 3)
