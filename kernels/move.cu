#include "cuda.h"

void crk_fill_move(cr__backend *b) { (void)b; }
