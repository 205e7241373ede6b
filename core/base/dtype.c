/* The names and sizes of dtypes, and the rules that give a result's dtype and shape from the
 * operands'. */
#include "base/dtype.h"

#include <math.h>
#include <string.h>

static const struct {
  const char *name;
  int32_t size;
} dtypes[CR_DTYPES] = {
#define ROW(DTYPE, NAME, SIZE) [DTYPE] = {#NAME, SIZE},
    CR_DTYPE_TABLE(ROW)
#undef ROW
};

CR_EXPORT int32_t cr_dtype_size(int32_t dtype) {
  if (dtype < 0 || dtype >= CR_DTYPES) return cr__fail(CR_EINVAL, "there is no dtype %d", dtype);
  return dtypes[dtype].size;
}

CR_EXPORT const char *cr_dtype_name(int32_t dtype) {
  return dtype < 0 || dtype >= CR_DTYPES ? "?" : dtypes[dtype].name;
}

CR_EXPORT int32_t cr_dtype_parse(const char *name) {
  for (int32_t i = 0; i < CR_DTYPES; i++)
    if (strcmp(name, dtypes[i].name) == 0) return i;
#define LISTED(DTYPE, NAME, SIZE) ", " #NAME
  return cr__fail(CR_EINVAL, "unknown dtype '%s': %s", name, &CR_DTYPE_TABLE(LISTED)[2]);
#undef LISTED
}

int32_t cr__promote(int32_t a, int32_t b) {
  if (a == b) return a;
  bool fa = cr__is_float(a), fb = cr__is_float(b);
  if (fa && fb) {
    if (a == CR_F64 || b == CR_F64) return CR_F64;
    return CR_F32; /* f32 with f16 or bf16, or f16 with bf16 */
  }
  if (fa || fb) return fa ? a : b;
  if (a == CR_BOOL || b == CR_BOOL) return a == CR_BOOL ? b : a;
  int32_t sa = cr_dtype_size(a), sb = cr_dtype_size(b);
  if (sa != sb) return sa > sb ? a : b;
  return CR_I16; /* u8 with i8 */
}

int32_t cr__scalar_arithmetic(int32_t op, int32_t a, double b) {
  if (cr__is_float(a)) return a;
  if (!isfinite(b) || b != floor(b)) return CR_F32;
  if (!CR__IN(CR__BINARY_OF_INTEGERS, op) || op == CR_POW) return CR_F32;
  return a == CR_BOOL ? CR_I64 : a;
}

int cr__broadcast(const char *name, const cr_tensor *a, const cr_tensor *b, int32_t *rank,
                  int32_t *shape) {
  *rank = a->rank > b->rank ? a->rank : b->rank;
  for (int32_t k = 0; k < *rank; k++) {
    int32_t ka = k - (*rank - a->rank), kb = k - (*rank - b->rank);
    int32_t m = ka < 0 ? 1 : a->shape[ka], n = kb < 0 ? 1 : b->shape[kb];
    if (m != n && m != 1 && n != 1) {
      return cr__fail(CR_EINVAL, "%s: shapes do not broadcast: %s and %s", name, cr__shape(a),
                      cr__shape(b));
    }
    shape[k] = m == 1 ? n : m;
  }
  return CR_OK;
}
