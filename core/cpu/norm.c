/* Group norm and layer norm on the CPU.
 *
 * Group norm sees x [N ... C] as N samples of M rows of C channels. Per channel it sums d and d^2,
 * where d is x minus an estimate of the mean, so that a large mean does not cancel the variance.
 * The sums are in f32 over at most 32 rows and in f64 beyond. The channels of a group are then
 * combined in f64 (Chan et al. 1979). The result is (x - mean) * scale + shift per channel; the
 * part of the mean that f32 cannot represent goes into the shift. f64 tensors use a plain loop in
 * f64. Threads share either the samples or the rows of a large sample. Partial sums are combined in
 * a fixed order, so the result does not depend on timing. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* allows FMA; see vmath.h */
#endif
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/cpu.h"
#include "cpu/quant.h"
#include "cpu/view.h"

enum { ROWS_IN_F32 = 32, BLOCK_ELEMENTS = 16384 };

/* ---- group norm ---- */

typedef struct {
  cr__view x, out, before; /* before.base NULL: no bias_before */
  int64_t samples, rows, channels, groups;
  int64_t block_rows, blocks; /* of a sample */
  double eps;
  bool silu;
  const double *weight, *bias;    /* [C] */
  const cr__quantizer *quantizer; /* quantizes the result; NULL: the result goes to `out` */
} group_plan;

