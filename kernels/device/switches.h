/* Switches in the environment: which of several kernels does the work, for tests and measurements.
 *
 * A switch CR_NAME is one row here: its name and the values that it takes (none: any text). They
 * are asked for at every call, so a test may change them as it goes. kernels/README.md says what
 * each is for. */
#ifndef CRK_SWITCHES_H
#define CRK_SWITCHES_H

#include <stdbool.h>

#define CRK_SWITCHES(X)                                                                            \
  X(ATTENTION, "wgmma", "mma")       /* of the two flash kernels on a Hopper */                    \
  X(CACHE)                           /* the folder of remembered algorithms; empty: none */        \
  X(CONV_HOPPER, "0", "1", "2", "3") /* cuDNN, or a tile of conv/hopper.cu */                      \
  X(CUDA_BLOCKING, "0", "1")         /* the option `blocking` from the start */                    \
  X(CUDA_MALLOC, "0", "1")           /* memory as of a driver that cannot map it */                \
  X(FP8_OWN, "0", "1", "2", "3")     /* cuBLAS, or a tile of linear/gemm_quant_hopper.cu */        \
  X(GEGLU, "0", "1")                 /* linear_geglu as two operations, or in one kernel */        \
  X(LIBRARIES, "0", "1")             /* whether cuBLAS and cuDNN may be asked */                   \
  X(LINEAR_OWN, "0", "1")            /* cuBLAS, or linear/gemm_hopper.cu */

#define CRK_SWITCH(name, ...) CRK_SWITCH_##name,
typedef enum crk_switch { CRK_SWITCHES(CRK_SWITCH) CRK_SWITCH_COUNT } crk_switch;
#undef CRK_SWITCH

/* What a switch is set to; NULL if it is not. */
const char *crk_switch_text(crk_switch which);
/* The place of that among the values that the switch takes, from 0; -1 if it is not set, is empty
 * or is none of them. */
int crk_switch_value(crk_switch which);
/* CR_EINVAL, with a sentence that begins with `name`, if a switch is set to what it does not take.
 * Asked when a card is started. */
int crk_switches_check(const char *name);

#endif
