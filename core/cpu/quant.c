/* Quantization and dequantization on the CPU (quant.h). They are exact: the GPU's kernels are
 * compared with them. */
#include "cpu/quant.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/lanes.h"
#include "cpu/operands.h"
#include "cpu/view.h"

#ifdef HAVE_X86
#include <immintrin.h>
#endif

enum { E4M3_NAN = 0x7f };

/* ---- E4M3 ---- */

/* Returns the nearest code of E4M3, ties to even. Beyond 448 it saturates; nan stays nan. */
static uint8_t code_of(float x) {
  uint32_t bits = cr__to_bits(x);
  uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
  uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return E4M3_NAN;
  if (rest >= 0x43e00000u) return sign | 0x7e; /* 448 */
  if (rest < 0x3c800000u) {
    /* Below 2^-6: adding 2^14 rounds to a multiple of 2^-9, which then stands in the sum's low
     * bits. */
    float sum = cr__from_bits(rest) + 16384.0f;
    return (uint8_t)(sign | (cr__to_bits(sum) - 0x46800000u));
  }
  rest += 0x7ffffu + (rest >> 20 & 1u);
  return (uint8_t)(sign |
                   (rest - 0x3c000000u) >> 20); /* the exponent's bias changes from 127 to 7 */
}

static float value_of(uint8_t code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  float x = (code & 0x7f) == E4M3_NAN ? NAN
            : exponent                ? ldexpf((float)(8 + mantissa), exponent - 10)
                                      : ldexpf((float)mantissa, -9);
  return code & 0x80 ? -x : x;
}

static void quantize_row_e4m3(uint8_t *codes, float *scale, const float *x, const float *inverse,
                              int64_t n) {
  float factor = 1;
  if (scale) {
    float most = 1e-30f;
    for (int64_t i = 0; i < n; i++) {
      float v = fabsf(x[i] * inverse[i]);
      most = v > most ? v : most;
    }
    *scale = most / 448.0f;
    factor = 1.0f / *scale;
  }
  for (int64_t i = 0; i < n; i++) codes[i] = code_of(x[i] * inverse[i] * factor);
}

/* ---- int8 ---- */

/* Returns the nearest integer, ties to even: adding 1.5 * 2^23 leaves it in the low bits. */
static inline int8_t nearest(float v) {
  v = v > 127.0f ? 127.0f : v;
  v = v < -127.0f ? -127.0f : v;
  int32_t code = (int32_t)(cr__to_bits(v + 12582912.0f) - 0x4b400000u);
  return (int8_t)(v == v ? code : 0);
}

CR_CLONES static void nearest_of(int8_t *restrict codes, const float *restrict x,
                                 const float *restrict inverse, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) codes[i] = nearest(x[i] * inverse[i] * factor);
}

#ifdef HAVE_X86
/* The same 16 at a time. Compilers generate slow code for the narrowing to bytes. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static void
nearest_of_avx512(int8_t *codes, const float *x, const float *inverse, float factor, int64_t n) {
  __m512 most = _mm512_set1_ps(127.0f), least = _mm512_set1_ps(-127.0f),
         all = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 part = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
    __m512 v =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(part, x + i), _mm512_maskz_loadu_ps(part, inverse + i));
    v = _mm512_mul_ps(v, all);
    v = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v); /* nan becomes 0 */
    __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(v, most), least));
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, part, whole);
  }
}
#endif

/* Magnitudes are ordered like their bits as integers, and values that are not finite are the
 * largest. */
CR_CLONES static float largest(const float *x, const float *inverse, int64_t n) {
  int32_t bits = 0;
#pragma omp simd reduction(max : bits)
  for (int64_t i = 0; i < n; i++) {
    int32_t own = (int32_t)(cr__to_bits(x[i] * inverse[i]) & 0x7fffffffu);
    bits = own > bits ? own : bits;
  }
  return bits >= 0x7f800000 ? NAN : cr__from_bits((uint32_t)bits);
}

static void quantize_row_int8(int8_t *codes, float *scale, const float *x, const float *inverse,
                              int64_t n, int lanes) {
  float factor = 1.0f;
  if (scale) {
    float most = largest(x, inverse, n);
    *scale = (most < 1e-30f ? 1e-30f : most) / 127.0f;
    factor = 1.0f / *scale;
  }
#ifdef HAVE_X86
  if (lanes == 16) {
    nearest_of_avx512(codes, x, inverse, factor, n);
    return;
  }
#endif
  (void)lanes;
  nearest_of(codes, x, inverse, factor, n);
}

/* ---- rows ---- */

