/* The public reductions, scans and sorts: argument checks, the result's dtype and shape. The
 * device's table does the work. */
#include <string.h>

#include "base/backend.h"

/* The dtype that each kind of result in the table stands for. */
#define ELEMENT(DTYPE) (DTYPE)
#define INDEX(DTYPE) CR_I64
#define INTEGER(DTYPE) (cr__is_float(DTYPE) ? (DTYPE) : CR_I64)
#define FLOAT(DTYPE) (cr__is_float(DTYPE) ? (DTYPE) : CR_F32)

static int32_t result_dtype(int32_t op, int32_t dtype) {
#define CASE(OP, NAME, RESULT)                                                                     \
  case OP:                                                                                         \
    return RESULT(dtype);
  switch (op) {
    CR_REDUCE_TABLE(CASE)
  default:
    return dtype;
  }
}

static int check_line(const char *name, const cr_tensor *x) {
  CR_TRY(cr__begin(name, x));
  if (x->rank < 1) return cr__fail(CR_EINVAL, "%s: at least one dimension is needed", name);
  return CR_OK;
}

CR_EXPORT int cr_scan(cr_tensor *out, const cr_tensor *x, int32_t product) {
  const char *name = product ? "cumprod" : "cumsum";
  CR_TRY(check_line(name, x));
  CR_TRY(cr__out(name, out, x->rank, x->shape, INTEGER(x->dtype), x->device));
  if (cr_numel(x) == 0) return CR_OK;
  return CR_BACKEND(name, x->device, scan, out, x, product);
}

/* Makes the results: elements and their indices, `length` along the last dimension. */
static int make_both(const char *name, cr_tensor *out, cr_tensor *index, const cr_tensor *x,
                     int32_t length) {
  int32_t shape[CR_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->rank - 1] = length;
  bool made = out->storage == NULL;
  CR_TRY(cr__out(name, out, x->rank, shape, x->dtype, x->device));
  int rc = cr__out(name, index, x->rank, shape, CR_I64, x->device);
  if (rc < 0 && made) cr_free(out);
  return rc;
}

CR_EXPORT int cr_sort(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t descending) {
  CR_TRY(check_line("sort", x));
  CR_TRY(make_both("sort", out, index, x, x->shape[x->rank - 1]));
  if (cr_numel(x) == 0) return CR_OK;
  return CR_BACKEND("sort", x->device, sort, out, index, x, descending);
}

CR_EXPORT int cr_topk(cr_tensor *out, cr_tensor *index, const cr_tensor *x, int32_t k,
                      int32_t largest) {
  CR_TRY(check_line("topk", x));
  if (k < 0 || k > x->shape[x->rank - 1])
    return cr__fail(CR_EINVAL, "topk: the last dimension of %s does not have %d elements",
                    cr__shape(x), k);
  CR_TRY(make_both("topk", out, index, x, k));
  if (cr_numel(out) == 0) return CR_OK;
  return CR_BACKEND("topk", x->device, topk, out, index, x, k, largest);
}

CR_EXPORT int cr_reduce(cr_tensor *out, int32_t op, const cr_tensor *x, uint32_t dim_mask,
                        int32_t keep) {
  if (op < 0 || op >= CR_REDUCE_OPS) return cr__fail(CR_EINVAL, "reduce: unknown operation %d", op);
  const char *name = cr_reduce_name(op);
  CR_TRY(cr__begin(name, x));
  uint32_t all = (1u << x->rank) - 1;
  if (dim_mask & ~all) {
    int32_t dim = 0;
    while (!((dim_mask & ~all) >> dim & 1u)) dim++;
    return cr__fail(CR_EINVAL, "%s: %s has no dimension %d", name, cr__shape(x), dim + 1);
  }
  if (dim_mask == 0) dim_mask = all;
  bool argument = op == CR_ARGMAX || op == CR_ARGMIN;
  if (argument && dim_mask != all && (dim_mask & (dim_mask - 1)) != 0) {
    return cr__fail(CR_EINVAL, "%s: takes one dimension of %s, or all", name, cr__shape(x));
  }
  int32_t rank = 0, shape[CR_MAX_RANK];
  int64_t count = 1, results = 1;
  for (int32_t k = 0; k < x->rank; k++) {
    bool reduced = dim_mask >> k & 1u;
    if (reduced) {
      count *= x->shape[k];
    } else {
      results *= x->shape[k];
    }
    if (!reduced || keep) shape[rank++] = reduced ? 1 : x->shape[k];
  }
  if (count == 0 && results > 0 && op != CR_SUM) {
    return cr__fail(CR_EINVAL, "%s: %s has no elements to reduce", name, cr__shape(x));
  }
  CR_TRY(cr__out(name, out, rank, shape, result_dtype(op, x->dtype), x->device));
  return CR_BACKEND(name, x->device, reduce, out, op, x, dim_mask, keep);
}
