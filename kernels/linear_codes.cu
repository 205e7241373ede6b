/* Products of E4M3 codes by kernels of our own (linear_codes.h), on cards that have them. */
#include "algorithms.h"
#include "fp8.h"
#include "linear_codes.h"

typedef codes::tile<160, 4> wide;
typedef codes::tile<64, 8> narrow;

template <typename T, typename C, bool FAST>
static int launch(crk_device *d, const crk_product *p) {
  auto kernel = codes::kernel<T, C, FAST>;
  CRK_TRY(p->name, d,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::BYTES));
  codes::sizes<T> s = {};
  s.x_scale = p->a_scale, s.w_scale = p->b_scale;
  s.bias = (const T *)p->bias;
  s.rows = (int)p->m, s.width = (int)p->n, s.inner = (int)p->k;
  s.row_tiles = (int)crk_ceil_div(p->m, C::ROWS);
  s.column_tiles = (int)crk_ceil_div(p->n, C::COLUMNS);
  s.residual = p->residual.p != NULL;
  const CUtensorMapDataType byte = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                            half = p->dtype == CR_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap x, w, out, residual;
  bool ok = hopper::describe_boxes(&x, byte, 1, p->a.p, p->m, p->k, p->k, 128, C::ROWS) &&
            hopper::describe_boxes(&w, byte, 1, p->b.p, p->n, p->k, p->k, 128, C::COLUMNS) &&
            hopper::describe_boxes(&out, half, 2, p->out.p, p->m, p->n, p->n * 2, C::WIDE, 64);
  residual = out;
  if (ok && s.residual)
    ok = hopper::describe_boxes(&residual, half, 2, p->residual.p, p->m, p->n, p->n * 2, C::WIDE,
                                64);
  if (!ok)
    return cr__fail(CR_EDEVICE, "%s: the driver cannot describe %lld x %lld x %lld", p->name,
                    (long long)p->m, (long long)p->k, (long long)p->n);
  int64_t tiles = (int64_t)s.row_tiles * s.column_tiles;
  int blocks = tiles < d->multiprocessors ? (int)tiles : d->multiprocessors;
  kernel<<<(unsigned)blocks, C::THREADS, C::BYTES, d->stream>>>(x, w, out, residual, s);
  return crk_launched(p->name, d);
}

template <typename T> static int launch_way(crk_device *d, const crk_product *p, int way) {
  if (way == CRK_CODES_NARROW)
    return d->fp8_fast ? launch<T, narrow, true>(d, p) : launch<T, narrow, false>(d, p);
  return d->fp8_fast ? launch<T, wide, true>(d, p) : launch<T, wide, false>(d, p);
}

bool crk_codes_fit(const crk_device *d, const crk_product *p) {
  if (d->major != 9 || (p->dtype != CR_F16 && p->dtype != CR_BF16) || p->act != CR_ACT_NONE)
    return false;
  const void *all[] = {p->a.p, p->b.p, p->out.p, p->residual.p};
  for (const void *q : all)
    if ((uintptr_t)q % 16) return false;
  if (p->batch != 1 || p->k % 16 || p->n % 8 || p->m > INT32_MAX / 2 || p->n > INT32_MAX / 2 ||
      p->k > INT32_MAX / 2 ||
      (crk_ceil_div(p->m, 128) + codes::tile<64, 8>::GROUP) * crk_ceil_div(p->n, 64) >
          INT32_MAX / 2)
    return false;
  static const bool compiled = hopper::compiled(codes::kernel<__half, wide, false>);
  CUtensorMap map;
  return compiled && hopper::describe_boxes(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p->a.p, p->m,
                                            p->k, p->k, 128, 128);
}

int crk_codes_product(crk_device *d, const crk_product *p, int way) {
  return p->dtype == CR_F16 ? launch_way<__half>(d, p, way) : launch_way<__nv_bfloat16>(d, p, way);
}
