/* Timestep embedding and posterior sampling. */
#include "elementwise/elementwise.h"

enum { THREADS = 256 };

/* out[t k] of any dtype and strides (bytes), an element a thread, rows of `dim` after one another.
 * In f64, since angles reach 1000, and their sines keep all bits of a float. There are a few
 * thousand elements at most, so the launch takes most of the time. */
__global__ void __launch_bounds__(THREADS)
    timestep_embedding_kernel(char *out, int32_t out_dtype, int64_t out_row, int64_t out_column,
                              const char *t, int32_t dtype, int64_t step, uint32_t items,
                              uint32_t dim) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= items) return;
  uint32_t row = i / dim, k = i % dim, half = dim / 2;
  double value = 0;
  if (k < 2 * half) {
    double angle = crk_load<double>(t + row * step, dtype) *
                   exp(-9.210340371976182736 * (double)(k % half) / (double)half); /* ln 10000 */
    value = k < half ? cos(angle) : sin(angle);
  }
  crk_store<double>(out + row * out_row + k * out_column, out_dtype, value);
}

static int timestep_embedding(cr_tensor *out, const cr_tensor *t) {
  CRK_DEVICE(d, "timestep_embedding", t);
  int64_t items = cr_numel(out), size = cr_dtype_size(out->dtype);
  if (items == 0) return CR_OK;
  if (items > INT32_MAX)
    return cr__fail(CR_EUNSUPPORTED, "timestep_embedding: %s is too large for a card",
                    cr__shape(out));
  timestep_embedding_kernel<<<(unsigned)crk_ceil_div(items, THREADS), THREADS, 0, d->stream>>>(
      (char *)crk_ptr(out), out->dtype, out->stride[0] * size, out->stride[1] * size,
      (const char *)crk_ptr(t), t->dtype, t->stride[0] * cr_dtype_size(t->dtype), (uint32_t)items,
      (uint32_t)out->shape[1]);
  return crk_launched("timestep_embedding", d);
}

__device__ __forceinline__ float deviation(float half) { return expf(half); }
__device__ __forceinline__ double deviation(double half) { return exp(half); }

/* A sample from mean, logvar and noise; nan is kept. */
template <typename A> struct draw {
  A scale;
  __device__ __forceinline__ A operator()(const A (&x)[3]) const {
    A v = x[1] < (A)-30 ? (A)-30 : x[1];
    v = v > (A)20 ? (A)20 : v;
    return (x[0] + deviation(v * (A)0.5) * x[2]) * scale;
  }
};

static int posterior_sample(cr_tensor *out, const cr_tensor *mean, const cr_tensor *logvar,
                            const cr_tensor *noise, double scale) {
  if (!noise) return crk_binary_scalar(out, CR_MUL, mean, scale, 0);
  CRK_DEVICE(d, "posterior_sample", out);
  if (cr_numel(out) == 0) return CR_OK;
  crk_dtypes dtypes;
  crk_plan p = crk_map_plan({out, mean, logvar, noise}, &dtypes);
  draw<float> f = {(float)scale};
  bool same =
      mean->dtype == out->dtype && logvar->dtype == out->dtype && noise->dtype == out->dtype;
  if (out->dtype == CR_F64) {
    crk_map_elements<double, 3>(d, &p, dtypes, draw<double>{scale});
  } else if (!same) {
    crk_map_elements<float, 3>(d, &p, dtypes, f);
  } else {
    CRK_FLOAT_TYPES("posterior_sample", out->dtype, (crk_map_vectors<T, T, 3>(d, &p, dtypes, f)));
  }
  return crk_launched("posterior_sample", d);
}

void crk_fill_diffusion(cr__backend *b) {
  b->timestep_embedding = timestep_embedding;
  b->posterior_sample = posterior_sample;
}
