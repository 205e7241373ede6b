/* Random numbers on a card: torch's CUDA generator bit for bit, and our own Philox.
 *
 * Invariants: the numbers depend on the generator's state alone, never on the card (the grid of
 * torch's generator is that of 132 multiprocessors everywhere). The state advances exactly as in
 * core/ops/random.c, whichever device draws. Element i of the numbers is element i of `out` in
 * row-major order, whatever its strides. Drawing cannot be recorded, since replays would repeat the
 * numbers. The sequential torch-cpu generator never comes here (core/ops/random.c draws and
 * copies). */
#include <stdio.h>
#include <type_traits>

#include "base/generator.h"
#include "base/philox.h"
#include "device/cuda.h"

/* Where element i is stored. */
typedef struct target {
  void *data;
  int32_t rank;
  bool dense, packed; /* packed: four elements can be stored at once */
  int32_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK];
} target;

template <typename T> __device__ __forceinline__ void put(const target &to, int64_t i, T x) {
  int64_t at = i;
  if (!to.dense) {
    at = 0;
    for (int k = to.rank - 1; k >= 0; k--) {
      at += i % to.shape[k] * to.stride[k];
      i /= to.shape[k];
    }
  }
  ((T *)to.data)[at] = x;
}

template <typename T> __device__ __forceinline__ T torch_cast(float x) { return crk_from<T>(x); }
template <typename T> __device__ __forceinline__ T torch_cast(double x) { return x; }

/* A number that was rounded up to 1 becomes 0, as in torch. */
template <typename T> __device__ __forceinline__ T below_one(float x) {
  T y = crk_from<T>(x);
  return crk_float(y) >= 1.0f ? crk_from<T>(0.0f) : y;
}
template <typename T> __device__ __forceinline__ T below_one(double x) { return x >= 1 ? 0.0 : x; }

/* ---- torch's CUDA generator ----
 *
 * A grid of `threads` threads in blocks of 256, each with a Philox stream of its own (the counter's
 * upper half). At turn n a thread takes the 4 words at counter + n, which become elements that are
 * one grid apart: 4 of f32, f16 and bf16, or 2 of f64. */

typedef struct torch_draw {
  uint64_t seed, counter, turns, threads;
  int64_t n;
} torch_draw;

/* Box-Muller with the arithmetic of curand's curand_normal4: fused multiply-adds, logf, and the
 * special function unit's sine and cosine. Another order of operations would give other bits. */
__device__ __forceinline__ void normal_pair(uint32_t a, uint32_t b, float *out) {
  const float inverse = 2.3283064365386963e-10f, inverse_2pi = 2.3283064365386963e-10f * 6.2831855f;
  float u = __fmaf_rn((float)a, inverse, inverse / 2);
  float v = __fmaf_rn((float)b, inverse_2pi, inverse_2pi / 2);
  float s = sqrtf(-2.0f * logf(u)), sine, cosine;
  __sincosf(v, &sine, &cosine);
  out[0] = __fmul_rn(sine, s);
  out[1] = __fmul_rn(cosine, s);
}

/* The numbers of one counter: 4 floats, or 2 doubles. */
template <bool NORMAL> __device__ __forceinline__ void torch_numbers(cr__words r, float (&x)[4]) {
  if (NORMAL) {
    normal_pair(r.w[0], r.w[1], x);
    normal_pair(r.w[2], r.w[3], x + 2);
  } else {
    for (int k = 0; k < 4; k++)
      x[k] = __fmaf_rn((float)r.w[k], 2.3283064365386963e-10f, 1.16415321826934815e-10f);
  }
}
template <bool NORMAL> __device__ __forceinline__ void torch_numbers(cr__words r, double (&x)[2]) {
  for (int k = 0; k < 2; k++) {
    uint64_t z = (uint64_t)r.w[2 * k] ^ (uint64_t)r.w[2 * k + 1] << 21;
    x[k] = __fma_rn((double)z, 0x1p-53, 0x1p-54);
  }
  if (NORMAL) {
    double s = sqrt(-2.0 * log(x[0])), sine, cosine;
    sincospi(2.0 * x[1], &sine, &cosine);
    x[0] = sine * s;
    x[1] = cosine * s;
  }
}

template <typename T, bool NORMAL> __global__ void torch_kernel(target to, torch_draw d) {
  constexpr bool F64 = sizeof(T) == 8;
  constexpr int EACH = F64 ? 2 : 4;
  uint64_t t = (uint64_t)blockIdx.x * CR__TORCH_BLOCK + threadIdx.x;
  for (uint64_t turn = 0; turn < d.turns; turn++) {
    int64_t at = (int64_t)(t + turn * d.threads * EACH);
    if (at >= d.n) break;
    std::conditional_t<F64, double, float> x[EACH];
    torch_numbers<NORMAL>(cr__philox(d.counter + turn, t, d.seed), x);
    for (int k = 0; k < EACH && at < d.n; k++, at += (int64_t)d.threads)
      put(to, at, NORMAL ? torch_cast<T>(x[k]) : below_one<T>(x[k]));
  }
}

