/* Indices that lie outside of a tensor, which only the card sees: a kernel writes down one of them,
 * and goes on with a place that is there; the next call that waits for the card fails with the
 * operation's name.
 *
 * Invariant: the complaint lies in pinned memory of the host, which the card writes to and the host
 * reads after a wait. Of several complaints since the last wait one is told. It belongs to a card's
 * context, and goes with it. */
#ifndef CRK_COMPLAINT_H
#define CRK_COMPLAINT_H

#include "device/cuda.h"

/* Numbers from 1 to `size`, or from -1 to -size backwards, and what to say of others. */
typedef struct crk_places {
  struct crk_complaint *complaint;
  const char *name; /* of the operation; a constant string, which the card does not read */
  int64_t size;
  int32_t dim, rank, shape[CR_MAX_RANK];
} crk_places;

typedef struct crk_complaint {
  crk_places places;
  int64_t number;
  int32_t made; /* 1: there is one */
} crk_complaint;

/* The places of x's dimension `dim`. */
int crk_places_of(crk_places *p, const char *name, crk_device *d, const cr_tensor *x, int32_t dim);
/* The error of what the card has complained of until now, which is forgotten; else CR_OK. Any
 * thread, after a wait. */
int crk_complained(const crk_device *d);

#ifdef __CUDACC__
/* The place, from 0, that a number names. */
__device__ __forceinline__ int64_t crk_place(const crk_places &p, int64_t number) {
  int64_t place = number < 0 ? number + p.size : number - 1;
  if ((uint64_t)place < (uint64_t)p.size) return place;
  p.complaint->places = p;
  p.complaint->number = number;
  p.complaint->made = 1;
  return 0;
}
#endif

#endif
