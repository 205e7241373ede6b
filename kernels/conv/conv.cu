/* Convolutions: which kernel computes each of them.
 *
 * A 1x1 convolution without stride, padding or groups is a linear layer. Those with few results or
 * channels (few_outputs.cu, few_inputs.cu, on a Hopper lines_hopper.cu), small images in f32
 * (small_f32.cu), f64 and most grouped ones (direct.cu) go to our own kernels. The rest goes to
 * cuDNN (cudnn.cu), or to our own kernels where cuDNN has nothing. The steps that the library does
 * not fuse are one pass over the result (the epilogue below).
 *
 * Invariants: cuDNN gets dense tensors of one dtype, of at most 2^31 - 1 elements each, all at
 * multiples of 16 bytes, and an `out` that is no input. Weight and vectors are made dense and of
 * x's dtype first. */
#include "conv/conv.h"
#include "conv/plan.h"
#include "device/libraries.h"

typedef struct epilogue {
  int64_t total;
  int64_t so[4], sr[4]; /* strides of out and residual */
  int32_t h, w, c;
  int32_t act;
} epilogue;

/* out[i] = act(y[i] + bias[c]) + residual[i], y dense. A thread takes V neighbouring channels (V
 * elements of 16 bytes where everything is dense and aligned, else 1 at any strides), in a
 * grid-stride loop. Memory-bound: y, residual and out are accessed once. */
template <typename T, int V, bool DENSE>
__global__ void __launch_bounds__(256)
    conv_epilogue_kernel(T *out, const T *y, const T *bias, const T *residual, const T *slope,
                         epilogue e) {
  typedef typename crk_sum<T>::type A;
  for (int64_t j = blockIdx.x * 256ll + threadIdx.x; j < e.total / V; j += gridDim.x * 256ll) {
    int64_t i = j * V, at = i / e.c;
    int32_t c = (int32_t)(i - at * e.c);
    int64_t to = i, from = i;
    if (!DENSE) {
      const crk_position place = crk_position_of(at, e.h, e.w);
      const int32_t oy = place.y, ox = place.x;
      const int64_t n = place.n;
      to = n * e.so[0] + oy * e.so[1] + ox * e.so[2] + c * e.so[3];
      from = n * e.sr[0] + oy * e.sr[1] + ox * e.sr[2] + c * e.sr[3];
    }
    crk_pack<T, V> v = *(const crk_pack<T, V> *)(y + i), r, b, s;
    if (bias) b = *(const crk_pack<T, V> *)(bias + c);
    if (slope) s = *(const crk_pack<T, V> *)(slope + c);
    if (residual) r = *(const crk_pack<T, V> *)(residual + from);
#pragma unroll
    for (int k = 0; k < V; k++) {
      A sum = crk_widen<A>(v.v[k]);
      if (bias) sum += crk_widen<A>(b.v[k]);
      sum = crk_act(sum, e.act, slope ? crk_widen<A>(s.v[k]) : (A)0);
      if (residual) sum += crk_widen<A>(r.v[k]);
      v.v[k] = crk_narrow<T>(sum);
    }
    *(crk_pack<T, V> *)(out + to) = v;
  }
}

template <typename T> static void launch_epilogue(const crk_conv *c, const cr_tensor *y) {
  epilogue e = {};
  e.total = cr_numel(c->out);
  e.h = c->out->shape[1];
  e.w = c->out->shape[2];
  e.c = c->out->shape[3];
  e.act = c->o->act;
  crk_conv_strides(c, NULL, e.so, e.sr);
  T *out = (T *)crk_ptr(c->out);
  const T *from = crk_conv_data<T>(y), *bias = crk_conv_data<T>(c->bias),
          *residual = crk_conv_data<T>(c->residual), *slope = crk_conv_data<T>(c->slope);
  constexpr int V = 16 / sizeof(T);
  bool dense = cr_is_contiguous(c->out) && (!residual || cr_is_contiguous(c->residual));
  bool packs = dense && e.c % V == 0 &&
               ((uintptr_t)out | (uintptr_t)from | (uintptr_t)bias | (uintptr_t)residual |
                (uintptr_t)slope) %
                       16 ==
                   0;
  int64_t most = (int64_t)c->d->multiprocessors * 32;
  int64_t blocks = crk_ceil_div(packs ? e.total / V : e.total, 256);
  unsigned grid = (unsigned)(blocks < most ? blocks : most);
  if (packs)
    conv_epilogue_kernel<T, V, true>
        <<<grid, 256, 0, c->d->stream>>>(out, from, bias, residual, slope, e);
  else if (dense)
    conv_epilogue_kernel<T, 1, true>
        <<<grid, 256, 0, c->d->stream>>>(out, from, bias, residual, slope, e);
  else
    conv_epilogue_kernel<T, 1, false>
        <<<grid, 256, 0, c->d->stream>>>(out, from, bias, residual, slope, e);
}