/* ---- our own: a thread computes 4 elements from one counter (core/base/philox.h) ---- */

/* steps: how many different uniform numbers T can represent. */
template <typename T, bool NORMAL>
__global__ void own_kernel(target to, uint64_t seed, uint64_t counter, int64_t n, float steps) {
  int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at = block * 4;
  if (at >= n) return;
  cr__words r = cr__philox(counter + (uint64_t)block, 0, seed);
  float four[4];
  for (int k = 0; k < 4; k++) four[k] = cr__philox_uniform(r.w[k]);
  if (NORMAL) {
    for (int k = 0; k < 4; k += 2) {
      float s = sqrtf(-2.0f * logf(four[k] + 5.9604644775390625e-8f)), sine, cosine;
      sincospif(2.0f * four[k + 1], &sine, &cosine);
      four[k] = s * cosine;
      four[k + 1] = s * sine;
    }
  } else {
    for (int k = 0; k < 4; k++) four[k] = floorf(four[k] * steps) / steps;
  }
  if (to.packed && at + 4 <= n) {
    crk_pack<T, 4> p;
    for (int k = 0; k < 4; k++) p.v[k] = crk_from<T>(four[k]);
    *(crk_pack<T, 4> *)((T *)to.data + at) = p;
    return;
  }
  for (int k = 0; k < 4 && at + k < n; k++) put(to, at + k, crk_from<T>(four[k]));
}

/* ---- launchers ---- */

template <bool NORMAL>
static int torch_cuda(const char *name, crk_device *d, const target *to, int32_t dtype, int64_t n,
                      cr_generator *g) {
  cr__torch_grid grid = cr__torch_grid_of(n, dtype == CR_F64);
  torch_draw w = {g->seed, g->offset / 4, grid.turns, grid.threads, n};
  unsigned blocks = (unsigned)(grid.threads / CR__TORCH_BLOCK);
  if (dtype == CR_F64) {
    torch_kernel<double, NORMAL><<<blocks, CR__TORCH_BLOCK, 0, d->stream>>>(*to, w);
  } else {
    CRK_FLOAT_TYPES(name, dtype,
                    (torch_kernel<T, NORMAL><<<blocks, CR__TORCH_BLOCK, 0, d->stream>>>(*to, w)));
  }
  g->offset += cr__generator_stride(g, n, dtype == CR_F64);
  return crk_launched(name, d);
}

template <typename T, bool NORMAL>
static void own_launch(crk_device *d, const target *to, int64_t n, const cr_generator *g,
                       float steps) {
  int64_t blocks = crk_ceil_div(crk_ceil_div(n, 4), 256);
  own_kernel<T, NORMAL>
      <<<(unsigned)blocks, 256, 0, d->stream>>>(*to, g->seed, g->offset / 4, n, steps);
}

template <bool NORMAL>
static int own(const char *name, crk_device *d, const target *to, int32_t dtype, int64_t n,
               cr_generator *g) {
  float steps = dtype == CR_F16 ? 0x1p11f : dtype == CR_BF16 ? 0x1p8f : 0x1p24f;
  if (dtype == CR_F64) {
    own_launch<double, NORMAL>(d, to, n, g, steps);
  } else {
    CRK_FLOAT_TYPES(name, dtype, (own_launch<T, NORMAL>(d, to, n, g, steps)));
  }
  g->offset += cr__generator_stride(g, n, false);
  return crk_launched(name, d);
}

template <bool NORMAL> static int draw(const char *name, cr_tensor *out, cr_generator *g) {
  int64_t n = cr_numel(out);
  if (n == 0) return CR_OK;
  CRK_DEVICE(d, name, out);
  if (d->capturing) {
    if (!d->uncapturable[0])
      snprintf(d->uncapturable, sizeof d->uncapturable,
               "%s would give the same numbers at every launch", name);
    return cr__fail(
        CR_EUNSUPPORTED,
        "%s: a recording would give the same numbers at every launch; draw them before it", name);
  }
  target to = {crk_ptr(out), out->rank, cr_is_contiguous(out) == 1};
  to.packed = to.dense && (uintptr_t)to.data % (4 * (size_t)cr_dtype_size(out->dtype)) == 0;
  for (int k = 0; k < out->rank; k++) {
    to.shape[k] = out->shape[k];
    to.stride[k] = out->stride[k];
  }
  if (g->kind == CR_RNG_TORCH_CUDA) return torch_cuda<NORMAL>(name, d, &to, out->dtype, n, g);
  return own<NORMAL>(name, d, &to, out->dtype, n, g);
}

static int randn(cr_tensor *out, cr_generator *g) { return draw<true>("randn", out, g); }
static int rand_uniform(cr_tensor *out, cr_generator *g) { return draw<false>("rand", out, g); }

void crk_fill_random(cr__backend *b) {
  b->randn = randn;
  b->rand = rand_uniform;
}
