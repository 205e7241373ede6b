/* The table of all operations on a card, which is what core/ uses of kernels/.
 *
 * Invariant: the table is complete before it is installed. */
#include "base/backend.h"

/* The families, each of which fills in its own entries. A new one is one row. */
#define FAMILIES(X)                                                                                \
  X(device)                                                                                        \
  X(graph)                                                                                         \
  X(code)                                                                                          \
  X(memory)                                                                                        \
  X(elementwise)                                                                                   \
  X(diffusion)                                                                                     \
  X(random)                                                                                        \
  X(move)                                                                                          \
  X(reduce)                                                                                        \
  X(norm)                                                                                          \
  X(linear)                                                                                        \
  X(geglu)                                                                                         \
  X(quantize)                                                                                      \
  X(quant)                                                                                         \
  X(geglu_quant)                                                                                   \
  X(quant_conv)                                                                                    \
  X(conv)                                                                                          \
  X(attention)                                                                                     \
  X(image)

#define DECLARE(family) void crk_fill_##family(cr__backend *table);
FAMILIES(DECLARE)
#undef DECLARE

static cr__backend table;

/* Called by core/base/cuda_load.c. */
extern "C" CR_EXPORT int cr__cuda_start(void);
extern "C" CR_EXPORT int cr__cuda_start(void) {
  table.name = "CUDA";
#define FILL(family) crk_fill_##family(&table);
  FAMILIES(FILL)
#undef FILL
  cr__backend_set_cuda(&table);
  return CR_OK;
}