/* Adds d and d^2 of the rows to sums [2][C]. scratch has [2][C] floats. */
CR_CLONES static void sum_rows(const float *x, int64_t rows, int64_t c, const float *first,
                               double *sums, float *scratch) {
  float *a = scratch, *b = scratch + c;
  for (int64_t r0 = 0; r0 < rows; r0 += ROWS_IN_F32) {
    int64_t r1 = r0 + ROWS_IN_F32 < rows ? r0 + ROWS_IN_F32 : rows;
    memset(scratch, 0, (size_t)(2 * c) * sizeof *scratch);
    for (int64_t r = r0; r < r1; r++) {
      const float *p = x + r * c;
#pragma omp simd
      for (int64_t i = 0; i < c; i++) {
        float d = p[i] - first[i];
        a[i] += d;
        b[i] += d * d;
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < 2 * c; i++) sums[i] += (double)scratch[i];
  }
}

/* out = (x - mean) scale + shift; table has mean, scale and shift, [3][C]. */
CR_CLONES static void apply_rows(float *out, const float *x, int64_t rows, int64_t c,
                                 const float *table, bool silu) {
  const float *mean = table, *scale = table + c, *shift = table + 2 * c;
  for (int64_t r = 0; r < rows; r++) {
    const float *p = x + r * c;
    float *q = out + r * c;
    if (silu) {
#pragma omp simd
      for (int64_t i = 0; i < c; i++) {
        q[i] = cr__silu_f32((p[i] - mean[i]) * scale[i] + shift[i]);
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < c; i++) q[i] = (p[i] - mean[i]) * scale[i] + shift[i];
    }
  }
}

/* Estimates the mean of each channel from a few rows spread over the sample. */
static void sample_shift(const group_plan *p, int64_t sample, float *first, float *scratch) {
  int64_t c = p->channels, rows = p->rows < 16 ? p->rows : 16;
  memset(first, 0, (size_t)c * sizeof *first);
  for (int64_t k = 0; k < rows; k++) {
    int64_t r = k * p->rows / rows;
    const float *x = cr__load_f32(&p->x, (sample * p->rows + r) * c, c, scratch);
    for (int64_t i = 0; i < c; i++) first[i] += x[i] / (float)rows;
  }
}

/* Computes the table of apply_rows from the sums of the channels. */
static void make_table(const group_plan *p, int64_t sample, const double *sums, const float *first,
                       float *table) {
  int64_t c = p->channels, size = c / p->groups;
  double m = (double)p->rows;
  for (int64_t g = 0; g < p->groups; g++) {
    double mean = 0, square = 0;
    for (int pass = 0; pass < 2; pass++) { /* first the mean, then the variance around it */
      for (int64_t i = g * size; i < (g + 1) * size; i++) {
        double before = 0, buffer;
        if (p->before.base) before = *cr__load_f64(&p->before, sample * c + i, 1, &buffer);
        double delta = sums[i] / m;
        double own = (double)first[i] + before + delta;
        if (pass == 0) {
          mean += own / (double)size;
        } else {
          square += sums[c + i] - m * delta * delta + m * (own - mean) * (own - mean);
        }
      }
    }
    double variance = square / (m * (double)size);
    double inverse = 1.0 / sqrt((variance > 0 ? variance : variance < 0 ? 0 : variance) + p->eps);
    for (int64_t i = g * size; i < (g + 1) * size; i++) {
      double before = 0, buffer;
      if (p->before.base) before = *cr__load_f64(&p->before, sample * c + i, 1, &buffer);
      double scale = inverse * p->weight[i];
      float high = (float)(mean - before);
      table[i] = high;
      table[c + i] = (float)scale;
      table[2 * c + i] = (float)(p->bias[i] - (mean - before - (double)high) * scale);
    }
  }
}

/* Quantizes these rows of x as the rows from `row` on, a few at a time, so that their results are
 * still in the L1 cache. */
static void quantize_block(const group_plan *p, int64_t row, int64_t rows, const float *x,
                           const float *table, float *scratch) {
  int64_t c = p->channels, some = CR__CHUNK / c < 1 ? 1 : CR__CHUNK / c;
  for (int64_t r = 0; r < rows; r += some) {
    int64_t count = rows - r < some ? rows - r : some;
    apply_rows(scratch, x + r * c, count, c, table, p->silu);
    cr__quantize_rows(p->quantizer, row + r, count, scratch);
  }
}

/* Processes a block of rows of a sample: sums them, or, with a table, computes their result. */
static void do_block(const group_plan *p, int64_t sample, int64_t block, const float *first,
                     double *sums, const float *table, float *scratch) {
  int64_t r0 = block * p->block_rows;
  int64_t rows = p->rows - r0 < p->block_rows ? p->rows - r0 : p->block_rows;
  int64_t start = (sample * p->rows + r0) * p->channels, n = rows * p->channels;
  float *in = scratch + 2 * p->channels, *to = in + p->block_rows * p->channels;
  const float *x = cr__load_f32(&p->x, start, n, in);
  if (table == NULL) {
    sum_rows(x, rows, p->channels, first, sums, scratch);
  } else {
    if (p->quantizer) {
      quantize_block(p, sample * p->rows + r0, rows, x, table, to);
      return;
    }
    float *y = cr__target_f32(&p->out, start, to);
    apply_rows(y, x, rows, p->channels, table, p->silu);
    cr__store_f32(&p->out, start, n, y);
  }
}

static int group_norm_f32(const group_plan *p) {
  int64_t c = p->channels;
  int threads = cr__threads_for(p->samples * p->rows * c * 2);
  bool whole = p->samples >= threads && p->samples > 1; /* a thread takes whole samples */
  int64_t scratch_size = 2 * c + 2 * p->block_rows * c;
  int64_t teams = whole ? threads : 1;
  float *scratch = malloc((size_t)(threads * scratch_size) * sizeof *scratch);
  float *tables = calloc((size_t)(teams * 4 * c), sizeof *tables);
  double *sums = calloc((size_t)(teams * p->blocks * 2 * c), sizeof *sums);
  if (!scratch || !tables || !sums) {
    free(scratch);
    free(tables);
    free(sums);
    return cr__fail(CR_ENOMEM, "group_norm: out of memory");
  }
  /* One parallel region covers both distributions: either each thread takes samples of its own, or
   * all threads process a sample together and share its blocks. */
#pragma omp parallel num_threads(threads)
  {
    int64_t me = omp_get_thread_num(), count = omp_get_num_threads();
    int64_t team = whole ? me : 0;
    float *mine = scratch + me * scratch_size;
    float *first = tables + team * 4 * c, *table = first + c;
    double *sum = sums + team * p->blocks * 2 * c;
    for (int64_t s = whole ? me : 0; s < p->samples; s += whole ? count : 1) {
      int64_t b0 = whole ? 0 : me, step = whole ? 1 : count;
      if (whole || me == 0) sample_shift(p, s, first, mine);
      if (!whole) {
#pragma omp barrier
      }
      for (int64_t b = b0; b < p->blocks; b += step) {
        memset(sum + b * 2 * c, 0, (size_t)(2 * c) * sizeof *sum);
        do_block(p, s, b, first, sum + b * 2 * c, NULL, mine);
      }
      if (!whole) {
#pragma omp barrier
      }
      if (whole || me == 0) {
        for (int64_t b = 1; b < p->blocks; b++) {
          for (int64_t i = 0; i < 2 * c; i++) sum[i] += sum[b * 2 * c + i];
        }
        make_table(p, s, sum, first, table);
      }
      if (!whole) {
#pragma omp barrier
      }
      for (int64_t b = b0; b < p->blocks; b += step) do_block(p, s, b, first, NULL, table, mine);
      if (!whole) {
#pragma omp barrier
      }
    }
  }
  free(scratch);
  free(tables);
  free(sums);
  return CR_OK;
}

static double silu_f64(double y) { return y < -750 ? -0.0 : y / (1 + exp(-y)); }

static int group_norm_f64(const group_plan *p) {
  int64_t c = p->channels, size = c / p->groups;
  int64_t tasks = p->samples * p->groups;
#pragma omp parallel for schedule(static) num_threads(cr__threads_for(p->samples * p->rows * c))
  for (int64_t task = 0; task < tasks; task++) {
    int64_t s = task / p->groups, c0 = task % p->groups * size;
    double mean = 0, square = 0, count = (double)(p->rows * size), inverse = 0;
    for (int pass = 0; pass < 3; pass++) {
      for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t i = c0; i < c0 + size; i++) {
          double buffer, before = 0;
          int64_t at = (s * p->rows + r) * c + i;
          if (p->before.base) before = *cr__load_f64(&p->before, s * c + i, 1, &buffer);
          double x = *cr__load_f64(&p->x, at, 1, &buffer) + before;
          if (pass == 0) {
            mean += x / count;
          } else if (pass == 1) {
            square += (x - mean) * (x - mean);
          } else {
            double y = (x - mean) * inverse * p->weight[i] + p->bias[i];
            y = p->silu ? silu_f64(y) : y;
            cr__store_f64(&p->out, at, 1, &y);
          }
        }
      }
      if (pass == 1) inverse = 1 / sqrt(square / count + p->eps);
    }
  }
  return CR_OK;
}

