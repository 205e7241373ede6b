/* The table of functions through which public operations reach a device.
 *
 * A public operation (a file of core/ops) checks its arguments, makes `out` by cr__out, gets the
 * table from cr__backend_for(name, device) and calls one entry. An entry may therefore rely on
 * these invariants: every tensor is alive and on the table's device; dtypes, shapes and options are
 * those that crescent.h allows; `out` exists with the result's shape and dtype, and with any
 * strides. Nobody checks the strides of inputs, so an entry must accept all of them, and sizes of
 * 0. An entry returns a value >= 0, or a CR_E* code with the message set. It checks for
 * interruption only if it runs long, since the public operation has checked on entry.
 *
 * Each field corresponds to the function of crescent.h with the same name. */
#ifndef CR_BACKEND_H
#define CR_BACKEND_H

#include "base/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cr__backend {
  const char *name; /* "CPU", "CUDA" */

  /* The device itself; these are NULL in the CPU's table. Memory is stream-ordered: a freed block
   * may be reused at once by the stream that used it last. */
  int (*memory_new)(cr_storage *s, int64_t bytes); /* sets s->data and s->allocated */
  void (*memory_free)(cr_storage *s);              /* any thread */
  int (*memory_get)(int32_t device, cr_memory *out);
  int (*memory_reset_peak)(int32_t device);
  int (*memory_trim)(int32_t device);
  int (*memory_limit)(int32_t device, int64_t bytes);
  int32_t (*memory_tags)(int32_t device, cr_memory_tag *out, int32_t n);
  int32_t (*device_count)(void);
  int (*device_info)(int32_t device, cr_device_info *out);
  int (*device_option)(int32_t device, const char *name, int64_t *value, int32_t set);
  int (*device_synchronize)(int32_t device);
  int32_t (*device_stream)(int32_t stream);
  int64_t (*device_record)(int32_t device);
  int (*device_reset)(int32_t device);
  int (*graph_begin)(int32_t device);
  int (*graph_end)(int32_t device, cr_graph **out);
  int (*graph_abandon)(int32_t device);
  int (*graph_rehearse)(int32_t device, int32_t on);
  int (*graph_launch)(cr_graph *g);
  int64_t (*graph_size)(const cr_graph *g);
  void (*graph_free)(cr_graph *g);

  /* Kernels compiled at run time. */
  int (*code_load)(cr_code **out, int32_t device, const void *image, const char *function);
  int (*code_launch)(cr_code *c, const int32_t *grid, const int32_t *block, int32_t shared,
                     int32_t n, const cr_argument *arguments);
  void (*code_free)(cr_code *c);

  /* Moving and converting data. copy converts to out's dtype; one of the tensors may be on the
   * CPU. */
  int (*copy)(cr_tensor *out, const cr_tensor *x);
  int (*fill)(cr_tensor *t, double value);
  int (*arange)(cr_tensor *out, double start, double step);
  int (*cat)(cr_tensor *out, int32_t n, const cr_tensor *const *xs, int32_t dim);
  /* The index has x's rank and may have strides of 0. An index that came from a CPU is in range. */
  int (*gather)(cr_tensor *out, const cr_tensor *x, int32_t dim, const cr_tensor *index);
  int (*scatter)(cr_tensor *t, int32_t dim, const cr_tensor *index, const cr_tensor *x,
                 int32_t add);
  int (*nonzero)(cr_tensor *out, const cr_tensor *x, int32_t flat); /* allocates `out` */
  int (*pad)(cr_tensor *out, const cr_tensor *x, const int32_t *before, double value);

  /* Elementwise operations. The inputs of binary and where have their own shapes; the entry
   * broadcasts them to out's. */
  int (*unary)(cr_tensor *out, int32_t op, const cr_tensor *x);
  int (*binary)(cr_tensor *out, int32_t op, const cr_tensor *a, const cr_tensor *b);
  int (*binary_scalar)(cr_tensor *out, int32_t op, const cr_tensor *a, double b, int32_t reversed);
  int (*clamp)(cr_tensor *out, const cr_tensor *x, double low, double high);
  int (*lincomb)(cr_tensor *out, int32_t n, const cr_tensor *const *xs, const double *coefficients);
  int (*where)(cr_tensor *out, const cr_tensor *condition, const cr_tensor *a, const cr_tensor *b);

  /* Reductions. dim_mask has at least one bit, unless x is a scalar. */
  int (*reduce)(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask, int32_t keep);
  /* Along the last dimension, which exists and is not empty. */
  int (*scan)(cr_tensor *out, const cr_tensor *x, int32_t product);
  int (*sort)(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending);
  int (*topk)(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k, int32_t largest);

  /* Matrix operations. scale is positive. */
  int (*matmul)(cr_tensor *out, const cr_tensor *a, const cr_tensor *b);
  int (*linear)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
                const cr_tensor *residual, int32_t act);
  int (*attention)(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                   int32_t heads, double scale, const cr_tensor *mask);
  int (*geglu)(cr_tensor *out, const cr_tensor *x);
  /* NULL: the caller runs linear, then geglu. */
  int (*linear_geglu)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                      const cr_tensor *bias);
  int (*softmax)(cr_tensor *out, const cr_tensor *x);

  /* Convolutions and pooling. */
  int (*conv2d)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
                const cr_tensor *residual, const cr_tensor *slope, const cr_conv *options);
  int (*max_pool2d)(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                    int32_t stride_h, int32_t stride_w, const int32_t *pad);

  /* Normalization. weight and bias may be NULL where crescent.h allows it. */
  int (*group_norm)(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                    const cr_tensor *bias, double eps, int32_t silu, const cr_tensor *bias_before);
  int (*layer_norm)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                    const cr_tensor *bias, double eps, const cr_tensor *after);

  /* Diffusion. noise may be NULL. */
  int (*timestep_embedding)(cr_tensor *out, const cr_tensor *t);
  int (*posterior_sample)(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                          const cr_tensor *noise, double scale);

  /* Images. */
  int (*resize)(cr_tensor *out, const cr_tensor *x, int32_t method);
  int (*pixel_shuffle)(cr_tensor *out, const cr_tensor *x, const cr_tensor *base, cr_tensor *flaw);
  int (*warp_affine)(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left, int32_t top,
                     double fill);
  int (*warp_bicubic)(cr_tensor *out, const cr_tensor *x, const double *m, int32_t left,
                      int32_t top);
  int (*grid_sample)(cr_tensor *out, const cr_tensor *x, const float *theta, double fill);
  int (*warp_fixed)(cr_tensor *out, const cr_tensor *x, const double *m);
  int (*erode)(cr_tensor *out, const cr_tensor *x, int32_t before, int32_t after);
  int (*gaussian_blur)(cr_tensor *out, const cr_tensor *x, int32_t size, double sigma);
  int (*blend)(cr_tensor *out, const cr_tensor *frame, const cr_tensor *face,
               const cr_tensor *weight);
  int (*cut_square)(cr_tensor *out, const cr_tensor *x, const double *square, double scale,
                    double shift);
  int (*yuv_to_rgb)(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);
  int (*rgb_to_yuv)(cr_tensor *out, const cr_tensor *x, const cr_yuv *format);

  /* Random numbers. */
  int (*randn)(cr_tensor *out, cr_generator *g);
  int (*rand)(cr_tensor *out, cr_generator *g);

  /* Quantized tensors. Codes, scales and divisors are dense, and weights have K >= 1. scale and
   * divisor may be NULL, but not both where codes are made. `out` and codes have the dtype that the
   * caller asked for. A fused entry that makes codes may be NULL: the caller then runs the plain
   * operation and `quantize`. */
  int (*quantize)(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, const cr_tensor *divisor);
  int (*dequantize)(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                    const cr_tensor *divisor);
  int (*quant_geglu)(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                     const cr_tensor *divisor);
  int (*quant_layer_norm)(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                          const cr_tensor *weight, const cr_tensor *bias, double eps,
                          const cr_tensor *after, const cr_tensor *divisor);
  int (*quant_group_norm)(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t groups,
                          const cr_tensor *weight, const cr_tensor *bias, double eps, int32_t silu,
                          const cr_tensor *bias_before, const cr_tensor *divisor);
  int (*quant_linear)(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                      const cr_tensor *weight, const cr_tensor *weight_scale, const cr_tensor *bias,
                      const cr_tensor *residual, int32_t act);
  int (*quant_conv2d)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                      const cr_tensor *weight_scale, const cr_tensor *bias,
                      const cr_tensor *residual, const cr_conv *options);
  /* These may be NULL, or return CR_EUNSUPPORTED before doing anything: the caller then runs the
   * operations that they fuse. quant_attention: codes without a scale may be strided.
   * quant_linear_geglu: divisor is NULL unless out holds codes; dtype is that of the intermediate
   * result. */
  int (*quant_attention)(cr_tensor *codes, cr_tensor *scale, const cr_tensor *q, const cr_tensor *k,
                         const cr_tensor *v, int32_t heads, double attention_scale,
                         const cr_tensor *mask, const cr_tensor *divisor);
  int (*quant_linear_geglu)(cr_tensor *out, const cr_tensor *x, const cr_tensor *x_scale,
                            const cr_tensor *weight, const cr_tensor *weight_scale,
                            const cr_tensor *bias, const cr_tensor *divisor, int32_t dtype);
  int (*quant_upsample_conv2d)(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                               const cr_tensor *weight_scale, const cr_tensor *bias);
} cr__backend;

