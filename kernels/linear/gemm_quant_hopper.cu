/* GEMMs of 8-bit codes by our own kernels (gemm_hopper.h), on cards that have them. */
#include "device/algorithms.h"
#include "linear/gemm_hopper.h"
#include "linear/quant.h"

typedef linear::tile<160, 4> wide;
typedef linear::tile<64, 8> narrow;
typedef linear::tile<160, 4, 2> pingpong;

using linear::launch;

template <typename T, typename A, bool FAST>
static int launch_tile(crk_device *d, const crk_gemm *p, int tile) {
  if (tile == CRK_TILE_NARROW) return launch<T, A, narrow, FAST>(d, p);
  if constexpr (FAST)
    if (tile == CRK_TILE_PINGPONG) return launch<T, A, pingpong, true>(d, p);
  return launch<T, A, wide, FAST>(d, p);
}

template <typename T> static int launch_codes(crk_device *d, const crk_gemm *p, int tile) {
  if (p->fp8 == CRK_INT8) return launch_tile<T, int8_t, true>(d, p, tile);
  return d->fp8_fast ? launch_tile<T, uint8_t, true>(d, p, tile)
                     : launch_tile<T, uint8_t, false>(d, p, tile);
}

bool crk_gemm_quant_takes(const crk_device *d, const crk_gemm *p) {
  if (d->major != 9 || (p->dtype != CR_F16 && p->dtype != CR_BF16) || p->act != CR_ACT_NONE)
    return false;
  const void *all[] = {p->a.p, p->b.p, p->out.p, p->residual.p};
  for (const void *q : all)
    if ((uintptr_t)q % 16) return false;
  if (p->batch != 1 || p->k % 16 || p->n % 8 || p->m > INT32_MAX / 2 || p->n > INT32_MAX / 2 ||
      p->k > INT32_MAX / 2 ||
      (crk_ceil_div(p->m, 128) + narrow::GROUP_M) * crk_ceil_div(p->n, 64) > INT32_MAX / 2)
    return false;
  CUtensorMap map;
  return hopper::compiled<linear::kernel<__half, int8_t, wide, true>>(d) &&
         hopper::make_tensor_map(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p->a.p, p->m, p->k, p->k,
                                 128, 128);
}

int crk_gemm_quant(crk_device *d, const crk_gemm *p, int tile) {
  return p->dtype == CR_F16 ? launch_codes<__half>(d, p, tile)
                            : launch_codes<__nv_bfloat16>(d, p, tile);
}
