/* Enters the normalizations into the table. */
#include "norm/norm.h"

void crk_fill_norm(cr__backend *b) {
  b->group_norm = crk_group_norm;
  b->layer_norm = crk_layer_norm;
  b->quant_group_norm = crk_quant_group_norm;
}