int crk_conv_epilogue(const crk_conv *c, const cr_tensor *y) {
  CRK_CONV_TYPES("conv2d", c->out->dtype, launch_epilogue<T>(c, y));
  return crk_launched("conv2d", c->d);
}

static bool is_aligned(const cr_tensor *t) { return crk_aligned(crk_ptr(t), 0, NULL, 0, 16); }

/* t as a dense tensor of `dtype` at a multiple of 16 bytes, as cuDNN's kernels need it; a copy in
 * *temp unless it is one already. NULL on failure. */
static const cr_tensor *dense_aligned(const cr_tensor *t, int32_t dtype, cr_tensor *temp) {
  if (t->dtype != dtype || !cr_is_contiguous(t) || is_aligned(t)) return cr__dense(t, dtype, temp);
  if (cr_empty(temp, t->rank, t->shape, dtype, t->device) < 0) return NULL;
  return cr_copy(temp, t) < 0 ? NULL : temp;
}

/* Whether it is a linear layer over the channels: no window, stride or groups. Those kernels are
 * the fastest where data are aligned; the rest may as well be copied for cuDNN. */
static bool is_linear(const crk_conv *c) {
  const cr_conv *o = c->o;
  return c->weight->shape[1] == 1 && c->weight->shape[2] == 1 && o->stride_h == 1 &&
         o->stride_w == 1 && !(o->pad[0] | o->pad[1] | o->pad[2] | o->pad[3]) && o->groups == 1 &&
         c->x->dtype != CR_F64 && is_aligned(c->x) && is_aligned(c->out) &&
         (!c->residual || is_aligned(c->residual));
}

static int linear(const crk_conv *c) {
  int32_t shape[2] = {c->weight->shape[0], c->weight->shape[3]};
  int32_t act = c->o->act;
  /* These activations and the steps after them are one more pass, from a result of its own: out may
   * have any strides, and must not be written before a residual in the same memory is read. */
  bool apart = act == CR_ACT_PRELU || act == CR_ACT_RELU6;
  cr_tensor weight = {}, y = {};
  CR_TRY(cr_view(&weight, c->weight, 2, shape));
  int rc = cr_linear(apart ? &y : c->out, c->x, &weight, c->bias, apart ? NULL : c->residual,
                     apart ? CR_ACT_NONE : act);
  if (rc >= 0 && apart) {
    crk_conv rest = *c;
    rest.bias = NULL;
    rc = crk_conv_epilogue(&rest, &y);
  }
  cr_free(&weight);
  cr_free(&y);
  return rc;
}

/* Whether our own kernels take what cuDNN does not support or does badly: f64, and groups so narrow
 * that a tile of a GEMM would be mostly padding. */
static bool is_direct(const crk_conv *c) {
  if (c->x->dtype == CR_F64) return true;
  int32_t groups = c->o->groups;
  return groups > 1 && (c->weight->shape[3] < 16 || c->weight->shape[0] / groups < 16);
}

static bool overlap(const cr_tensor *a, const cr_tensor *b) {
  return b && a->storage == b->storage;
}

/* Converts everything to what cuDNN takes (see conv.h). */
static int by_cudnn(const crk_conv *c) {
  crk_conv dense = *c;
  cr_tensor x = {}, y = {};
  dense.x = dense_aligned(c->x, c->x->dtype, &x);
  int rc = dense.x ? CR_OK : cr__last_code();
  bool in_place = cr_is_contiguous(c->out) && is_aligned(c->out) && !overlap(c->out, c->residual) &&
                  !overlap(c->out, c->x) && !overlap(c->out, c->weight);
  /* The epilogue reads a residual that is not dense (a broadcast view) where it is. */
  bool apart =
      !in_place || (c->residual && !(cr_is_contiguous(c->residual) && is_aligned(c->residual)));
  cr_conv plain = *c->o;
  if (rc >= 0 && apart) {
    dense.residual = NULL;
    dense.slope = NULL;
    dense.o = &plain;
    if (c->residual || plain.act == CR_ACT_PRELU) plain.act = CR_ACT_NONE;
    if (!in_place) {
      rc = cr_empty(&y, 4, c->out->shape, c->out->dtype, c->out->device);
      dense.out = &y;
    }
  }
  if (rc >= 0) rc = crk_conv_cudnn(&dense);
  if (rc >= 0 && apart) {
    crk_conv rest = *c;
    cr_conv after = *c->o;
    rest.bias = NULL;
    rest.o = &after;
    if (plain.act == after.act) after.act = CR_ACT_NONE; /* cuDNN has done it */
    rc = crk_conv_epilogue(&rest, dense.out);
  }
  cr_free(&x);
  cr_free(&y);
  return rc;
}

