/* Operands and results of the CPU's compute-intensive operations (operands.h). */
#include "cpu/operands.h"

const cr_tensor *cr__operand(cr__operands *op, const cr_tensor *x, int32_t dtype) {
  if (x == NULL || op->rc < 0) return NULL;
  if (x->dtype == dtype && cr_is_contiguous(x)) return x;
  cr_tensor *temp = &op->temp[op->n++];
  op->rc = cr_cast(temp, x, dtype);
  return op->rc < 0 ? NULL : temp;
}

cr_tensor *cr__result(cr__operands *op, cr_tensor *out, int32_t dtype) {
  if (op->rc < 0) return NULL;
  if (out->dtype == dtype && cr_is_contiguous(out)) return out;
  op->rc = cr_empty(&op->result, out->rank, out->shape, dtype, CR_CPU);
  return &op->result;
}

int cr__operands_end(cr__operands *op, cr_tensor *out, int rc) {
  if (rc >= 0 && op->result.storage) rc = cr_copy(out, &op->result);
  for (int32_t i = 0; i < op->n; i++) cr_free(&op->temp[i]);
  cr_free(&op->result);
  return rc;
}
