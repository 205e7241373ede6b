/* The head sizes that the flash kernel is compiled for: X(size). A head of another size takes the
 * next larger one. Those of the networks (40, 64, 80, 160, 512) have their own. */
#ifndef CRK_ATTENTION_FLASH_SIZES_H
#define CRK_ATTENTION_FLASH_SIZES_H

#include "attention/attention.h"

#define CRK_FLASH_SIZES(X)                                                                         \
  X(16) X(32) X(40) X(48) X(64) X(80) X(96) X(128) X(160) X(192) X(256) X(512)

typedef int crk_flash_fn(crk_device *d, const crk_attention *a);
#define CRK_FLASH_DECLARE(size) crk_flash_fn crk_flash_f16_##size, crk_flash_bf16_##size;
CRK_FLASH_SIZES(CRK_FLASH_DECLARE)
#undef CRK_FLASH_DECLARE

/* The Hopper kernels, on such a card only: 1 if done, 0 if the kernel does not suit this work, or
 * an error. */
int crk_flash_hopper(crk_device *d, const crk_attention *a);
int crk_flash_hopper_wide(crk_device *d, const crk_attention *a); /* for heads of 512 */

#endif
