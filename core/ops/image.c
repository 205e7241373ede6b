/* The public image operations: argument checks, the result's shape, and the call of the device.
 *
 * Invariant: a backend gets valid arguments only: H, W and C of at least 1, an invertible matrix,
 * and weights of the image's size. These functions never access pixels. */
#include <math.h>

#include "base/backend.h"

/* Fails unless x is [H W C] with H, W, C >= 1, of one of two dtypes (pass the same one twice to
 * allow only one). */
static int check_image(const char *name, const cr_tensor *x, int32_t dtype, int32_t or_dtype) {
  CR_TRY(cr__alive(name, x));
  if (x->rank != 3)
    return cr__fail(CR_EINVAL, "%s: an image [H W C] is needed, not %s", name, cr__shape(x));
  for (int i = 0; i < 3; i++)
    if (x->shape[i] < 1)
      return cr__fail(CR_EINVAL, "%s: the image %s is empty", name, cr__shape(x));
  if (x->dtype == dtype || x->dtype == or_dtype) return CR_OK;
  return cr__fail(CR_EINVAL, "%s: %s%s%s is needed, not %s", name, cr_dtype_name(dtype),
                  dtype == or_dtype ? "" : " or ", dtype == or_dtype ? "" : cr_dtype_name(or_dtype),
                  cr_dtype_name(x->dtype));
}

