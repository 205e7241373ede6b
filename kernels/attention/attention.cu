/* Attention from tensors to a kernel: leading dimensions are merged, repeated ones get stride 0,
 * and the first kernel that can take the work does it (attention.h).
 *
 * Invariant: the kernels use nothing but the crk_attention. */
#include <string.h>

#include "attention/attention.h"

typedef struct operand {
  const cr_tensor *t;
  int64_t *stride; /* strides of the leading dimensions */
} operand;

/* The stride of t along leading dimension i of q (of rank n); a tensor of lower rank (a mask) is
 * aligned to the last dimensions. */
static int64_t leading_stride(const cr_tensor *t, int32_t n, int32_t i) {
  int32_t own = i - (n - t->rank);
  return own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
}

/* Fills a's leading dimensions: those of size 1 are dropped, and neighbours that are evenly spaced
 * in all operands are merged. */
static int merge_leading(crk_attention *a, const cr_tensor *out, const operand *operands, int n) {
  int32_t rank = out->rank, last = -1;
  a->batch = 1;
  for (int32_t i = 0; i < rank - 2; i++) {
    int32_t size = out->shape[i];
    if (size == 1) continue;
    bool joins = last >= 0 && (int64_t)a->size[last] * size <= INT32_MAX;
    for (int k = 0; joins && k < n; k++)
      joins = operands[k].stride[last] == leading_stride(operands[k].t, rank, i) * size;
    if (!joins && ++last == CRK_ATTENTION_LEADING)
      return cr__fail(CR_EUNSUPPORTED, "attention: too many leading dimensions in %s",
                      cr__shape(out));
    a->size[last] = joins ? a->size[last] * size : size;
    for (int k = 0; k < n; k++) operands[k].stride[last] = leading_stride(operands[k].t, rank, i);
    a->batch *= size;
  }
  if (last < 0) a->size[++last] = 1;
  a->leading = last + 1;
  return CR_OK;
}

bool crk_attention_aligned(const crk_attention *a, int bytes) {
  int64_t q_row = a->T > 1 ? a->q_row : 0, k_row = a->S > 1 ? a->k_row : 0;
  int64_t v_row = a->S > 1 ? a->v_row : 0, out_row = a->T > 1 ? a->out_row : 0;
  return crk_aligned(a->q, a->leading, a->q_stride, 2, bytes) &&
         crk_aligned(a->k, a->leading, a->k_stride, 2, bytes) &&
         crk_aligned(a->v, a->leading, a->v_stride, 2, bytes) &&
         crk_aligned(a->out, a->leading, a->out_stride, 2, bytes) &&
         (q_row * 2 | k_row * 2 | v_row * 2 | out_row * 2) % bytes == 0;
}

static int describe(crk_attention *to, const cr_tensor *out, const cr_tensor *q, const cr_tensor *k,
                    const cr_tensor *v, int32_t heads, double scale, const cr_tensor *mask) {
  int32_t n = q->rank;
  crk_attention a;
  memset(&a, 0, sizeof a);
  a.dtype = q->dtype;
  a.q = crk_ptr(q);
  a.k = crk_ptr(k);
  a.v = crk_ptr(v);
  a.out = crk_ptr(out);
  a.heads = heads;
  a.d = q->shape[n - 1] / heads;
  a.dv = v->shape[n - 1] / heads;
  a.T = q->shape[n - 2];
  a.S = k->shape[n - 2];
  a.scale = (float)scale;
  a.q_row = q->stride[n - 2];
  a.k_row = k->stride[n - 2];
  a.v_row = v->stride[n - 2];
  a.out_row = out->stride[n - 2];
  operand operands[5] = {{q, a.q_stride},
                         {k, a.k_stride},
                         {v, a.v_stride},
                         {out, a.out_stride},
                         {mask, a.mask_stride}};
  if (mask) {
    a.mask = (const float *)crk_ptr(mask);
    a.mask_row = leading_stride(mask, n, n - 2);
    a.mask_column = leading_stride(mask, n, n - 1);
  }
  CR_TRY(merge_leading(&a, out, operands, mask ? 5 : 4));
  *to = a;
  return CR_OK;
}

static int attend(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                  int32_t heads, double scale, const cr_tensor *mask) {
  CRK_DEVICE(d, "attention", q);
  crk_attention a;
  CR_TRY(describe(&a, out, q, k, v, heads, scale, mask));
  if (crk_attention_temporal_can(d, &a)) return crk_attention_temporal(d, &a);
  if (crk_attention_flash_can(d, &a)) return crk_attention_flash(d, &a);
  return crk_attention_plain(d, &a);
}

/* Only a result whose last dimension has gaps is computed into a copy. */
static int attention(cr_tensor *out, const cr_tensor *q, const cr_tensor *k, const cr_tensor *v,
                     int32_t heads, double scale, const cr_tensor *mask) {
  int32_t n = out->rank;
  if (out->shape[n - 1] == 1 || out->stride[n - 1] == 1)
    return attend(out, q, k, v, heads, scale, mask);
  cr_tensor dense = {};
  CR_TRY(cr_empty(&dense, n, out->shape, out->dtype, out->device));
  int rc = attend(&dense, q, k, v, heads, scale, mask);
  if (rc >= 0) rc = cr_copy(out, &dense);
  cr_free(&dense);
  return rc;
}

/* The kernels for tensor cores write codes with static scales. Scales of rows need whole rows, of
 * all heads, so they are not supported here. */
static int quant_attention(cr_tensor *codes, cr_tensor *scale, const cr_tensor *q,
                           const cr_tensor *k, const cr_tensor *v, int32_t heads,
                           double attention_scale, const cr_tensor *mask,
                           const cr_tensor *divisor) {
  CRK_DEVICE(d, "quant_attention", q);
  int32_t last = codes->rank - 1;
  if (scale || (codes->shape[last] > 1 && codes->stride[last] != 1)) return CR_EUNSUPPORTED;
  crk_attention a;
  CR_TRY(describe(&a, codes, q, k, v, heads, attention_scale, mask));
  a.coded.divisor = (const float *)crk_ptr(divisor);
  a.coded.e4m3 = codes->dtype == CR_U8;
  if (crk_attention_temporal_can(d, &a)) return crk_attention_temporal(d, &a);
  if (crk_attention_flash_can(d, &a)) return crk_attention_flash(d, &a);
  return CR_EUNSUPPORTED;
}

void crk_fill_attention(cr__backend *b) {
  b->attention = attention;
  b->quant_attention = quant_attention;
}
