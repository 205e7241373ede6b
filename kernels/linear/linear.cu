/* Matrix products: linear and matmul of the table.
 *
 * Both fold their tensors into as few GEMMs (linear.h) as their strides allow. Rows and leading
 * dimensions are merged where all operands have matching steps. The longest dimension over which b
 * stays the same becomes the rows, the longest of the others becomes the batch, and what is left is
 * a loop here. An operand is copied only if neither of its last two dimensions is dense, or if its
 * rows repeat; a GEMM so small that the plain kernel is done sooner than the copy does without.
 *
 * Each GEMM goes to the library (or to our own kernel where that is faster, gemm_hopper.cu) with
 * all steps that its epilogue takes; the rest is one more kernel. What the library refuses is done
 * by our plain kernel. */
#include <string.h>

#include "linear/linear.h"

/* The tensors of an operation: a [... K]; b with [K N] at the end and no leading dimensions beyond
 * out's; out [... N]; residual like out, or NULL. */
typedef struct operands {
  const cr_tensor *a, *out, *residual;
  const cr_tensor *b;
  int64_t b_row, b_column; /* steps of [K N]; for linear it is a transposed weight */
  int32_t b_leading;       /* leading dimensions of b */
} operands;

/* The dimensions of out but its last, with their step in each operand. */
typedef struct outer {
  int32_t n;
  int64_t size[CR_MAX_RANK], a[CR_MAX_RANK], b[CR_MAX_RANK], out[CR_MAX_RANK],
      residual[CR_MAX_RANK];
} outer;

/* The step in t of dimension i of `rank`; t's own `leading` dimensions are the last of these. */
static int64_t step_in(const cr_tensor *t, int32_t leading, int32_t i, int32_t rank) {
  int32_t k = i - (rank - leading);
  return k < 0 || t->shape[k] == 1 ? 0 : t->stride[k];
}

static outer outer_of(const operands *o) {
  outer l = {};
  int32_t rank = o->out->rank - 1;
  for (int32_t i = 0; i < rank; i++) {
    int64_t size = o->out->shape[i];
    if (size == 1) continue;
    int64_t a = step_in(o->a, o->a->rank - 1, i, rank);
    /* b has no dimension for the rows, which are the last of these dimensions. */
    int64_t b = o->b_leading && i < rank - 1 ? step_in(o->b, o->b_leading, i, rank - 1) : 0;
    int64_t out = o->out->stride[i];
    int64_t residual = o->residual ? o->residual->stride[i] : 0;
    int32_t last = l.n - 1;
    if (last < 0 || l.a[last] != a * size || l.b[last] != b * size || l.out[last] != out * size ||
        l.residual[last] != residual * size)
      l.size[last = l.n++] = 1;
    l.size[last] *= size;
    l.a[last] = a, l.b[last] = b, l.out[last] = out, l.residual[last] = residual;
  }
  return l;
}

static void outer_remove(outer *l, int32_t k) {
  for (int32_t i = k; i + 1 < l->n; i++) {
    l->size[i] = l->size[i + 1];
    l->a[i] = l->a[i + 1], l->b[i] = l->b[i + 1];
    l->out[i] = l->out[i + 1], l->residual[i] = l->residual[i + 1];
  }
  l->n--;
}

/* Whether the library can read x [rows columns], as it is or transposed. */
static bool readable(int64_t rows, int64_t columns, int64_t row_step, int64_t column_step) {
  crk_matrix x = {NULL, row_step, column_step, 0}, turned = {NULL, column_step, row_step, 0};
  return crk_rows_dense(&x, rows, columns) || crk_rows_dense(&turned, columns, rows);
}

/* Whether the plain kernel is no slower than a copy and the library's GEMM. */
static bool is_small(const cr_tensor *out, int64_t k) {
  return k <= 1024 && cr_numel(out) * k <= 1 << 20;
}

/* The dimension that becomes the rows: the longest that b does not have, and (unless `any_steps`)
 * that a and out have as rows with dense columns; -1 if there is none. `*wanted`: some dimension is
 * not in b. */
