/* Which work the flash kernels take, and which of them takes it. The switch CR_ATTENTION=mma
 * disables the Hopper kernel, so that the mma.sync kernel can be tested on a Hopper, too. */
#include "attention/flash_sizes.h"
#include "device/switches.h"

static const struct {
  int32_t size;
  crk_flash_fn *f16, *bf16;
} sizes[] = {
#define ENTRY(size) {size, crk_flash_f16_##size, crk_flash_bf16_##size},
    CRK_FLASH_SIZES(ENTRY)
#undef ENTRY
};

int crk_attention_flash_can(const crk_device *d, const crk_attention *a) {
  (void)d;
  return (a->dtype == CR_F16 || a->dtype == CR_BF16) && !a->mask && a->d == a->dv &&
         a->d % 8 == 0 && (a->d <= 256 || a->d == 512) && crk_attention_aligned(a, 16) &&
         (a->T <= 1 || a->q_row <= INT32_MAX) &&
         (a->S <= 1 ||
          (a->k_row <= INT32_MAX && a->v_row <= INT32_MAX)); /* row steps fit in 32 bits */
}

int crk_attention_flash(crk_device *d, const crk_attention *a) {
  enum { WGMMA, MMA }; /* values of the switch */
  if (d->major == 9 && crk_switch_value(CRK_SWITCH_ATTENTION) != MMA) {
    int rc = crk_flash_hopper(d, a);
    if (rc != 0) return rc < 0 ? rc : CR_OK;
  }
  int i = 0;
  while (sizes[i].size < a->d) i++;
  return (a->dtype == CR_F16 ? sizes[i].f16 : sizes[i].bf16)(d, a);
}