/* The convolution by one of our own kernels, which fuses all steps whose options are on. */
static int by_own(const crk_conv *c, int (*kernel)(const crk_conv *c)) {
  int steps = crk_fused_steps(c->d, CRK_FUSE_CONV, c->bias, c->o->act != CR_ACT_NONE, c->residual);
  if (steps > 2) return kernel(c);
  crk_conv first = *c, rest = *c;
  cr_conv before = *c->o, after = *c->o;
  cr_tensor y = {};
  first.o = &before;
  rest.o = &after;
  first.out = &y; /* the residual may be out */
  first.residual = NULL;
  if (steps > 0)
    rest.bias = NULL;
  else
    first.bias = NULL;
  if (steps > 1) {
    after.act = CR_ACT_NONE;
  } else {
    before.act = CR_ACT_NONE;
    first.slope = NULL;
  }
  CR_TRY(cr_empty(&y, 4, c->out->shape, c->out->dtype, c->out->device));
  int rc = kernel(&first);
  if (rc >= 0) rc = crk_conv_epilogue(&rest, &y);
  cr_free(&y);
  return rc;
}

static int convolve(const crk_conv *c) {
  int own = by_own(c, crk_conv_small_f32);
  if (own != CR_EUNSUPPORTED) return own;
  if (is_linear(c)) return linear(c);
  own = by_own(c, crk_conv_few_outputs);
  if (own == CR_EUNSUPPORTED) own = by_own(c, crk_conv_few_inputs);
  if (own == CR_EUNSUPPORTED) own = by_own(c, crk_conv_lines);
  if (own != CR_EUNSUPPORTED) return own;
  if (is_direct(c)) return by_own(c, crk_conv_direct);
  /* Most of cuDNN's engines count elements in 32 bits, so larger batches are split into halves. */
  if (c->x->shape[0] > 1 && (cr_numel(c->x) > INT32_MAX || cr_numel(c->out) > INT32_MAX)) {
    int32_t n = c->x->shape[0], half = n / 2, rc = CR_OK;
    for (int part = 0; rc >= 0 && part < 2; part++) {
      cr_tensor out = {}, x = {}, residual = {};
      int32_t first = part ? half : 0, last = part ? n : half;
      rc = cr_slice(&out, c->out, 0, first, last, 1);
      if (rc >= 0) rc = cr_slice(&x, c->x, 0, first, last, 1);
      if (rc >= 0 && c->residual) rc = cr_slice(&residual, c->residual, 0, first, last, 1);
      crk_conv piece = *c;
      piece.out = &out;
      piece.x = &x;
      if (c->residual) piece.residual = &residual;
      if (rc >= 0) rc = convolve(&piece);
      cr_free(&out);
      cr_free(&x);
      cr_free(&residual);
    }
    return rc;
  }
  int rc = by_cudnn(c);
  return rc == CR_EUNSUPPORTED ? by_own(c, crk_conv_direct) : rc;
}

static int conv2d(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                  const cr_tensor *bias, const cr_tensor *residual, const cr_tensor *slope,
                  const cr_conv *o) {
  CRK_DEVICE(d, "conv2d", x);
  const cr_tensor *given[4] = {weight, bias, residual, slope};
  cr_tensor temp[4] = {};
  int rc = CR_OK;
  for (int i = 0; i < 4 && rc >= 0; i++) {
    if (!given[i] || (i == 2 && residual->dtype == x->dtype))
      continue; /* the residual may have any strides */
    given[i] = dense_aligned(given[i], x->dtype, &temp[i]);
    if (!given[i]) rc = cr__last_code();
  }
  crk_conv c = {d, out, x, given[0], given[1], given[2], given[3], o};
  if (rc >= 0) rc = convolve(&c);
  for (int i = 0; i < 4; i++) cr_free(&temp[i]);
  return rc;
}

void crk_fill_conv(cr__backend *b) {
  b->conv2d = conv2d;
  b->max_pool2d = crk_max_pool2d;
  crk_libraries_warm_up(crk_conv_warm_up);
}
