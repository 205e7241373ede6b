/* The public convolution and pooling: argument checks and the result's shape. The device's table
 * (backend.h) does the work. */
#include <string.h>

#include "base/backend.h"
#include "ops/checks.h"

/* Returns the size of a window operation's result along one axis; <= 0 if the window does not
 * fit. */
static int64_t window_size(int64_t size, int64_t before, int64_t after, int64_t kernel,
                           int64_t dilation, int64_t stride) {
  int64_t room = size + before + after - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

int cr__check_conv2d(const char *name, const cr_tensor *x, const cr_tensor *weight,
                     const cr_tensor *bias, const cr_tensor *residual, const cr_conv *options,
                     int32_t *shape) {
  CR_TRY(cr__same_device(name, x, weight));
  if (x->rank != 4 || weight->rank != 4)
    return cr__fail(CR_EINVAL,
                    "%s: x [N H W C] and weight [O kh kw C/groups] are needed, not %s and %s", name,
                    cr__shape(x), cr__shape(weight));
  const cr_conv *o = options;
  if (o->stride_h < 1 || o->stride_w < 1 || o->dilation_h < 1 || o->dilation_w < 1 || o->groups < 1)
    return cr__fail(CR_EINVAL, "%s: stride, dilation and groups must be at least 1", name);
  for (int i = 0; i < 4; i++)
    if (o->pad[i] < 0) return cr__fail(CR_EINVAL, "%s: the padding must not be negative", name);
  if ((int64_t)weight->shape[3] * o->groups != x->shape[3] || weight->shape[0] % o->groups)
    return cr__fail(CR_EINVAL, "%s: channels differ: %s with weight %s in %d group%s", name,
                    cr__shape(x), cr__shape(weight), o->groups, o->groups == 1 ? "" : "s");
  if (o->act < 0 || o->act >= CR_ACTS)
    return cr__fail(CR_EINVAL, "%s: there is no activation %d", name, o->act);
  CR_TRY(cr__check_vector(name, "bias", bias, x, weight->shape[0]));
  int64_t h =
      window_size(x->shape[1], o->pad[0], o->pad[1], weight->shape[1], o->dilation_h, o->stride_h);
  int64_t w =
      window_size(x->shape[2], o->pad[2], o->pad[3], weight->shape[2], o->dilation_w, o->stride_w);
  if (h < 1 || w < 1 || weight->shape[1] < 1 || weight->shape[2] < 1 || h > INT32_MAX ||
      w > INT32_MAX)
    return cr__fail(CR_EINVAL, "%s: the window of weight %s does not fit into %s", name,
                    cr__shape(weight), cr__shape(x));
  const int32_t made[4] = {x->shape[0], (int32_t)h, (int32_t)w, weight->shape[0]};
  memcpy(shape, made, sizeof made);
  if (residual == NULL) return CR_OK;
  CR_TRY(cr__float(name, residual));
  CR_TRY(cr__same_device(name, x, residual));
  if (residual->rank == 4 && memcmp(residual->shape, made, sizeof made) == 0) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: the residual %s is not [%d %d %d %d]", name, cr__shape(residual),
                  made[0], made[1], made[2], made[3]);
}

CR_EXPORT int cr_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                        const cr_conv *options) {
  static const char name[] = "conv2d";
  if (cr__check_interrupt(name)) return CR_EINTERRUPT;
  CR_TRY(cr__float(name, x));
  CR_TRY(cr__float(name, weight));
  int32_t shape[4];
  CR_TRY(cr__check_conv2d(name, x, weight, bias, residual, options, shape));
  if ((options->act == CR_ACT_PRELU) != (slope != NULL))
    return cr__fail(CR_EINVAL, "conv2d: PReLU, and only PReLU, needs a slope");
  CR_TRY(cr__check_vector(name, "slope", slope, x, weight->shape[0]));
  CR_TRY(cr__out(name, out, 4, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, conv2d, out, x, weight, bias, residual, slope, options);
}

CR_EXPORT int cr_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                            int32_t stride_h, int32_t stride_w, const int32_t *pad) {
  if (cr__check_interrupt("max_pool2d")) return CR_EINTERRUPT;
  CR_TRY(cr__float("max_pool2d", x));
  if (x->rank != 4)
    return cr__fail(CR_EINVAL, "max_pool2d: x [N H W C] is needed, not %s", cr__shape(x));
  if (kernel_h < 1 || kernel_w < 1 || stride_h < 1 || stride_w < 1)
    return cr__fail(CR_EINVAL, "max_pool2d: kernel and stride must be at least 1");
  /* A window that lies entirely in the padding would have no maximum. */
  for (int i = 0; i < 4; i++)
    if (pad[i] < 0 || pad[i] >= (i < 2 ? kernel_h : kernel_w))
      return cr__fail(CR_EINVAL, "max_pool2d: the padding must be smaller than the kernel %d x %d",
                      kernel_h, kernel_w);
  int64_t h = window_size(x->shape[1], pad[0], pad[1], kernel_h, 1, stride_h);
  int64_t w = window_size(x->shape[2], pad[2], pad[3], kernel_w, 1, stride_w);
  if (h < 1 || w < 1 || x->shape[1] < 1 || x->shape[2] < 1)
    return cr__fail(CR_EINVAL, "max_pool2d: a %d x %d window does not fit into %s", kernel_h,
                    kernel_w, cr__shape(x));
  int32_t shape[4] = {x->shape[0], (int32_t)h, (int32_t)w, x->shape[3]};
  CR_TRY(cr__out("max_pool2d", out, 4, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("max_pool2d", x->device, max_pool2d, out, x, kernel_h, kernel_w, stride_h,
                    stride_w, pad);
}
