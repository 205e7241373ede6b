/* Attention on the CPU: softmax(scale q k^T + mask) v without storing the scores (Dao et al. 2022).
 * Tiles of 32 queries run over the keys in blocks and keep a running maximum and sum.
 *
 * The kernel (attention_kernel.h) is compiled for several instruction sets, and one is chosen at
 * run time. Threads share the leading dimensions and the heads, and ranges of queries if those are
 * few. If there are few queries and keys (the frames at one position of a video, whose rows lie far
 * apart), the rows of all heads are gathered first, since rows a power of two apart would evict
 * each other from the cache; f16 and bf16 rows are gathered wherever they fit into the cache, which
 * converts them on the way. For bf16, both products use bf16 if the processor supports it and there
 * are more than a few keys; the softmax weights are then rounded to bf16. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/vmath.h"
#include "cpu/dnnl.h"
#include "cpu/lanes.h"
#include "cpu/operands.h"

enum {
  KEYS = 128,                /* of a block, so that its scores fit into the L1 cache */
  DEPTH = 128,               /* of a head's size per product, for the same reason */
  MOST_LANES = 16,           /* floats in the widest vector */
  GATHER_FLOATS = 65536,     /* most floats of gathered rows, so that they fit into the L2 cache */
  GATHER_FLOATS_16 = 131072, /* the same for f16 and bf16 rows */
  GATHER_ROWS = 64,
  FEW_KEYS = 32 /* bf16's packing takes longer than its products save */
};

/* One head of one batch entry: rows of q [T d], k [S d], v [S dv], out [T dv] with these steps
 * between them; mask [T S] with any steps, or NULL. */
typedef struct head {
  int64_t t, s, d, dv;
  const float *q, *k, *v, *mask;
  float *out;
  int64_t q_step, k_step, v_step, out_step, mask_t, mask_s;
  float scale; /* times log2(e) */
} head;

/* The scratch memory of a thread. */
typedef struct work {
  float *keys, *values, *queries, *scores, *result, *gathered;
} work;

/* scores[j][i] += log2(e) * mask, for `count` queries from `first` on and `keys` keys from `key`
 * on. */
static void add_mask(const head *h, float *scores, int64_t n, int64_t first, int64_t count,
                     int64_t key, int64_t keys) {
  for (int64_t j = 0; j < keys; j++) {
    const float *m = h->mask + first * h->mask_t + (key + j) * h->mask_s;
    for (int64_t i = 0; i < count; i++) scores[j * n + i] += 1.44269504f * m[i * h->mask_t];
  }
}

#define LANES 4
#include "cpu/attention_kernel.h"
#ifdef HAVE_X86
#include <immintrin.h>

#define LANES 8
#include "cpu/attention_kernel.h"
#define LANES 16
#include "cpu/attention_kernel.h"
#define BF16
#define LANES 16
#include "cpu/attention_kernel.h"
#endif

typedef void attend_fn(const head *h, const work *w, int64_t first, int64_t last);

static attend_fn *choose(int32_t dtype) {
#ifdef HAVE_X86
  if (dtype == CR_BF16 && cr__dnnl_bf16()) return bf16_attend;
  if (cr__lanes() == 16) return avx512_attend;
  if (cr__lanes() == 8) return avx2_attend;
#endif
  return base_attend;
}

/* ---- distribution to threads ---- */

typedef struct problem {
  head h; /* the first head; steps and sizes hold for all heads */
  const cr_tensor *q, *k, *v, *mask, *out;
  int32_t heads;
  bool gather;
} problem;

/* Returns the offset of entry i of q's leading dimensions in t. */
static int64_t entry_at(const cr_tensor *t, const cr_tensor *q, int64_t i) {
  int64_t at = 0;
  for (int32_t k = q->rank - 3; k >= 0; k--) {
    int32_t own = k - (q->rank - t->rank);
    if (own >= 0 && t->shape[own] != 1) at += i % q->shape[k] * t->stride[own];
    i /= q->shape[k];
  }
  return at;
}

/* Returns the first head of entry i. */
static head head_at(const problem *p, int64_t i) {
  head h = p->h;
  h.q += entry_at(p->q, p->q, i);
  h.k += entry_at(p->k, p->q, i);
  h.v += entry_at(p->v, p->q, i);
  h.out += entry_at(p->out, p->q, i);
  if (h.mask) h.mask += entry_at(p->mask, p->q, i);
  return h;
}