CR_EXPORT int cr_resize(cr_tensor *out, const cr_tensor *x, int32_t height, int32_t width,
                        int32_t method) {
  CR_TRY(cr__check_interrupt("resize"));
  CR_TRY(cr__alive("resize", x));
  if (x->rank != 3 && x->rank != 4)
    return cr__fail(CR_EINVAL, "resize: an image [H W C] or [N H W C] is needed, not %s",
                    cr__shape(x));
  if (!cr__is_float(x->dtype) && x->dtype != CR_U8)
    return cr__fail(CR_EINVAL, "resize: floats or u8 are needed, not %s", cr_dtype_name(x->dtype));
  if (method < 0 || method >= CR_RESIZE_METHODS)
    return cr__fail(CR_EINVAL, "resize: there is no method %d", method);
  if (height < 1 || width < 1)
    return cr__fail(CR_EINVAL, "resize: the new size %d x %d must be positive", height, width);
  int axis = x->rank - 3;
  if (x->shape[axis] < 1 || x->shape[axis + 1] < 1)
    return cr__fail(CR_EINVAL, "resize: %s has no pixels", cr__shape(x));
  int32_t shape[4] = {x->shape[0], x->shape[1], x->shape[2], x->shape[x->rank - 1]};
  shape[axis] = height;
  shape[axis + 1] = width;
  CR_TRY(cr__out("resize", out, x->rank, shape, x->dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("resize", x->device, resize, out, x, method);
}

CR_EXPORT int cr_pixel_shuffle(cr_tensor *out, const cr_tensor *x, int32_t s, const cr_tensor *base,
                               int32_t dtype, cr_tensor *flaw) {
  CR_TRY(cr__check_interrupt("pixel_shuffle"));
  CR_TRY(cr__float("pixel_shuffle", x));
  if (x->dtype == CR_F64)
    return cr__fail(CR_EUNSUPPORTED, "pixel_shuffle: f32, f16 or bf16 is needed, not f64");
  if (s < 1 || s > 16)
    return cr__fail(CR_EINVAL, "pixel_shuffle: the scale must be 1 to 16, not %d", s);
  if (x->rank != 4 || x->shape[3] < 1 || x->shape[3] % (s * s) || x->shape[3] / (s * s) > 16)
    return cr__fail(CR_EINVAL,
                    "pixel_shuffle: x [N H W C] must have 1 to 16 times %d channels, not %s", s * s,
                    cr__shape(x));
  if (dtype != x->dtype && dtype != CR_F32 && dtype != CR_U8 && dtype != CR_I16)
    return cr__fail(CR_EINVAL, "pixel_shuffle: the result must be %s, f32, u8 or i16, not %s",
                    cr_dtype_name(x->dtype), cr_dtype_name(dtype));
  int64_t height = (int64_t)x->shape[1] * s, width = (int64_t)x->shape[2] * s;
  if (height > INT32_MAX || width > INT32_MAX)
    return cr__fail(CR_EINVAL, "pixel_shuffle: %s is too large for a scale of %d", cr__shape(x), s);
  int32_t shape[4] = {x->shape[0], (int32_t)height, (int32_t)width, x->shape[3] / (s * s)};
  if (base) {
    CR_TRY(cr__float("pixel_shuffle", base));
    CR_TRY(cr__same_device("pixel_shuffle", x, base));
    bool fits = base->rank == 4 && base->shape[0] == x->shape[0] && base->shape[1] == x->shape[1] &&
                base->shape[2] == x->shape[2] && base->shape[3] == shape[3];
    if (!fits)
      return cr__fail(CR_EINVAL, "pixel_shuffle: base %s does not fit %s with a scale of %d",
                      cr__shape(base), cr__shape(x), s);
  }
  if (flaw) {
    CR_TRY(cr__same_device("pixel_shuffle", x, flaw));
    if (flaw->dtype != CR_I32 || cr_numel(flaw) != 1)
      return cr__fail(CR_EINVAL, "pixel_shuffle: flaw must be i32 [1], not %s %s",
                      cr_dtype_name(flaw->dtype), cr__shape(flaw));
  }
  CR_TRY(cr__out("pixel_shuffle", out, 4, shape, dtype, x->device));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("pixel_shuffle", x->device, pixel_shuffle, out, x, base, flaw);
}

static int check_map(const char *name, const double *m, int32_t height, int32_t width) {
  if (height < 1 || width < 1)
    return cr__fail(CR_EINVAL, "%s: the result's size %d x %d must be positive", name, height,
                    width);
  for (int i = 0; i < 6; i++)
    if (!isfinite(m[i])) return cr__fail(CR_EINVAL, "%s: the matrix is not finite", name);
  double det = m[0] * m[4] - m[1] * m[3];
  bool finite = isnormal(det);
  for (int i = 0; i < 6 && finite; i++) finite = fabs(m[i] / det) < 1e100;
  if (!finite)
    return cr__fail(CR_EINVAL, "%s: the matrix [%g %g %g; %g %g %g] has no inverse", name, m[0],
                    m[1], m[2], m[3], m[4], m[5]);
  return CR_OK;
}

CR_EXPORT int cr_warp_affine(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                             int32_t top, int32_t height, int32_t width, double fill,
                             int32_t dtype) {
  CR_TRY(cr__check_interrupt("warp_affine"));
  CR_TRY(check_image("warp_affine", x, CR_U8, CR_F32));
  CR_TRY(check_map("warp_affine", m, height, width));
  if (dtype != CR_U8 && dtype != CR_F32)
    return cr__fail(CR_EINVAL, "warp_affine: the result must be u8 or f32, not %s",
                    cr_dtype_name(dtype));
  int32_t shape[3] = {height, width, x->shape[2]};
  CR_TRY(cr__out("warp_affine", out, 3, shape, dtype, x->device));
  return CR_BACKEND("warp_affine", x->device, warp_affine, out, x, m, left, top, fill);
}

CR_EXPORT int cr_warp_bicubic(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                              int32_t top, int32_t height, int32_t width) {
  CR_TRY(cr__check_interrupt("warp_bicubic"));
  CR_TRY(check_image("warp_bicubic", x, CR_F32, CR_F32));
  CR_TRY(check_map("warp_bicubic", m, height, width));
  int32_t shape[3] = {height, width, x->shape[2]};
  CR_TRY(cr__out("warp_bicubic", out, 3, shape, CR_F32, x->device));
  return CR_BACKEND("warp_bicubic", x->device, warp_bicubic, out, x, m, left, top);
}

CR_EXPORT int cr_grid_sample(cr_tensor *out, const cr_tensor *x, const float *theta, int32_t height,
                             int32_t width, double fill) {
  CR_TRY(cr__check_interrupt("grid_sample"));
  CR_TRY(check_image("grid_sample", x, CR_U8, CR_F32));
  if (height < 2 || width < 2 || x->shape[0] < 2 || x->shape[1] < 2)
    return cr__fail(CR_EINVAL, "grid_sample: images of at least 2x2 are needed, not %s -> [%d %d]",
                    cr__shape(x), height, width);
  const int32_t shape[3] = {height, width, x->shape[2]};
  CR_TRY(cr__out("grid_sample", out, 3, shape, x->dtype, x->device));
  return CR_BACKEND("grid_sample", x->device, grid_sample, out, x, theta, fill);
}

CR_EXPORT int cr_warp_fixed(cr_tensor *out, const cr_tensor *x, const double *m, int32_t height,
                            int32_t width) {
  CR_TRY(cr__check_interrupt("warp_fixed"));
  CR_TRY(check_image("warp_fixed", x, CR_U8, CR_U8));
  CR_TRY(check_map("warp_fixed", m, height, width));
  const int32_t shape[3] = {height, width, x->shape[2]};
  CR_TRY(cr__out("warp_fixed", out, 3, shape, CR_U8, x->device));
  return CR_BACKEND("warp_fixed", x->device, warp_fixed, out, x, m);
}

CR_EXPORT int cr_erode(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after) {
  CR_TRY(cr__check_interrupt("erode"));
  CR_TRY(check_image("erode", x, CR_F32, CR_F32));
  if (before < 0 || after < 0)
    return cr__fail(CR_EINVAL, "erode: the window must not be negative: %d before, %d after",
                    before, after);
  CR_TRY(cr__out("erode", out, 3, x->shape, CR_F32, x->device));
  return CR_BACKEND("erode", x->device, erode, out, x, before, after);
}

CR_EXPORT int cr_gaussian_blur(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma) {
  CR_TRY(cr__check_interrupt("gaussian_blur"));
  CR_TRY(check_image("gaussian_blur", x, CR_F32, CR_F32));
  if (size < 1 || size % 2 == 0 || size > (1 << 24))
    return cr__fail(CR_EINVAL, "gaussian_blur: the size %d is not a positive odd number", size);
  if (!(sigma > 0) || !isfinite(sigma))
    return cr__fail(CR_EINVAL, "gaussian_blur: sigma %g is not positive", sigma);
  CR_TRY(cr__out("gaussian_blur", out, 3, x->shape, CR_F32, x->device));
  return CR_BACKEND("gaussian_blur", x->device, gaussian_blur, out, x, size, sigma);
}

CR_EXPORT int cr_blend(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
                       const cr_tensor *weight) {
  CR_TRY(cr__check_interrupt("blend"));
  CR_TRY(check_image("blend", frame, CR_U8, CR_U8));
  CR_TRY(check_image("blend", face, CR_F32, CR_F32));
  CR_TRY(check_image("blend", weight, CR_F32, CR_F32));
  CR_TRY(cr__same_device("blend", frame, face));
  CR_TRY(cr__same_device("blend", frame, weight));
  for (int i = 0; i < 3; i++)
    if (face->shape[i] != frame->shape[i])
      return cr__fail(CR_EINVAL, "blend: sizes differ: frame %s, face %s", cr__shape(frame),
                      cr__shape(face));
  if (weight->shape[0] != frame->shape[0] || weight->shape[1] != frame->shape[1] ||
      weight->shape[2] != 1)
    return cr__fail(CR_EINVAL, "blend: weight %s does not fit frame %s", cr__shape(weight),
                    cr__shape(frame));
  CR_TRY(cr__out("blend", out, 3, frame->shape, CR_U8, frame->device));
  return CR_BACKEND("blend", frame->device, blend, out, frame, face, weight);
}

CR_EXPORT int cr_cut_square(cr_tensor *out, const cr_tensor *x, const double *square, int32_t size,
                            double scale, double shift) {
  CR_TRY(cr__check_interrupt("cut_square"));
  CR_TRY(check_image("cut_square", x, CR_U8, CR_U8));
  if (x->shape[2] > 4)
    return cr__fail(CR_EUNSUPPORTED, "cut_square: takes at most 4 channels, not %s", cr__shape(x));
  if (size < 1 || size > 8192)
    return cr__fail(CR_EINVAL, "cut_square: the size must be 1 to 8192, not %d", size);
  for (int i = 0; i < 4; i++)
    if (!isfinite(square[i]) || (i == 2 && square[i] <= 0))
      return cr__fail(CR_EINVAL,
                      "cut_square: a square of side %g at (%g, %g), rotated by %g, is not valid",
                      square[2], square[0], square[1], square[3]);
  const int32_t shape[3] = {size, size, x->shape[2]};
  CR_TRY(cr__out("cut_square", out, 3, shape, CR_F32, x->device));
  return CR_BACKEND("cut_square", x->device, cut_square, out, x, square, scale, shift);
}

/* Returns the bytes of the planes, or CR_EINVAL if the layout is not valid. */
static int64_t plane_bytes(const char *name, const cr_yuv *f) {
  if (f->bits != 0)
    return cr__fail(CR_EUNSUPPORTED, "%s: planes of %d-bit values are not handled: only 8 bits are",
                    name, f->bits);
  if (f->width < 8 || f->height < 8 || f->width > 65536 || f->height > 65536 || f->shift_x < 0 ||
      f->shift_x > 1 || f->shift_y < 0 || f->shift_y > 1)
    return cr__fail(CR_EINVAL,
                    "%s: planes of %d x %d pixels with chroma shifts of %d and %d are not valid",
                    name, f->width, f->height, f->shift_x, f->shift_y);
  for (int i = 0; i < 4; i++)
    if (f->matrix[i] < 0 || f->matrix[i] > 0x3ffff)
      return cr__fail(CR_EINVAL,
                      "%s: the matrix has the coefficient %d, which is not within 0 to 262143",
                      name, f->matrix[i]);
  int64_t chroma =
      (int64_t)((f->width + f->shift_x) >> f->shift_x) * ((f->height + f->shift_y) >> f->shift_y);
  return (int64_t)f->width * f->height + 2 * chroma;
}

CR_EXPORT int cr_yuv_to_rgb(cr_tensor *out, const cr_tensor *x, const cr_yuv *format) {
  CR_TRY(cr__check_interrupt("yuv_to_rgb"));
  CR_TRY(cr__alive("yuv_to_rgb", x));
  const cr_yuv *f = format;
  int64_t bytes = plane_bytes("yuv_to_rgb", f);
  if (bytes < 0) return (int)bytes;
  if (x->rank != 1 || x->dtype != CR_U8 || x->shape[0] != bytes)
    return cr__fail(CR_EINVAL, "yuv_to_rgb: planes of %d x %d pixels are u8 [%lld], not %s %s",
                    f->width, f->height, (long long)bytes, cr_dtype_name(x->dtype), cr__shape(x));
  const int32_t shape[3] = {f->height, f->width, 3};
  CR_TRY(cr__out("yuv_to_rgb", out, 3, shape, CR_U8, x->device));
  return CR_BACKEND("yuv_to_rgb", x->device, yuv_to_rgb, out, x, format);
}

CR_EXPORT int cr_rgb_to_yuv(cr_tensor *out, const cr_tensor *x, const cr_yuv *format) {
  CR_TRY(cr__check_interrupt("rgb_to_yuv"));
  CR_TRY(check_image("rgb_to_yuv", x, CR_U8, CR_U8));
  const cr_yuv *f = format;
  int64_t bytes = plane_bytes("rgb_to_yuv", f);
  if (bytes < 0) return (int)bytes;
  if (f->width < 12 || f->height < 12 || f->width % (1 << f->shift_x) ||
      f->height % (1 << f->shift_y) || f->matrix[0] == 0 || f->matrix[1] == 0 || bytes > INT32_MAX)
    return cr__fail(CR_EINVAL, "rgb_to_yuv: planes of %d x %d pixels cannot be made in this format",
                    f->width, f->height);
  int32_t rows = f->height - x->shape[0], columns = f->width - x->shape[1];
  if (x->shape[2] != 3 || rows < 0 || rows > f->shift_y || columns < 0 || columns > f->shift_x)
    return cr__fail(CR_EINVAL, "rgb_to_yuv: an image u8 [%d %d 3] is needed, not %s", f->height,
                    f->width, cr__shape(x));
  const int32_t size = (int32_t)bytes;
  CR_TRY(cr__out("rgb_to_yuv", out, 1, &size, CR_U8, x->device));
  return CR_BACKEND("rgb_to_yuv", x->device, rgb_to_yuv, out, x, format);
}
