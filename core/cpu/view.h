/* How CPU operations read and write tensors of any dtype and strides.
 *
 * All work is done in chunks of the result's row-major order. A cr__view is a tensor in that order,
 * broadcast if necessary, with dimensions merged where the strides allow it. Its elements i ... i +
 * n - 1 are loaded as float, double or int64, or stored from them. A chunk that is dense and of the
 * requested type is used in place, so a dense f32 operation accesses its data once. Each chunk is
 * read completely before it is written, so a result may overwrite an operand with the same shape
 * and strides. */
#ifndef CR_CPU_VIEW_H
#define CR_CPU_VIEW_H

#include "base/internal.h"

enum { CR__CHUNK = 2048 }; /* elements of a chunk, so that a few chunks fit into the L1 cache */

typedef struct cr__view {
  char *base;
  int32_t dtype;
  int32_t size; /* bytes of an element */
  int32_t rank; /* >= 1 */
  bool dense;   /* one dimension with stride 1 */
  int64_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK]; /* in elements */
} cr__view;

/* Returns t broadcast to `shape`, with the trailing dimensions aligned. The shapes must fit. */
cr__view cr__view_of(const cr_tensor *t, int32_t rank, const int32_t *shape);
/* Returns a view of memory at `base`, with merged dimensions. */
cr__view cr__view_make(char *base, int32_t dtype, int32_t rank, const int64_t *shape,
                       const int64_t *stride);

/* Load elements start ... start + n - 1: in place, or converted into `buffer`. */
const float *cr__load_f32(const cr__view *v, int64_t start, int64_t n, float *buffer);
const double *cr__load_f64(const cr__view *v, int64_t start, int64_t n, double *buffer);
const int64_t *cr__load_i64(const cr__view *v, int64_t start, int64_t n, int64_t *buffer);

/* Return where to put elements before cr__store_*: in place if possible, else `buffer`. */
float *cr__target_f32(const cr__view *v, int64_t start, float *buffer);
double *cr__target_f64(const cr__view *v, int64_t start, double *buffer);
int64_t *cr__target_i64(const cr__view *v, int64_t start, int64_t *buffer);
/* Convert and store elements; those that are in place already are skipped. Floats become integers
 * by truncation with saturation, nan becomes 0; integers wrap around; bool is "not zero". */
void cr__store_f32(const cr__view *v, int64_t start, int64_t n, const float *x);
void cr__store_f64(const cr__view *v, int64_t start, int64_t n, const double *x);
void cr__store_i64(const cr__view *v, int64_t start, int64_t n, const int64_t *x);

/* Returns how many threads are worth using for n elements of cheap work; at least 1. */
int cr__threads_for(int64_t n);

/* ROW(bytes of an element, an integer type of that size): for moving elements of any dtype. */
#define CR__ELEMENT_SIZES(ROW)                                                                     \
  ROW(1, uint8_t)                                                                                  \
  ROW(2, uint16_t)                                                                                 \
  ROW(4, uint32_t)                                                                                 \
  ROW(8, uint64_t)

/* Rounds a double to a float by round-to-odd, so that rounding the result again to f16 or bf16 is
 * exact. */
float cr__round_to_odd(double d);

#endif
