/* The CPU's table of operations, which is installed when the library is loaded, as crescent_cuda.so
 * installs the GPU's. Operations without an entry are composed of others. */
#include "cpu/cpu.h"

#define ROW(name) .name = cr__cpu_##name,
static const cr__backend cpu = {.name = "CPU", CR_CPU_ENTRIES(ROW)};
#undef ROW

__attribute__((constructor)) static void install(void) { cr__backend_set_cpu(&cpu); }
