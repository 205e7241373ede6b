/* Index errors on the host: the memory that the card writes, and the message. */
#include "device/index_error.h"

#include <string.h>

static struct {
  crk_index_error *memory;
  uint64_t context;
} errors[CRK_MAX_CARDS];

int crk_index_bounds_of(crk_index_bounds *p, const char *name, crk_device *d, const cr_tensor *x,
                        int32_t dim) {
  if (errors[d->card].context != d->context) {
    void *memory = NULL;
    CRK_TRY(name, d, cudaHostAlloc(&memory, sizeof(crk_index_error), cudaHostAllocMapped));
    errors[d->card].memory = (crk_index_error *)memset(memory, 0, sizeof(crk_index_error));
    errors[d->card].context = d->context;
  }
  memset(p, 0, sizeof *p);
  p->error = errors[d->card].memory;
  p->name = name;
  p->size = x->shape[dim];
  p->dim = dim;
  p->rank = x->rank;
  memcpy(p->shape, x->shape, sizeof p->shape);
  return CR_OK;
}

int crk_index_error_take(const crk_device *d) {
  if (!errors[d->card].memory || errors[d->card].context != d->context) return CR_OK;
  crk_index_error *c = errors[d->card].memory;
  if (!__atomic_exchange_n(&c->set, 0, __ATOMIC_ACQ_REL)) return CR_OK;
  cr_tensor t = {};
  t.rank = c->bounds.rank;
  memcpy(t.shape, c->bounds.shape, sizeof t.shape);
  return cr__index_out_of_range(c->bounds.name, cr__shape(&t), c->bounds.dim,
                                (int32_t)c->bounds.size, c->index);
}