/* Gathers the rows of entry i of t, `step` apart, as dense f32. */
static const float *gather_rows(float **to, const cr_tensor *t, const cr_tensor *q, int64_t i,
                                int64_t rows, int64_t step, int64_t width) {
  float *start = *to;
  int64_t size = cr_dtype_size(t->dtype);
  const char *from = (const char *)cr__ptr(t) + entry_at(t, q, i) * size;
  for (int64_t r = 0; r < rows; r++)
    cr__to_f32(start + r * width, from + r * step * size, t->dtype, width);
  *to += rows * width;
  return start;
}

static void scatter_rows(const cr_tensor *t, const cr_tensor *q, int64_t i, const float *from,
                         int64_t rows, int64_t step, int64_t width) {
  int64_t size = cr_dtype_size(t->dtype);
  char *to = (char *)cr__ptr(t) + entry_at(t, q, i) * size;
  for (int64_t r = 0; r < rows; r++)
    cr__from_f32(to + r * step * size, from + r * width, t->dtype, width);
}

/* Computes heads first_head ... last_head - 1 of entry i for queries first ... last - 1. */
static void run(const problem *p, attend_fn *attend, const work *w, int64_t i, int32_t first_head,
                int32_t last_head, int64_t first, int64_t last) {
  head h = p->h;
  int64_t width = h.dv * p->heads;
  if (p->gather) {
    float *room = w->gathered;
    h.q = gather_rows(&room, p->q, p->q, i, h.t, h.q_step, h.d * p->heads);
    h.k = gather_rows(&room, p->k, p->q, i, h.s, h.k_step, h.d * p->heads);
    h.v = gather_rows(&room, p->v, p->q, i, h.s, h.v_step, width);
    h.q_step = h.k_step = h.d * p->heads;
    h.v_step = h.out_step = width;
    h.out = room;
    if (h.mask) h.mask += entry_at(p->mask, p->q, i);
  } else {
    h = head_at(p, i);
  }
  const float *result = h.out;
  h.q += first_head * h.d, h.k += first_head * h.d;
  h.v += first_head * h.dv, h.out += first_head * h.dv;
  for (int32_t k = first_head; k < last_head; k++) {
    attend(&h, w, first, last);
    h.q += h.d, h.k += h.d, h.v += h.dv, h.out += h.dv;
  }
  if (p->gather) scatter_rows(p->out, p->q, i, result, h.t, p->h.out_step, width);
}

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Floats of the rows of one entry, of all heads. */
static int64_t gathered_floats(const problem *p) {
  return p->heads * (p->h.t * (p->h.d + p->h.dv) + p->h.s * (p->h.d + p->h.dv));
}

static int64_t work_floats(const problem *p) {
  int64_t n = 2 * MOST_LANES, d = p->h.d, dv = round_up(p->h.dv, 8), s = round_up(p->h.s, 8);
  return round_up(s * d, 16) + round_up(s * dv, 16) + d * n + KEYS * n + dv * n +
         (p->gather ? round_up(gathered_floats(p), 16) : 0);
}

static work work_at(const problem *p, float *memory) {
  int64_t n = 2 * MOST_LANES, d = p->h.d, dv = round_up(p->h.dv, 8), s = round_up(p->h.s, 8);
  work w = {.keys = memory};
  w.values = w.keys + round_up(s * d, 16);
  w.queries = w.values + round_up(s * dv, 16);
  w.scores = w.queries + d * n;
  w.result = w.scores + KEYS * n;
  w.gathered = w.result + dv * n;
  return w;
}

static int64_t entries_of(const problem *p) {
  int64_t entries = 1;
  for (int32_t k = 0; k < p->q->rank - 2; k++) entries *= p->q->shape[k];
  return entries;
}

