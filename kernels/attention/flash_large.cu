/* Flash attention with heads of more than 80: with more of O in registers, warps take 16 queries
 * (from 192 on), and read the queries from shared memory in every step where they have no registers
 * for them. A head of 512 (the VAE's middle) is computed in two halves of its columns, each with
 * all scores: a third more work, but no exchange between warps. Cards with less shared memory get a
 * smaller tile. */
#include "attention/flash.h"
#include "attention/flash_sizes.h"

/* size, D, DV, M, WARPS, KEYS, STAGES, Q_REGS, BLOCKS */
CRK_FLASH_SIZE(96, 96, 96, 2, 4, 32, 2, true, 2)
CRK_FLASH_SIZE(128, 128, 128, 2, 4, 32, 2, false, 2)
CRK_FLASH_SIZE(192, 192, 192, 1, 4, 32, 2, true, 2)
CRK_FLASH_SIZE(256, 256, 256, 1, 4, 32, 2, false, 2)

/* Up to 64 queries a single block of 16-query warps does all of them. */
typedef flash::tile<160, 160, 2, 4, 32, 2, false, 2> many;
typedef flash::tile<160, 160, 1, 4, 32, 2, true, 3> few;

template <typename T> static int launch_160(crk_device *d, const crk_attention *a) {
  return a->T > few::ROWS ? flash::launch<T, many>(d, a) : flash::launch<T, few>(d, a);
}

int crk_flash_f16_160(crk_device *d, const crk_attention *a) { return launch_160<__half>(d, a); }
int crk_flash_bf16_160(crk_device *d, const crk_attention *a) {
  return launch_160<__nv_bfloat16>(d, a);
}

typedef flash::tile<512, 256, 1, 4, 32, 2, false, 1> wide;
typedef flash::tile<512, 256, 1, 2, 32, 1, false, 1> wide_small;

template <typename T> static int launch_wide(crk_device *d, const crk_attention *a) {
  return wide::BYTES <= d->shared_memory ? flash::launch<T, wide>(d, a)
                                         : flash::launch<T, wide_small>(d, a);
}

int crk_flash_f16_512(crk_device *d, const crk_attention *a) { return launch_wide<__half>(d, a); }
int crk_flash_bf16_512(crk_device *d, const crk_attention *a) {
  return launch_wide<__nv_bfloat16>(d, a);
}
