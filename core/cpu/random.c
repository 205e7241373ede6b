/* Random numbers on the CPU: torch's CPU generator bit for bit, torch's CUDA generator up to
 * rounding, and Crescent's own Philox.
 *
 * torch.randn on a CPU has two forms. Fewer than 16 numbers are made one by one with Box-Muller in
 * double; the second of each pair is kept for the next call. 16 or more are first drawn as uniform
 * numbers of the tensor's type; then in each block of 16 the first 8 give the radii and the other 8
 * the angles. If the last block is partial, the last 16 elements are drawn again. */
#include <math.h>
#include <stdlib.h>

#include "base/generator.h"
#include "base/philox.h"
#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/view.h"

static const double two_pi = 6.283185307179586476925;

static uint64_t twister_64(cr_generator *g) {
  uint64_t high = cr__twister_32(g);
  return high << 32 | cr__twister_32(g);
}

/* Draws a uniform number on [0, 1) with as many bits as the type's significand. */
static float uniform_f32(cr_generator *g, int32_t dtype) {
  int32_t bits = dtype == CR_F16 ? 11 : dtype == CR_BF16 ? 8 : 24;
  uint32_t mask = (1u << bits) - 1;
  return (float)(cr__twister_32(g) & mask) / (float)(1u << bits);
}

static double uniform_f64(cr_generator *g) {
  return (double)(twister_64(g) & ((1ull << 53) - 1)) * 0x1p-53;
}

static double scalar_normal(cr_generator *g) {
  if (g->has_normal) {
    g->has_normal = false;
    return g->normal;
  }
  double u1 = uniform_f64(g), u2 = uniform_f64(g);
  double r = sqrt(-2.0 * log1p(-u2)), theta = two_pi * u1;
  g->normal = r * sin(theta);
  g->has_normal = true;
  return r * cos(theta);
}

/* ---- blocks of 16 in f32 ----
 * These are the single-precision functions of the Cephes library (Moshier), which torch's vector
 * code follows. Their rounding makes the numbers equal bit for bit. */

static inline float cephes_log(float x) {
  x = x < 1.17549435e-38f ? 1.17549435e-38f : x;
  float e = (float)((int32_t)(cr__to_bits(x) >> 23) - 126);
  float m = cr__from_bits((cr__to_bits(x) & 0x807fffffu) | 0x3f000000u); /* [0.5, 1) */
  bool low = m < 0.707106781186547524f;
  e -= low ? 1.0f : 0.0f;
  m = (m - 1.0f) + (low ? m : 0.0f);
  float z = m * m;
  float y = 7.0376836292e-2f;
  y = __builtin_fmaf(y, m, -1.1514610310e-1f);
  y = __builtin_fmaf(y, m, 1.1676998740e-1f);
  y = __builtin_fmaf(y, m, -1.2420140846e-1f);
  y = __builtin_fmaf(y, m, 1.4249322787e-1f);
  y = __builtin_fmaf(y, m, -1.6668057665e-1f);
  y = __builtin_fmaf(y, m, 2.0000714765e-1f);
  y = __builtin_fmaf(y, m, -2.4999993993e-1f);
  y = __builtin_fmaf(y, m, 3.3333331174e-1f);
  y = __builtin_fmaf(y * m, z, e * -2.12194440e-4f);
  y = __builtin_fmaf(z, -0.5f, y);
  return __builtin_fmaf(e, 0.693359375f, m + y);
}

/* x in [0, 2 pi]. */
static inline void cephes_sincos(float x, float *sine, float *cosine) {
  int32_t j = (int32_t)(x * 1.27323954473516f);
  j = (j + 1) & ~1;
  float n = (float)j;
  x = __builtin_fmaf(n, -0.78515625f, x);
  x = __builtin_fmaf(n, -2.4187564849853515625e-4f, x);
  x = __builtin_fmaf(n, -3.77489497744594108e-8f, x);
  float z = x * x;
  float c = 2.443315711809948e-5f;
  c = __builtin_fmaf(c, z, -1.388731625493765e-3f);
  c = __builtin_fmaf(c, z, 4.166664568298827e-2f);
  c = __builtin_fmaf(c * z, z, z * -0.5f) + 1.0f;
  float s = -1.9515295891e-4f;
  s = __builtin_fmaf(s, z, 8.3321608736e-3f);
  s = __builtin_fmaf(s, z, -1.6666654611e-1f);
  s = __builtin_fmaf(s * z, x, x);
  bool swap = (j & 2) != 0;
  float a = swap ? c : s, b = swap ? s : c;
  *sine = cr__from_bits(cr__to_bits(a) ^ (uint32_t)(j & 4) << 29);
  *cosine = cr__from_bits(cr__to_bits(b) ^ (uint32_t)(~(j - 2) & 4) << 29);
}

