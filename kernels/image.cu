#include "cuda.h"

void crk_fill_image(cr__backend *b) { (void)b; }