int cr__quantizer_begin(cr__quantizer *quantizer, cr_tensor *codes, cr_tensor *scale,
                        const cr_tensor *divisor) {
  int64_t n = codes->shape[codes->rank - 1];
  *quantizer = (cr__quantizer){.codes = cr__ptr(codes),
                               .scale = scale ? cr__ptr(scale) : NULL,
                               .width = n,
                               .e4m3 = codes->dtype == CR_U8,
                               .lanes = cr__lanes(),
                               .inverse = malloc((size_t)(n + 1) * sizeof(float))};
  if (!quantizer->inverse) return cr__fail(CR_ENOMEM, "quantize: out of memory");
  const float *d = divisor ? cr__ptr(divisor) : NULL;
  for (int64_t i = 0; i < n; i++) quantizer->inverse[i] = d ? 1.0f / d[i] : 1.0f;
  return CR_OK;
}

void cr__quantizer_end(cr__quantizer *quantizer) { free(quantizer->inverse); }

void cr__quantize_rows(const cr__quantizer *c, int64_t row, int64_t rows, const float *x) {
  int64_t n = c->width;
  for (int64_t r = 0; r < rows; r++, x += n) {
    float *scale = c->scale ? c->scale + row + r : NULL;
    if (c->e4m3)
      quantize_row_e4m3((uint8_t *)c->codes + (row + r) * n, scale, x, c->inverse, n);
    else
      quantize_row_int8((int8_t *)c->codes + (row + r) * n, scale, x, c->inverse, n, c->lanes);
  }
}

int cr__cpu_quantize(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                     const cr_tensor *divisor) {
  cr__quantizer quantizer;
  CR_TRY(cr__quantizer_begin(&quantizer, codes, scale, divisor));
  int64_t n = quantizer.width, rows = n ? cr_numel(codes) / n : cr_numel(scale);
  int64_t batch = n < 1 || n > CR__CHUNK ? 1 : CR__CHUNK / n;
  int threads = cr__threads_for(2 * rows * n);
  cr__view from = cr__view_of(x, x->rank, x->shape);
  float *buffers = malloc((size_t)(threads * batch * n + 1) * sizeof *buffers);
  int rc = buffers ? CR_OK : cr__fail(CR_ENOMEM, "quantize: out of memory");
#pragma omp parallel for schedule(static) num_threads(threads) if (rc >= 0)
  for (int64_t r = 0; r < rows; r += batch) {
    if (rc < 0) continue;
    int64_t some = rows - r < batch ? rows - r : batch;
    float *mine = buffers + omp_get_thread_num() * batch * n;
    cr__quantize_rows(&quantizer, r, some, cr__load_f32(&from, r * n, some * n, mine));
  }
  free(buffers);
  cr__quantizer_end(&quantizer);
  return rc;
}

/* ---- codes to values ---- */

bool cr__int4(const cr_tensor *codes, const cr_tensor *scale) {
  return codes->dtype == CR_U8 && scale && scale->rank == codes->rank;
}

static void values_int4(float *out, const cr_tensor *codes, const cr_tensor *scale) {
  int64_t bytes = codes->shape[codes->rank - 1], n = 2 * bytes;
  int64_t groups = scale->shape[scale->rank - 1], rows = cr_numel(codes) / bytes;
  const uint8_t *c = cr__ptr(codes);
  const float *s = cr__ptr(scale);
#pragma omp parallel for num_threads(cr__threads_for(rows *n))
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < n; k++) {
      int32_t four = c[r * bytes + k / 2] >> (k % 2 * 4) & 15;
      out[r * n + k] = (float)((four ^ 8) - 8) * s[r * groups + k / CR_INT4_GROUP];
    }
}

void cr__code_values(float *out, const cr_tensor *codes, const cr_tensor *scale) {
  int64_t total = cr_numel(codes);
  if (total == 0) return;
  if (cr__int4(codes, scale)) {
    values_int4(out, codes, scale);
    return;
  }
  int64_t rows = scale ? cr_numel(scale) : 1, n = total / rows;
  const uint8_t *u = cr__ptr(codes);
  const float *s = scale ? cr__ptr(scale) : NULL;
  float table[256];
  for (int32_t i = 0; i < 256; i++)
    table[i] = codes->dtype == CR_I8 ? (float)(int8_t)i : value_of((uint8_t)i);
#pragma omp parallel for num_threads(cr__threads_for(total))
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < n; k++) out[r * n + k] = table[u[r * n + k]] * (s ? s[r] : 1.0f);
}

int cr__cpu_dequantize(cr_tensor *out, const cr_tensor *codes, const cr_tensor *scale,
                       const cr_tensor *divisor) {
  cr__operands op = {0};
  cr_tensor *result = cr__result(&op, out, CR_F32);
  if (result) {
    float *p = cr__ptr(result);
    cr__code_values(p, codes, scale);
    if (divisor) {
      const float *d = cr__ptr(divisor);
      int64_t n = result->shape[result->rank - 1], total = cr_numel(result);
      for (int64_t i = 0; i < total; i++) p[i] *= d[i % n];
    }
  }
  return cr__operands_end(&op, out, op.rc);
}