/* Turns blocks of 16 uniform numbers into normal ones, in place. */
CR_CLONES static void normal_blocks_f32(float *x, int64_t blocks) {
  for (int64_t k = 0; k < blocks; k++, x += 16) {
#pragma omp simd
    for (int i = 0; i < 8; i++) {
      float radius = sqrtf(-2.0f * cephes_log(1.0f - x[i])), sine, cosine;
      cephes_sincos(6.28318530717958647692f * x[i + 8], &sine, &cosine);
      x[i] = radius * cosine;
      x[i + 8] = radius * sine;
    }
  }
}

static void normal_blocks_f64(double *x, int64_t blocks) {
  for (int64_t k = 0; k < blocks; k++, x += 16) {
    for (int i = 0; i < 8; i++) {
      double radius = sqrt(-2.0 * log(1.0 - x[i])), theta = two_pi * x[i + 8];
      x[i] = radius * cos(theta);
      x[i + 8] = radius * sin(theta);
    }
  }
}

/* Rounds x to the dtype. */
static float rounded(float x, int32_t dtype) {
  if (dtype == CR_F32) return x;
  uint16_t h;
  cr__from_f32(&h, &x, dtype, 1);
  cr__to_f32(&x, &h, dtype, 1);
  return x;
}

/* torch rounds to the 16-bit type after each step (tested up to 2.11). */
static void normal_blocks_half(float *x, int64_t blocks, int32_t dtype) {
  for (int64_t k = 0; k < blocks; k++, x += 16) {
    for (int i = 0; i < 8; i++) {
      float logarithm = rounded(logf(1.0f - x[i]), dtype);
      float radius = rounded(sqrtf(rounded(-2.0f * logarithm, dtype)), dtype);
      float theta = rounded((float)(two_pi * (double)x[i + 8]), dtype);
      x[i] = rounded(radius * rounded(cosf(theta), dtype), dtype);
      x[i + 8] = rounded(radius * rounded(sinf(theta), dtype), dtype);
    }
  }
}

static void torch_cpu_f64(cr_generator *g, double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = uniform_f64(g);
  normal_blocks_f64(x, n / 16);
  if (n % 16 == 0) return;
  for (int64_t i = n - 16; i < n; i++) x[i] = uniform_f64(g);
  normal_blocks_f64(x + n - 16, 1);
}

/* For f32, f16 and bf16, whose numbers are computed as f32. */
static void torch_cpu_f32(cr_generator *g, float *x, int64_t n, int32_t dtype) {
  for (int64_t i = 0; i < n; i++) x[i] = uniform_f32(g, dtype);
  int64_t first = 0, blocks = n / 16;
  for (int pass = 0; pass < 2 && blocks > 0; pass++) {
    if (dtype == CR_F32) {
      normal_blocks_f32(x + first, blocks);
    } else {
      normal_blocks_half(x + first, blocks, dtype);
    }
    first = n - 16;
    blocks = pass == 0 && n % 16 != 0;
    for (int64_t i = first; blocks && i < n; i++) x[i] = uniform_f32(g, dtype);
  }
}

/* ---- torch's CUDA generator ----
 *
 * A draw starts a grid of 256-thread blocks, at most as many as run on the GPU at once. Each thread
 * has its own Philox stream (the counter's upper half). It uses 4 words per turn, which become 4
 * f32 numbers (2 f64 numbers) for elements one grid apart. The offset (the counter's lower half, in
 * words) then advances by what one thread has used. */

