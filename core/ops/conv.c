/* The public convolution and pooling: what is asked of the arguments, and the result's shape. The
 * work itself is the device's (backend.h). */
#include "base/backend.h"

/* Size of a window operation's result along one axis; <= 0 if the window does not fit. */
static int64_t window_size(int64_t size, int64_t before, int64_t after, int64_t kernel,
                           int64_t dilation, int64_t stride) {
  int64_t room = size + before + after - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

static int check_vector(const char *what, const cr_tensor *t, const cr_tensor *x,
                        const cr_tensor *weight) {
  if (t == NULL) return CR_OK;
  CR_TRY(cr__float("conv2d", t));
  CR_TRY(cr__same_device("conv2d", x, t));
  if (t->rank == 1 && t->shape[0] == weight->shape[0]) return CR_OK;
  return cr__fail(CR_EINVAL, "conv2d: the %s %s does not fit weight %s", what, cr__shape(t),
                  cr__shape(weight));
}

CR_EXPORT int cr_conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                        const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                        const cr_conv *options) {
  if (cr__check_interrupt("conv2d")) return CR_EINTERRUPT;
  CR_TRY(cr__float("conv2d", x));
  CR_TRY(cr__float("conv2d", weight));
  CR_TRY(cr__same_device("conv2d", x, weight));
  if (x->rank != 4 || weight->rank != 4)
    return cr__fail(CR_EINVAL,
                    "conv2d: x [N H W C] and weight [O kh kw C/groups] are needed, not %s and %s",
                    cr__shape(x), cr__shape(weight));
  const cr_conv *o = options;
  if (o->stride_h < 1 || o->stride_w < 1 || o->dilation_h < 1 || o->dilation_w < 1 || o->groups < 1)
    return cr__fail(CR_EINVAL, "conv2d: stride, dilation and groups must be at least 1");
  for (int i = 0; i < 4; i++)
    if (o->pad[i] < 0) return cr__fail(CR_EINVAL, "conv2d: the padding must not be negative");
  if ((int64_t)weight->shape[3] * o->groups != x->shape[3] || weight->shape[0] % o->groups)
    return cr__fail(CR_EINVAL, "conv2d: channels differ: %s with weight %s in %d group%s",
                    cr__shape(x), cr__shape(weight), o->groups, o->groups == 1 ? "" : "s");
  if (o->act < 0 || o->act >= CR_ACTS)
    return cr__fail(CR_EINVAL, "conv2d: there is no activation %d", o->act);
  if ((o->act == CR_ACT_PRELU) != (slope != NULL))
    return cr__fail(CR_EINVAL, "conv2d: PReLU, and only PReLU, needs a slope");
  CR_TRY(check_vector("bias", bias, x, weight));
  CR_TRY(check_vector("slope", slope, x, weight));
  int64_t h =
      window_size(x->shape[1], o->pad[0], o->pad[1], weight->shape[1], o->dilation_h, o->stride_h);
  int64_t w =
      window_size(x->shape[2], o->pad[2], o->pad[3], weight->shape[2], o->dilation_w, o->stride_w);
  if (h < 1 || w < 1 || weight->shape[1] < 1 || weight->shape[2] < 1 || h > INT32_MAX ||
      w > INT32_MAX)
    return cr__fail(CR_EINVAL, "conv2d: the window of weight %s does not fit into %s",
                    cr__shape(weight), cr__shape(x));
  int32_t shape[4] = {x->shape[0], (int32_t)h, (int32_t)w, weight->shape[0]};
  if (residual) {
    CR_TRY(cr__float("conv2d", residual));
    CR_TRY(cr__same_device("conv2d", x, residual));
    bool ok = residual->rank == 4;
    for (int i = 0; ok && i < 4; i++) ok = residual->shape[i] == shape[i];
    if (!ok)
      return cr__fail(CR_EINVAL, "conv2d: the residual %s is not [%d %d %d %d]",
                      cr__shape(residual), shape[0], shape[1], shape[2], shape[3]);
  }
  CR_TRY(cr__out("conv2d", out, 4, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("conv2d", x->device, conv2d, out, x, weight, bias, residual, slope, options);
}

CR_EXPORT int cr_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                            int32_t stride_h, int32_t stride_w, const int32_t *pad) {
  if (cr__check_interrupt("max_pool2d")) return CR_EINTERRUPT;
  CR_TRY(cr__float("max_pool2d", x));
  if (x->rank != 4)
    return cr__fail(CR_EINVAL, "max_pool2d: x [N H W C] is needed, not %s", cr__shape(x));
  if (kernel_h < 1 || kernel_w < 1 || stride_h < 1 || stride_w < 1)
    return cr__fail(CR_EINVAL, "max_pool2d: kernel and stride must be at least 1");
  /* A window that lies in the padding altogether would have no maximum. */
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
