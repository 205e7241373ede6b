/* Products of E4M3 codes by kernels of our own (gemm_hopper.h), on cards that have them. */
#include "device/algorithms.h"
#include "linear/fp8.h"
#include "linear/gemm_hopper.h"

typedef linear::tile<160, 4> wide;
typedef linear::tile<64, 8> narrow;

using linear::e4m3, linear::launch;

template <typename T> static int launch_tile(crk_device *d, const crk_product *p, int tile) {
  if (tile == CRK_FP8_NARROW)
    return d->fp8_fast ? launch<T, e4m3, narrow, true>(d, p) : launch<T, e4m3, narrow, false>(d, p);
  return d->fp8_fast ? launch<T, e4m3, wide, true>(d, p) : launch<T, e4m3, wide, false>(d, p);
}

bool crk_fp8_gemm_takes(const crk_device *d, const crk_product *p) {
  if (d->major != 9 || (p->dtype != CR_F16 && p->dtype != CR_BF16) || p->act != CR_ACT_NONE)
    return false;
  const void *all[] = {p->a.p, p->b.p, p->out.p, p->residual.p};
  for (const void *q : all)
    if ((uintptr_t)q % 16) return false;
  if (p->batch != 1 || p->k % 16 || p->n % 8 || p->m > INT32_MAX / 2 || p->n > INT32_MAX / 2 ||
      p->k > INT32_MAX / 2 ||
      (crk_ceil_div(p->m, 128) + narrow::GROUP) * crk_ceil_div(p->n, 64) > INT32_MAX / 2)
    return false;
  static const bool compiled = hopper::compiled(linear::kernel<__half, e4m3, wide, false>);
  CUtensorMap map;
  return compiled && hopper::describe_boxes(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p->a.p, p->m,
                                            p->k, p->k, 128, 128);
}

int crk_fp8_gemm(crk_device *d, const crk_product *p, int tile) {
  return p->dtype == CR_F16 ? launch_tile<__half>(d, p, tile)
                            : launch_tile<__nv_bfloat16>(d, p, tile);
}