/* Loads a parameter [n] as doubles; NULL stands for `value`. */
static void load_parameter(double *to, const cr_tensor *from, int64_t n, double value) {
  if (from == NULL) {
    for (int64_t i = 0; i < n; i++) to[i] = value;
    return;
  }
  cr__view v = cr__view_of(from, from->rank, from->shape);
  const double *p = cr__load_f64(&v, 0, n, to);
  if (p != to) memcpy(to, p, (size_t)n * sizeof *p);
}

/* Writes to `out`, or quantizes if there is a quantizer. */
static int group_norm(cr_tensor *out, const cr__quantizer *quantizer, const cr_tensor *x,
                      int32_t groups, const cr_tensor *weight, const cr_tensor *bias, double eps,
                      int32_t silu, const cr_tensor *bias_before) {
  if (cr_numel(x) == 0) return CR_OK;
  int64_t c = x->shape[x->rank - 1];
  double *parameters = malloc((size_t)(2 * c) * sizeof *parameters);
  if (!parameters) return cr__fail(CR_ENOMEM, "group_norm: out of memory");
  load_parameter(parameters, weight, c, 1);
  load_parameter(parameters + c, bias, c, 0);
  group_plan p = {.x = cr__view_of(x, x->rank, x->shape),
                  .samples = x->shape[0],
                  .rows = cr_numel(x) / x->shape[0] / c,
                  .channels = c,
                  .groups = groups,
                  .eps = eps,
                  .silu = silu != 0,
                  .weight = parameters,
                  .bias = parameters + c,
                  .quantizer = quantizer};
  if (out) p.out = cr__view_of(out, x->rank, x->shape);
  if (bias_before) p.before = cr__view_of(bias_before, bias_before->rank, bias_before->shape);
  p.block_rows = BLOCK_ELEMENTS / c < 1 ? 1 : BLOCK_ELEMENTS / c;
  if (p.block_rows > p.rows) p.block_rows = p.rows;
  p.blocks = (p.rows + p.block_rows - 1) / p.block_rows;
  int rc = x->dtype == CR_F64 ? group_norm_f64(&p) : group_norm_f32(&p);
  free(parameters);
  return rc;
}

