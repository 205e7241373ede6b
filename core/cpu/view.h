/* How CPU operations read and write tensors of any dtype and strides.
 *
 * Everything is done in chunks of the result's row-major order. A cr__view is a tensor seen in that
 * order (broadcast if need be, dimensions merged where the strides allow it); its elements i ..
 * i + n - 1 are loaded as float, double or int64, or stored from them. A chunk that lies in memory
 * as the wanted type already is used in place, so a dense f32 operation touches its data once.
 * Because each chunk is read wholly before it is written, a result may be written over an operand
 * with the same shape and strides. */
#ifndef CR_CPU_VIEW_H
#define CR_CPU_VIEW_H

#include "base/internal.h"

enum { CR__CHUNK = 2048 }; /* elements of a chunk: a few of them fit in the first-level cache */

typedef struct cr__view {
  char *base;
  int32_t dtype;
  int32_t size; /* bytes of an element */
  int32_t rank; /* >= 1 */
  bool dense;   /* one dimension with stride 1 */
  int64_t shape[CR_MAX_RANK];
  int64_t stride[CR_MAX_RANK]; /* in elements */
} cr__view;

/* t broadcast to `shape` (the trailing dimensions are aligned; must fit). */
cr__view cr__view_of(const cr_tensor *t, int32_t rank, const int32_t *shape);
/* Any dimensions over memory at `base`, merged. */
cr__view cr__view_make(char *base, int32_t dtype, int32_t rank, const int64_t *shape,
                       const int64_t *stride);

/* Elements start .. start + n - 1, in place or converted into `buffer`. */
const float *cr__load_f32(const cr__view *v, int64_t start, int64_t n, float *buffer);
const double *cr__load_f64(const cr__view *v, int64_t start, int64_t n, double *buffer);
const int64_t *cr__load_i64(const cr__view *v, int64_t start, int64_t n, int64_t *buffer);

/* Where to put elements that are then given to cr__store_*: in place if that is possible. */
float *cr__target_f32(const cr__view *v, int64_t start, float *buffer);
double *cr__target_f64(const cr__view *v, int64_t start, double *buffer);
int64_t *cr__target_i64(const cr__view *v, int64_t start, int64_t *buffer);
/* Writes them, converted; floats to integers truncate and saturate, nan becomes 0; integers wrap;
 * bool is "not zero". Does nothing for elements that are in place. */
void cr__store_f32(const cr__view *v, int64_t start, int64_t n, const float *x);
void cr__store_f64(const cr__view *v, int64_t start, int64_t n, const double *x);
void cr__store_i64(const cr__view *v, int64_t start, int64_t n, const int64_t *x);

/* Threads worth using for n elements of cheap work; at least 1. */
int cr__threads_for(int64_t n);

/* Double to float rounded to odd: rounding the result again, to a half type, is then exact. */
float cr__round_to_odd(double d);

#endif
