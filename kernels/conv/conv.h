/* What the convolutions' files share (conv.cu says how they divide the work).
 *
 * T is always the dtype of x and out; weight, bias, residual and slope have been converted to it
 * before. */
#ifndef CRK_CONV_H
#define CRK_CONV_H

#include "device/cuda.h"

/* One convolution with its epilogue: out = act(conv(x, weight) + bias) + residual. bias, slope and
 * residual may be NULL; weight, bias and slope are dense. If x and weight are int8 codes, the sums
 * are first multiplied by scale [O] (f32). */
typedef struct crk_conv {
  crk_device *d;
  cr_tensor *out;
  const cr_tensor *x, *weight, *bias, *residual, *slope;
  const cr_conv *o;
  const cr_tensor *scale; /* NULL: x and weight are not codes */
} crk_conv;

/* Strides of x (NULL: not wanted), out and residual (0 if there is none), in elements. */
static inline void crk_conv_strides(const crk_conv *c, int64_t *x, int64_t *out,
                                    int64_t *residual) {
  for (int i = 0; i < 4; i++) {
    if (x) x[i] = c->x->stride[i];
    out[i] = c->out->stride[i];
    residual[i] = c->residual ? c->residual->stride[i] : 0;
  }
}

/* Copies the sizes that all of our own kernels need into the fields of a kernel's arguments. */
template <typename P> void crk_conv_sizes(const crk_conv *c, P *p) {
  crk_conv_strides(c, p->sx, p->so, p->sr);
  p->h = c->x->shape[1], p->w = c->x->shape[2];
  p->oh = c->out->shape[1], p->ow = c->out->shape[2];
  p->top = c->o->pad[0], p->left = c->o->pad[2];
  p->act = c->o->act;
}

/* Whether it has a 3x3 window, stride and dilation 1 and one group, in f16 or bf16. */
static inline bool crk_conv_is_dense_3x3(const crk_conv *c) {
  const cr_conv *o = c->o;
  const int32_t *w = c->weight->shape;
  return (c->x->dtype == CR_F16 || c->x->dtype == CR_BF16) && w[1] == 3 && w[2] == 3 &&
         o->groups == 1 && o->stride_h == 1 && o->stride_w == 1 && o->dilation_h == 1 &&
         o->dilation_w == 1;
}

/* Counts tiles of `wide` x `tall` positions of out: across a line, down an image, in all. */
static inline int64_t crk_conv_tiles(const crk_conv *c, int wide, int tall, int32_t *across,
                                     int32_t *down) {
  int64_t x = crk_ceil_div(c->out->shape[2], wide), y = crk_ceil_div(c->out->shape[1], tall);
  *across = (int32_t)x, *down = (int32_t)y;
  return x * y * c->out->shape[0];
}

/* A tensor's data as T; NULL where there is no tensor. */
template <typename T> const T *crk_conv_data(const cr_tensor *t) {
  return t ? (const T *)crk_ptr(t) : NULL;
}

/* The convolution by our own general kernels (direct.cu): every dtype that a convolution takes, any
 * strides of x, out and residual, any groups; residual may be out. */
int crk_conv_direct(const crk_conv *c);

/* The convolution by our kernels for few results (few_outputs.cu): 3x3 windows and at most 8
 * results in f16 and bf16, any strides of out and residual. CR_EUNSUPPORTED, with nothing queued,
 * for all others. */
int crk_conv_few_outputs(const crk_conv *c);

/* The convolution by our kernels for few channels (few_inputs.cu): 3x3 windows and at most 5
 * channels in f16 and bf16, any strides of x. CR_EUNSUPPORTED, with nothing queued, for all others.
 */
int crk_conv_few_inputs(const crk_conv *c);

/* The convolution on a Hopper, by one of the tiles (1 to CRK_CONV_HOPPER_TILES) of conv/hopper.cu,
 * with bias and residual but no activation; call it only if `takes` has said so. It takes 3x3
 * windows of stride 1 in f16 and bf16, and 3x3 and 2x2 ones of int8 codes with such results; dense
 * tensors at multiples of 16 bytes; residual may be out. CR_EUNSUPPORTED, with nothing queued, if
 * there are too many tiles or the driver refuses. */
enum { CRK_CONV_HOPPER_TILES = 3 };
bool crk_conv_hopper_takes(const crk_conv *c, int64_t tile);
int crk_conv_hopper(const crk_conv *c, int32_t tile);

/* The convolution by our own kernels for f32 without TF32 and small images (small_f32.cu): one
 * group, channels a multiple of 4, any strides of out and residual. Returns CR_EUNSUPPORTED, with
 * nothing queued, for all others. */
int crk_conv_small_f32(const crk_conv *c);

/* The convolution on a Hopper, by the kernels of lines_hopper.h: 3x3 windows of stride 1 with at
 * most 64 results in f16 and bf16, any strides of x, out and residual that TMA takes; residual may
 * be out. CR_EUNSUPPORTED, with nothing queued, for all others (see lines_hopper.cu) and if
 * CR_CONV_HOPPER is 0. */
int crk_conv_lines(const crk_conv *c);

/* The convolution by cuDNN, in f32, f16 and bf16: x, out and residual are dense, all data begin at
 * multiples of 16 bytes, and out is none of the inputs. CR_EUNSUPPORTED, with nothing queued, if
 * cuDNN has no engine. It uses crk_conv_hopper where the search finds that faster, or where
 * CR_CONV_HOPPER=N asks for tile N (0: never). */
int crk_conv_cudnn(const crk_conv *c);

/* out = act(y + bias) + residual, with y dense and of out's shape; y may be out, and residual may
 * be out. */
int crk_conv_epilogue(const crk_conv *c, const cr_tensor *y);

int crk_max_pool2d(cr_tensor *out, const cr_tensor *x, int32_t kernel_h, int32_t kernel_w,
                   int32_t stride_h, int32_t stride_w, const int32_t *pad);

#ifdef __CUDACC__
/* The type that sums of numbers of type T have. */
template <typename T> struct crk_sum { typedef float type; };
template <> struct crk_sum<double> { typedef double type; };

template <typename A, typename T> __device__ __forceinline__ A crk_widen(T x) {
  return (A)crk_float(x);
}
template <> __device__ __forceinline__ double crk_widen(double x) { return x; }
template <typename T, typename A> __device__ __forceinline__ T crk_narrow(A x) {
  return crk_from<T>(x);
}
template <> __device__ __forceinline__ double crk_narrow(double x) { return x; }

/* The image, row and column of position `at`, counted row by row through images of h x w in
 * integers of type I. */
struct crk_position {
  int64_t n;
  int32_t y, x;
};
template <typename I>
__device__ __forceinline__ crk_position crk_position_of(I at, int32_t h, int32_t w) {
  crk_position p;
  p.x = (int32_t)(at % (I)w);
  at /= (I)w;
  p.y = (int32_t)(at % (I)h);
  p.n = at / (I)h;
  return p;
}
#endif

/* CRK_FLOAT_TYPES plus f64. */
#define CRK_CONV_TYPES(name, dtype, ...)                                                           \
  if ((dtype) == CR_F64) {                                                                         \
    typedef double T;                                                                              \
    __VA_ARGS__;                                                                                   \
  } else {                                                                                         \
    CRK_FLOAT_TYPES(name, dtype, __VA_ARGS__)                                                      \
  }

#endif