/* The sine as computed by a GPU's special function unit, with quarter turns added: the angle / (2
 * pi) is rounded towards zero and truncated to 25 fractional bits; odd quadrants are reflected by
 * the bitwise complement. This was found by comparison with draws of a GPU. Without it numbers
 * differ by up to 2e-6, with it by 6e-7. */
static float card_sine(float angle, uint32_t quarters) {
  double product = (double)angle * (double)0.15915494309189535f;
  float turns = (float)product;
  if ((double)turns > product) turns = cr__from_bits(cr__to_bits(turns) - 1);
  uint32_t fixed = (uint32_t)(turns * 33554432.0f) + (quarters << 23);
  uint32_t part = fixed & 0x7fffffu;
  if (fixed >> 23 & 1u) part = 0x7fffffu - part;
  float y = sinf((float)part * 1.8725349e-7f); /* pi / 2 / 2^23 */
  return fixed >> 24 & 1u ? -y : y;
}

/* Box-Muller on two words as curand does it: sine first, u in (0, 1]. */
static void cuda_pair_f32(uint32_t a, uint32_t b, float *out) {
  const float inverse = 2.3283064365386963e-10f, inverse_2pi = 2.3283064365386963e-10f * 6.2831855f;
  float u = __builtin_fmaf((float)a, inverse, inverse / 2);
  float v = __builtin_fmaf((float)b, inverse_2pi, inverse_2pi / 2);
  float s = sqrtf(-2.0f * logf(u));
  out[0] = s * card_sine(v, 0);
  out[1] = s * card_sine(v, 1);
}

static double cuda_uniform_f64(uint32_t low, uint32_t high) {
  uint64_t z = (uint64_t)low ^ (uint64_t)high << 21;
  return (double)z * 0x1p-53 + 0x1p-54;
}

static void cuda_four_f32(float *out, cr__words r, bool normal) {
  if (normal) {
    cuda_pair_f32(r.w[0], r.w[1], out);
    cuda_pair_f32(r.w[2], r.w[3], out + 2);
    return;
  }
  for (int k = 0; k < 4; k++)
    out[k] = __builtin_fmaf((float)r.w[k], 2.3283064365386963e-10f, 1.16415321826934815e-10f);
}

static void cuda_two_f64(double *out, cr__words r, bool normal) {
  double u = cuda_uniform_f64(r.w[0], r.w[1]), v = cuda_uniform_f64(r.w[2], r.w[3]);
  double s = sqrt(-2.0 * log(u));
  out[0] = normal ? s * sin(two_pi * v) : u;
  out[1] = normal ? s * cos(two_pi * v) : v;
}

/* Each draw gives four f32 or two f64, one grid apart. */
static void torch_cuda(const cr_generator *g, void *x, bool wide, int64_t n, bool normal) {
  uint64_t most = wide ? 2 : 4, counter = g->offset / 4;
  cr__torch_grid d = cr__torch_grid_of(n, wide);
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(n * 4))
  for (uint64_t t = 0; t < d.threads; t++) {
    for (uint64_t turn = 0; turn < d.turns; turn++) {
      uint64_t at = t + turn * d.threads * most;
      if (at >= (uint64_t)n) break;
      cr__words r = cr__philox(counter + turn, t, g->seed);
      float four[4];
      double two[2];
      if (wide)
        cuda_two_f64(two, r, normal);
      else
        cuda_four_f32(four, r, normal);
      for (uint64_t k = 0; k < most && at < (uint64_t)n; k++, at += d.threads) {
        if (wide)
          ((double *)x)[at] = two[k];
        else
          ((float *)x)[at] = four[k];
      }
    }
  }
}

/* ---- Crescent's Philox ---- */

