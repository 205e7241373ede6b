/* Max pooling on the CPU. Channels-last rows are compared as a whole, so the loop over channels
 * vectorizes. A nan in a window makes the result nan. */
#include <string.h>

#include "base/vmath.h"
#include "cpu/operands.h"

CR_CLONES static void larger_f32(float *out, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] > out[i] || x[i] != x[i] ? x[i] : out[i];
}

CR_CLONES static void larger_f64(double *out, const double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] > out[i] || x[i] != x[i] ? x[i] : out[i];
}

int cr__cpu_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                       int32_t stride_h, int32_t stride_w, const int32_t *pad) {
  int32_t dtype = x->dtype == CR_F64 ? CR_F64 : CR_F32;
  cr__operands op = {0};
  x = cr__operand(&op, x, dtype);
  cr_tensor *result = cr__result(&op, out, dtype);
  if (op.rc < 0) return cr__operands_end(&op, out, op.rc);
  int64_t h = x->shape[1], w = x->shape[2], c = x->shape[3];
  int64_t oh = result->shape[1], ow = result->shape[2], positions = result->shape[0] * oh * ow;
  int64_t bytes = c * cr_dtype_size(dtype);
  const char *px = cr__ptr(x);
  char *po = cr__ptr(result);
#pragma omp parallel for num_threads(cr_threads()) if (positions * c > 10000)
  for (int64_t i = 0; i < positions; i++) {
    int64_t n = i / (oh * ow);
    int64_t top = i / ow % oh * stride_h - pad[0], left = i % ow * stride_w - pad[2];
    bool first = true;
    for (int64_t y = top < 0 ? 0 : top; y < top + kernel_h && y < h; y++)
      for (int64_t z = left < 0 ? 0 : left; z < left + kernel_w && z < w; z++) {
        void *to = po + i * bytes;
        const void *from = px + ((n * h + y) * w + z) * bytes;
        if (first)
          memcpy(to, from, (size_t)bytes);
        else if (dtype == CR_F64)
          larger_f64(to, from, c);
        else
          larger_f32(to, from, c);
        first = false;
      }
  }
  return cr__operands_end(&op, out, CR_OK);
}