int cr__cpu_group_norm(cr_tensor *out, const cr_tensor *x, int32_t groups, const cr_tensor *weight,
                       const cr_tensor *bias, double eps, int32_t silu,
                       const cr_tensor *bias_before) {
  return group_norm(out, NULL, x, groups, weight, bias, eps, silu, bias_before);
}

int cr__cpu_quant_group_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x, int32_t groups,
                             const cr_tensor *weight, const cr_tensor *bias, double eps,
                             int32_t silu, const cr_tensor *bias_before, const cr_tensor *divisor) {
  cr__quantizer quantizer;
  CR_TRY(cr__quantizer_begin(&quantizer, codes, scale, divisor));
  int rc = group_norm(NULL, &quantizer, x, groups, weight, bias, eps, silu, bias_before);
  cr__quantizer_end(&quantizer);
  return rc;
}

/* ---- layer norm ---- */

/* Pieces of a row are summed in f32 lanes and combined in f64. */
static inline double sum_f32(const float *x, int64_t n) {
  double total = 0;
  for (int64_t i0 = 0; i0 < n; i0 += 512) {
    int64_t i1 = i0 + 512 < n ? i0 + 512 : n;
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (int64_t i = i0; i < i1; i++) a += x[i];
    total += (double)a;
  }
  return total;
}

static inline double spread_f32(const float *x, int64_t n, float mean) {
  double total = 0;
  for (int64_t i0 = 0; i0 < n; i0 += 512) {
    int64_t i1 = i0 + 512 < n ? i0 + 512 : n;
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (int64_t i = i0; i < i1; i++) a += (x[i] - mean) * (x[i] - mean);
    total += (double)a;
  }
  return total;
}

/* Processes many rows per call, since a row may have only 32 elements. after: like x, or NULL. */
CR_CLONES static void layer_rows_f32(float *out, const float *x, int64_t rows, int64_t n,
                                     double eps, const float *weight, const float *bias,
                                     const float *after) {
  for (int64_t r = 0; r < rows; r++, x += n, out += n) {
    double mean = sum_f32(x, n) / (double)n;
    float high = (float)mean, low = (float)(mean - (double)high);
    double variance = spread_f32(x, n, high) / (double)n - (double)low * (double)low;
    float inverse = (float)(1 / sqrt((variance < 0 ? 0 : variance) + eps));
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = ((x[i] - high) - low) * inverse * weight[i] + bias[i];
    if (after) {
      const float *more = after + r * n;
#pragma omp simd
      for (int64_t i = 0; i < n; i++) out[i] += more[i];
    }
  }
}

