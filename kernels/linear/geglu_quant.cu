/* quant_linear_geglu of the table: a GEMM of codes whose columns are values and gates, with GEGLU
 * in its epilogue, by the kernel of geglu_quant_hopper.h where that takes it. */
#include "device/codes.h"
#include "linear/geglu_quant_hopper.h"
#include "linear/linear.h"

namespace {

typedef struct operands {
  cr_tensor *out;
  const cr_tensor *x, *x_scale, *weight, *weight_scale, *bias, *divisor;
} operands;

const float *floats(const cr_tensor *t) { return t ? (const float *)crk_ptr(t) : NULL; }

template <typename A, typename T> int run(crk_device *d, const operands *o) {
  geglu_quant::job<A, T> j = {};
  const bool codes = o->divisor != NULL;
  j.x = (const A *)crk_ptr(o->x), j.w = (const A *)crk_ptr(o->weight);
  j.bias = o->bias ? (const T *)crk_ptr(o->bias) : NULL;
  j.out = crk_ptr(o->out);
  j.out_codes = codes ? o->out->dtype : 0;
  j.s.x_scale = floats(o->x_scale), j.s.w_scale = floats(o->weight_scale);
  j.s.divisor = floats(o->divisor);
  j.s.inner = o->weight->shape[1];
  j.s.width = o->weight->shape[0] / 2;
  j.s.rows = (int)(cr_numel(o->x) / j.s.inner);
  return codes ? geglu_quant::launch<A, T, true>(d, j) : geglu_quant::launch<A, T, false>(d, j);
}

template <typename T> int run_codes(crk_device *d, const operands *o) {
  return o->x->dtype == CR_I8 ? run<int8_t, T>(d, o) : run<uint8_t, T>(d, o);
}

bool takes(const crk_device *d, const operands *o, int32_t dtype) {
  if (d->major != 9 || !(d->fusion & CRK_FUSE_LINEAR_GEGLU) ||
      (dtype != CR_F16 && dtype != CR_BF16))
    return false;
  const cr_tensor *all[] = {o->out, o->x, o->weight};
  for (const cr_tensor *t : all)
    if (!cr_is_contiguous(t) || (uintptr_t)crk_ptr(t) % 16) return false;
  if (o->bias && (o->bias->dtype != dtype || !cr_is_contiguous(o->bias))) return false;
  int64_t inner = o->weight->shape[1], width = o->weight->shape[0] / 2;
  if (inner % 16 || width % (o->divisor ? 16 : 8) || cr_numel(o->x) / inner > INT32_MAX / 2)
    return false;
  return hopper::compiled<geglu_quant::kernel<int8_t, __half, true>>(d) &&
         hopper::tensor_map_encoder();
}

/* E4M3's sums keep the tensor cores' precision here, as with the option fp8_fast. */
int quant_linear_geglu(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                       const cr_tensor *weight, const cr_tensor *weight_scale,
                       const cr_tensor *bias, const cr_tensor *divisor, int32_t dtype) {
  CRK_DEVICE(d, "quant_linear_geglu", x);
  operands o = {out, x, x_scale, weight, weight_scale, bias, divisor};
  if (crk_is_int4(weight, weight_scale) || !takes(d, &o, dtype)) return CR_EUNSUPPORTED;
  return dtype == CR_F16 ? run_codes<__half>(d, &o) : run_codes<__nv_bfloat16>(d, &o);
}

} // namespace

void crk_fill_geglu_quant(cr__backend *b) { b->quant_linear_geglu = quant_linear_geglu; }