/* Returns the table of a device, or NULL with the message set, when the caller returns CR_EDEVICE.
 * The first call for a GPU loads crescent_cuda.so. A field is NULL if the device lacks the
 * operation: CR_BACKEND checks that. */
const cr__backend *cr__backend_for(const char *name, int32_t device);
/* Set the table of the CPU and of all GPUs. Each is called once, when the library with the table is
 * loaded. */
void cr__backend_set_cpu(const cr__backend *backend);
void cr__backend_set_cuda(const cr__backend *backend);
/* Loads crescent_cuda.so and the libraries that it needs, once. Returns CR_EDEVICE with the message
 * "NAME: reason" if that fails (core/base/cuda_load.c). */
int cr__cuda_load(const char *name);
/* Fails with a message that the device's backend lacks the operation, and returns
 * CR_EUNSUPPORTED. */
int cr__backend_lacks(const char *name, int32_t device);

/* Calls one entry; the value is the call's result:
 *   return CR_BACKEND("matmul", a->device, matmul, out, a, b); */
#define CR_BACKEND(op_name, device_, field, ...)                                                   \
  (cr__backend_for((op_name), (device_)) == NULL ? CR_EDEVICE                                      \
   : cr__backend_for((op_name), (device_))->field == NULL                                          \
       ? cr__backend_lacks((op_name), (device_))                                                   \
       : cr__backend_for((op_name), (device_))->field(__VA_ARGS__))

/* Fails with "NAME: the tensors are on different devices" unless both are on the same one. b may be
 * NULL. */
int cr__same_device(const char *name, const cr_tensor *a, const cr_tensor *b);

#ifdef __cplusplus
}
#endif

#endif