static int32_t choose_rows(const outer *l, const crk_gemm *p, bool any_steps, bool *wanted) {
  int32_t best = -1;
  *wanted = false;
  for (int32_t i = 0; i < l->n; i++) {
    if (l->b[i] != 0) continue;
    *wanted = true;
    crk_matrix out = {NULL, l->out[i], p->out.column_step, 0};
    bool taken = any_steps || (readable(l->size[i], p->k, l->a[i], p->a.column_step) &&
                               crk_rows_dense(&out, l->size[i], p->n));
    if (taken && (best < 0 || l->size[i] > l->size[best])) best = i;
  }
  return best;
}

/* ---- one GEMM ---- */

/* The first `steps` of p's bias, activation and residual are fused if the library takes them, else
 * none is. The rest is one pass, which reads the residual after y is written. */
static int gemm(crk_device *d, const crk_gemm *p, bool residual_is_out) {
  int steps = crk_fused_steps(d, CRK_FUSE_LINEAR, p->bias, p->act != CR_ACT_NONE, p->residual.p);
  cr_storage *y = NULL;
  crk_gemm first, rest;
  int rc;
  for (;; steps = 0) {
    crk_gemm_split(p, steps, &first, &rest);
    if (residual_is_out && rest.residual.p) {
      if (!y) y = cr__storage_new(p->batch * p->m * p->n * cr_dtype_size(p->dtype), d->device);
      if (!y) return CR_ENOMEM;
      first.out.p = y->data;
      first.out.row_step = p->n;
      first.out.column_step = 1;
      first.out.batch_step = p->m * p->n;
    }
    rc = crk_gemm_fused(d, &first);
    if (rc != CRK_NOT_TAKEN) break;
    if (steps == 0) {
      rc = crk_gemm_plain(d, &first);
      break;
    }
  }
  if (rc >= 0 && (rest.bias || rest.residual.p || rest.act != CR_ACT_NONE))
    rc = crk_gemm_epilogue(d, &rest, &first.out);
  if (y) cr__release(y);
  return rc;
}

/* Queues all GEMMs of the folded operands. */
static int gemms(crk_device *d, crk_gemm *p, outer l, int32_t rows, bool residual_is_out) {
  p->m = 1;
  if (rows >= 0) {
    p->m = l.size[rows];
    p->a.row_step = l.a[rows];
    p->out.row_step = l.out[rows];
    p->residual.row_step = l.residual[rows];
    outer_remove(&l, rows);
  } else {
    p->a.row_step = p->k;
    p->out.row_step = p->residual.row_step = p->n;
  }
  p->batch = 1;
  p->a.batch_step = p->b.batch_step = p->out.batch_step = p->residual.batch_step = 0;
  if (l.n > 0) {
    int32_t k = 0;
    for (int32_t i = 1; i < l.n; i++)
      if (l.size[i] >= l.size[k]) k = i;
    p->batch = l.size[k];
    p->a.batch_step = l.a[k];
    p->b.batch_step = l.b[k];
    p->out.batch_step = l.out[k];
    p->residual.batch_step = l.residual[k];
    outer_remove(&l, k);
  }
  int64_t count = 1;
  for (int32_t k = 0; k < l.n; k++) count *= l.size[k];
  int64_t size = cr_dtype_size(p->dtype);
  for (int64_t i = 0; i < count; i++) {
    crk_gemm q = *p;
    int64_t rest = i, a = 0, b = 0, out = 0, residual = 0;
    for (int32_t k = l.n - 1; k >= 0; k--) {
      int64_t at = rest % l.size[k];
      rest /= l.size[k];
      a += at * l.a[k], b += at * l.b[k], out += at * l.out[k], residual += at * l.residual[k];
    }
    q.a.p = (char *)p->a.p + a * size;
    q.b.p = (char *)p->b.p + b * size;
    q.out.p = (char *)p->out.p + out * size;
    if (p->residual.p) q.residual.p = (char *)p->residual.p + residual * size;
    CR_TRY(gemm(d, &q, residual_is_out));
  }
  return CR_OK;
}

/* ---- the operations ---- */

/* Copies that are freed at the end: the work that reads them is queued by then. */
typedef struct copies {
  cr_tensor a, b, out, bias, residual;
} copies;