static void layer_row_f64(double *out, const double *x, int64_t n, double eps, const double *weight,
                          const double *bias) {
  double mean = 0, square = 0;
  for (int64_t i = 0; i < n; i++) mean += x[i];
  mean /= (double)n;
  for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  double inverse = 1 / sqrt(square / (double)n + eps);
  for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

/* Writes to `out`, or quantizes if there is a quantizer. */
static int layer_norm(cr_tensor *out, const cr__quantizer *quantizer, const cr_tensor *x,
                      const cr_tensor *weight, const cr_tensor *bias, double eps,
                      const cr_tensor *after) {
  int64_t total = cr_numel(x);
  if (total == 0) return CR_OK;
  int64_t n = x->shape[x->rank - 1], rows = total / n;
  cr__view from = cr__view_of(x, x->rank, x->shape), to = {0}, more = {0};
  if (out) to = cr__view_of(out, x->rank, x->shape);
  if (after) more = cr__view_of(after, x->rank, x->shape);
  bool wide = x->dtype == CR_F64;
  int threads = cr__threads_for(total * 2);
  /* Both parameters in both types, and three buffers of some rows for each thread. */
  int64_t batch = CR__CHUNK / n < 1 ? 1 : CR__CHUNK / n;
  double *memory = malloc((size_t)((4 + 3 * threads * batch) * n) * sizeof *memory);
  if (!memory) return cr__fail(CR_ENOMEM, "layer_norm: out of memory");
  double *weight_f64 = memory, *bias_f64 = memory + n;
  float *weight_f32 = (float *)(memory + 2 * n), *bias_f32 = (float *)(memory + 3 * n);
  load_parameter(weight_f64, weight, n, 1);
  load_parameter(bias_f64, bias, n, 0);
  for (int64_t i = 0; i < n; i++) {
    weight_f32[i] = (float)weight_f64[i];
    bias_f32[i] = (float)bias_f64[i];
  }
#pragma omp parallel num_threads(threads)
  {
    double *a = memory + (4 + 3 * omp_get_thread_num() * batch) * n;
    double *b = a + batch * n, *c = b + batch * n;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r += batch) {
      int64_t some = rows - r < batch ? rows - r : batch, at = r * n, m = some * n;
      if (wide) {
        double *y = cr__target_f64(&to, at, b);
        const double *u = cr__load_f64(&from, at, m, a);
        for (int64_t k = 0; k < some; k++) {
          layer_row_f64(y + k * n, u + k * n, n, eps, weight_f64, bias_f64);
        }
        if (after) {
          const double *z = cr__load_f64(&more, at, m, c);
          for (int64_t i = 0; i < m; i++) y[i] += z[i];
        }
        cr__store_f64(&to, at, m, y);
      } else {
        float *y = quantizer ? (float *)b : cr__target_f32(&to, at, (float *)b);
        const float *u = cr__load_f32(&from, at, m, (float *)a);
        const float *z = after ? cr__load_f32(&more, at, m, (float *)c) : NULL;
        layer_rows_f32(y, u, some, n, eps, weight_f32, bias_f32, z);
        if (quantizer)
          cr__quantize_rows(quantizer, r, some, y);
        else
          cr__store_f32(&to, at, m, y);
      }
    }
  }
  free(memory);
  return CR_OK;
}

int cr__cpu_layer_norm(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight,
                       const cr_tensor *bias, double eps, const cr_tensor *after) {
  return layer_norm(out, NULL, x, weight, bias, eps, after);
}

int cr__cpu_quant_layer_norm(cr_tensor *codes, cr_tensor *scale, const cr_tensor *x,
                             const cr_tensor *weight, const cr_tensor *bias, double eps,
                             const cr_tensor *after, const cr_tensor *divisor) {
  cr__quantizer quantizer;
  CR_TRY(cr__quantizer_begin(&quantizer, codes, scale, divisor));
  int rc = layer_norm(NULL, &quantizer, x, weight, bias, eps, after);
  cr__quantizer_end(&quantizer);
  return rc;
}