/* steps: the number of different uniform values of the dtype, so that none rounds to 1. */
static void own_f32(const cr_generator *g, float *x, int64_t start, int64_t n, bool normal,
                    float steps) {
  for (int64_t i = 0; i < n; i += 4) { /* start is a multiple of 4 */
    cr__words r = cr__philox((g->offset + (uint64_t)(start + i)) / 4, 0, g->seed);
    float four[4];
    for (int k = 0; k < 4; k++) four[k] = cr__philox_uniform(r.w[k]);
    if (normal) {
      for (int k = 0; k < 4; k += 2) {
        float s = sqrtf(-2.0f * cr__log_f32(four[k] + 5.9604644775390625e-8f));
        /* 2 pi v, with the quarter turns removed exactly. */
        float v = four[k + 1] * 4.0f, quarter = rintf(v);
        float angle = (v - quarter) * 1.57079632679489661923f;
        int32_t q = (int32_t)quarter & 3;
        four[k] = s * cr__sin_quadrant_f32(angle, q + 1);
        four[k + 1] = s * cr__sin_quadrant_f32(angle, q);
      }
    } else {
      for (int k = 0; k < 4; k++) four[k] = floorf(four[k] * steps) / steps;
    }
    for (int64_t k = 0; k < 4 && i + k < n; k++) x[i + k] = four[k];
  }
}

static void own_draw(const cr_generator *g, const cr__view *to, int64_t n, bool normal) {
  float steps = to->dtype == CR_F16 ? 0x1p11f : to->dtype == CR_BF16 ? 0x1p8f : 0x1p24f;
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(n * 4))
  for (int64_t start = 0; start < n; start += CR__CHUNK) {
    float buffer[CR__CHUNK];
    int64_t m = n - start < CR__CHUNK ? n - start : CR__CHUNK;
    float *x = cr__target_f32(to, start, buffer);
    own_f32(g, x, start, m, normal, steps);
    cr__store_f32(to, start, m, x);
  }
}

/* ---- draws ---- */

/* torch makes [0, 1) by replacing what was rounded up to 1 by 0. */
static void ones_to_zero(void *data, int32_t dtype, int64_t n) {
  if (dtype == CR_F64) {
    double *x = data;
    for (int64_t i = 0; i < n; i++) x[i] = x[i] >= 1 ? 0 : x[i];
  } else {
    float *x = data;
    for (int64_t i = 0; i < n; i++) x[i] = rounded(x[i], dtype) >= 1 ? 0 : x[i];
  }
}

/* torch's generators fill a dense buffer of f64 or f32, which is then stored. */
static void torch_draw(cr_generator *g, void *data, int64_t n, int32_t dtype, bool normal) {
  bool wide = dtype == CR_F64;
  if (g->kind == CR_RNG_TORCH_CUDA) {
    torch_cuda(g, data, wide, n, normal);
    g->offset += cr__generator_stride(g, n, wide);
    if (!normal) ones_to_zero(data, dtype, n);
  } else if (!normal || n < 16) {
    for (int64_t i = 0; i < n; i++) {
      double v = normal ? scalar_normal(g) : wide ? uniform_f64(g) : (double)uniform_f32(g, dtype);
      if (wide) {
        ((double *)data)[i] = v;
      } else {
        ((float *)data)[i] = (float)v;
      }
    }
  } else if (wide) {
    torch_cpu_f64(g, data, n);
  } else {
    torch_cpu_f32(g, data, n, dtype);
  }
}

static int draw(const char *name, cr_tensor *out, cr_generator *g, bool normal) {
  int64_t n = cr_numel(out);
  if (n == 0) return CR_OK;
  cr__view to = cr__view_of(out, out->rank, out->shape);
  if (g->kind == CR_RNG_PHILOX) {
    own_draw(g, &to, n, normal);
    g->offset += cr__generator_stride(g, n, false);
    return CR_OK;
  }
  bool wide = out->dtype == CR_F64;
  bool direct = to.dense && (wide || out->dtype == CR_F32);
  void *data = direct ? to.base : calloc((size_t)n, wide ? 8 : 4);
  if (!data) return cr__fail(CR_ENOMEM, "%s: out of memory for %s", name, cr__shape(out));
  torch_draw(g, data, n, out->dtype, normal);
  if (direct) return CR_OK;
  if (wide) {
    cr__store_f64(&to, 0, n, data);
  } else {
    cr__store_f32(&to, 0, n, data);
  }
  free(data);
  return CR_OK;
}

int cr__cpu_randn(cr_tensor *out, cr_generator *g) { return draw("randn", out, g, true); }
int cr__cpu_rand(cr_tensor *out, cr_generator *g) { return draw("rand", out, g, false); }