/* Whether an entry's rows are gathered first. Sizes and steps must be set. */
static bool gathers(const problem *p) {
  int64_t width = p->h.d * p->heads;
  bool apart = p->h.q_step != width || p->h.k_step != width || p->h.v_step != p->h.dv * p->heads;
  if (p->q->dtype != CR_F32 && entries_of(p) >= 4 * cr_threads())
    return gathered_floats(p) <= GATHER_FLOATS_16;
  return apart && p->h.t <= GATHER_ROWS && p->h.s <= GATHER_ROWS &&
         gathered_floats(p) <= GATHER_FLOATS;
}

static int attention(problem *p, int32_t dtype) {
  attend_fn *attend = choose(p->h.s <= FEW_KEYS ? CR_F32 : dtype);
  int64_t entries = entries_of(p);
  int32_t threads = cr_threads();
  /* A unit of work is an entry, a head of it, or a range of a head's queries. */
  int32_t parts = p->gather || entries >= 16 * threads ? 1 : p->heads;
  int64_t ranges = 1, tiles = (p->h.t + 2 * MOST_LANES - 1) / (2 * MOST_LANES);
  if (!p->gather && entries * parts < 4 * threads) {
    ranges = (4 * threads + entries * parts - 1) / (entries * parts);
    if (ranges > tiles) ranges = tiles;
  }
  int64_t range = (tiles + ranges - 1) / ranges * 2 * MOST_LANES;
  int64_t units = entries * parts * ranges;
  if (units < threads) threads = (int32_t)units;
  int64_t floats = round_up(work_floats(p), 1024);
  cr_storage *memory = cr__storage_new(threads * floats * (int64_t)sizeof(float), CR_CPU);
  if (memory == NULL) return CR_ENOMEM;
#pragma omp parallel num_threads(threads)
  {
    work w = work_at(p, (float *)memory->data + omp_get_thread_num() * floats);
#pragma omp for schedule(dynamic, units >= 64 * threads ? units / (16 * threads) : 1)
    for (int64_t u = 0; u < units; u++) {
      int64_t first = u % ranges * range, i = u / ranges / parts;
      int64_t last = first + range < p->h.t ? first + range : p->h.t;
      int32_t part = (int32_t)(u / ranges % parts);
      if (first < last)
        run(p, attend, &w, i, parts > 1 ? part : 0, parts > 1 ? part + 1 : p->heads, first, last);
    }
  }
  cr__release(memory);
  return CR_OK;
}

static void set_steps(problem *p) {
  int32_t n = p->q->rank;
  p->h.q_step = p->q->stride[n - 2], p->h.k_step = p->k->stride[n - 2];
  p->h.v_step = p->v->stride[n - 2], p->h.out_step = p->out->stride[n - 2];
}

int cr__cpu_attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                      int32_t heads, double scale, const cr_tensor *mask) {
  cr__operands op = {0};
  int32_t n = q->rank;
  problem p = {.q = q, .k = k, .v = v, .mask = mask, .out = out, .heads = heads};
  p.h = (head){.t = q->shape[n - 2],
               .s = k->shape[n - 2],
               .d = q->shape[n - 1] / heads,
               .dv = v->shape[n - 1] / heads,
               .scale = (float)(scale * 1.44269504088896340736)};
  set_steps(&p);
  bool rows_dense = out->shape[n - 1] == 1 || out->stride[n - 1] == 1;
  p.gather = rows_dense && gathers(&p);
  if (!p.gather) {
    if (q->dtype != CR_F32) {
      p.q = cr__operand(&op, q, CR_F32);
      p.k = cr__operand(&op, k, CR_F32);
      p.v = cr__operand(&op, v, CR_F32);
    }
    if (out->dtype != CR_F32 || !rows_dense) p.out = cr__result(&op, out, CR_F32);
    if (op.rc < 0) return cr__operands_end(&op, out, op.rc);
    set_steps(&p);
    p.h.q = cr__ptr(p.q), p.h.k = cr__ptr(p.k), p.h.v = cr__ptr(p.v);
    p.h.out = cr__ptr(p.out);
  }
  if (mask) {
    int32_t r = mask->rank;
    p.h.mask = cr__ptr(mask);
    p.h.mask_s = r >= 1 && mask->shape[r - 1] != 1 ? mask->stride[r - 1] : 0;
    p.h.mask_t = r >= 2 && mask->shape[r - 2] != 1 ? mask->stride[r - 2] : 0;
  }
  return cr__operands_end(&op, out, attention(&p, q->dtype));
}
