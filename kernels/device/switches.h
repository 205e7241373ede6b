/* Switches in the environment that choose between kernels, for tests and measurements.
 *
 * A switch CR_NAME is one row here: its name and the values that it takes (no values: any text). It
 * is read at every call, so a test may change it while it runs. kernels/README.md says what each is
 * for. */
#ifndef CRK_SWITCHES_H
#define CRK_SWITCHES_H

#include <stdbool.h>

#define CRK_SWITCHES(X)                                                                            \
  X(ATTENTION, "wgmma", "mma")       /* which flash kernel runs on a Hopper */                     \
  X(CACHE)                           /* folder of remembered algorithms; empty: none */            \
  X(CONV_HOPPER, "0", "1", "2", "3") /* cuDNN, or a tile of conv/hopper.cu */                      \
  X(CUDA_BLOCKING, "0", "1")         /* sets the option `blocking` at the start */                 \
  X(CUDA_MALLOC, "0", "1")           /* does without mapped memory */                              \
  X(FP8_OWN, "0", "1", "2", "3")     /* cuBLAS, or a tile of linear/gemm_quant_hopper.cu */        \
  X(GEGLU, "0", "1")                 /* linear_geglu as two operations, or fused */                \
  X(LIBRARIES, "0", "1")             /* whether cuBLAS and cuDNN may be used */                    \
  X(LINEAR_OWN, "0", "1")            /* cuBLAS, or linear/gemm_hopper.cu */

#define CRK_SWITCH(name, ...) CRK_SWITCH_##name,
typedef enum crk_switch { CRK_SWITCHES(CRK_SWITCH) CRK_SWITCH_COUNT } crk_switch;
#undef CRK_SWITCH

/* The text that a switch is set to; NULL if it is not set. */
const char *crk_switch_text(crk_switch which);
/* The index of that text among the values of the switch, from 0; -1 if it is not set, is empty or
 * is none of them. */
int crk_switch_value(crk_switch which);
/* CR_EINVAL, with a message that begins with `name`, if a switch is set to a value that it does not
 * take. Called when a card is started. */
int crk_switches_check(const char *name);

#endif
