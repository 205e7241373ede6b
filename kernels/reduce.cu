#include "cuda.h"

void crk_fill_reduce(cr__backend *b) { (void)b; }
