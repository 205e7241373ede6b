/* What the card complains of, on the host: where it is written, and the error that it becomes. */
#include "device/complaint.h"

#include <string.h>

static struct {
  crk_complaint *memory;
  uint64_t context;
} complaints[CRK_MAX_CARDS];

int crk_places_of(crk_places *p, const char *name, crk_device *d, const cr_tensor *x, int32_t dim) {
  if (complaints[d->card].context != d->context) {
    void *memory = NULL;
    CRK_TRY(name, d, cudaHostAlloc(&memory, sizeof(crk_complaint), cudaHostAllocMapped));
    complaints[d->card].memory = (crk_complaint *)memset(memory, 0, sizeof(crk_complaint));
    complaints[d->card].context = d->context;
  }
  memset(p, 0, sizeof *p);
  p->complaint = complaints[d->card].memory;
  p->name = name;
  p->size = x->shape[dim];
  p->dim = dim;
  p->rank = x->rank;
  memcpy(p->shape, x->shape, sizeof p->shape);
  return CR_OK;
}

int crk_complained(const crk_device *d) {
  if (!complaints[d->card].memory || complaints[d->card].context != d->context) return CR_OK;
  crk_complaint *c = complaints[d->card].memory;
  if (!__atomic_exchange_n(&c->made, 0, __ATOMIC_ACQ_REL)) return CR_OK;
  cr_tensor t = {};
  t.rank = c->places.rank;
  memcpy(t.shape, c->places.shape, sizeof t.shape);
  return cr__no_row(c->places.name, cr__shape(&t), c->places.dim, (int32_t)c->places.size,
                    c->number);
}