static int fold(const char *name, crk_device *d, operands *o, const cr_tensor *bias, int32_t act,
                copies *made) {
  int32_t dtype = o->out->dtype;
  bool residual_is_out = o->residual && o->residual->storage == o->out->storage;
  if (bias && !(bias = cr__dense(bias, dtype, &made->bias))) return cr__last_code();
  if (o->residual && o->residual->dtype != dtype &&
      !(o->residual = cr__dense(o->residual, dtype, &made->residual)))
    return cr__last_code();

  crk_gemm p = {};
  p.name = name;
  p.dtype = dtype;
  p.k = o->a->shape[o->a->rank - 1];
  p.n = o->out->shape[o->out->rank - 1];
  p.act = act;
  p.bias = bias ? crk_ptr(bias) : NULL;
  outer l;
  int32_t rows;
  for (bool again = false;; again = true) {
    p.a.column_step = p.k == 1 ? 1 : o->a->stride[o->a->rank - 1];
    p.out.column_step = p.n == 1 ? 1 : o->out->stride[o->out->rank - 1];
    l = outer_of(o);
    bool wanted;
    rows = choose_rows(&l, &p, false, &wanted);
    bool fits =
        rows >= 0 || (!wanted && readable(1, p.k, p.k, p.a.column_step) && p.out.column_step == 1);
    if (fits || again) break;
    if (is_small(o->out, p.k)) {
      rows = choose_rows(&l, &p, true, &wanted);
      break;
    }
    if (!(o->a = cr__dense(o->a, dtype, &made->a))) return cr__last_code();
    if (!cr_is_contiguous(o->out)) {
      CR_TRY(cr_empty(&made->out, o->out->rank, o->out->shape, dtype, d->device));
      o->out = &made->out;
      residual_is_out = false;
    }
  }
  p.a.p = crk_ptr(o->a);
  p.out.p = crk_ptr(o->out);
  p.b.p = crk_ptr(o->b);
  p.b.row_step = o->b_row, p.b.column_step = o->b_column;
  if (o->residual) {
    p.residual.p = crk_ptr(o->residual);
    p.residual.column_step = p.n == 1 ? 1 : o->residual->stride[o->residual->rank - 1];
  }
  return gemms(d, &p, l, rows, residual_is_out);
}

/* Folds and computes, then copies the result if it went to another tensor. */
static int run(const char *name, crk_device *d, cr_tensor *out, operands *o, const cr_tensor *bias,
               int32_t act, copies *made) {
  o->out = out;
  int rc = fold(name, d, o, bias, act, made);
  if (rc >= 0 && made->out.storage) rc = cr_copy(out, &made->out);
  cr_free(&made->a);
  cr_free(&made->b);
  cr_free(&made->out);
  cr_free(&made->bias);
  cr_free(&made->residual);
  return rc;
}

int crk_linear(cr_tensor *out, const cr_tensor *x, const cr_tensor *weight, const cr_tensor *bias,
               const cr_tensor *residual, int32_t act) {
  CRK_DEVICE(d, "linear", x);
  if (weight->shape[1] == 0)
    return cr__fail(CR_EINVAL, "linear: the weight %s has no columns", cr__shape(weight));
  copies made = {};
  if (weight->dtype != x->dtype ||
      (!readable(weight->shape[0], weight->shape[1], weight->stride[0], weight->stride[1]) &&
       !is_small(out, weight->shape[1])))
    if (!(weight = cr__dense(weight, x->dtype, &made.b))) return cr__last_code();
  operands o = {};
  o.a = x;
  o.b = weight;
  o.b_row = weight->stride[1];
  o.b_column = weight->stride[0];
  o.residual = residual;
  return run("linear", d, out, &o, bias, act, &made);
}

static int matmul(cr_tensor *out, const cr_tensor *a, const cr_tensor *b) {
  CRK_DEVICE(d, "matmul", a);
  int32_t r = b->rank;
  if (b->shape[r - 2] == 0) return cr_fill(out, 0);
  copies made = {};
  if (!readable(b->shape[r - 2], b->shape[r - 1], b->stride[r - 2], b->stride[r - 1]) &&
      !is_small(out, b->shape[r - 2]))
    if (!(b = cr__dense(b, b->dtype, &made.b))) return cr__last_code();
  operands o = {};
  o.a = a;
  o.b = b;
  o.b_row = b->stride[r - 2];
  o.b_column = b->stride[r - 1];
  o.b_leading = r - 2;
  return run("matmul", d, out, &o, NULL, CR_ACT_NONE, &made);
}

void crk_fill_linear(cr__backend *b) {
  b->matmul = matmul;
  b->linear = crk_linear;
}
