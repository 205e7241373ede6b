#include "cuda.h"

void crk_fill_elementwise(cr__backend *b) { (void)b; }
