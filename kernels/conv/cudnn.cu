/* Convolutions by cuDNN: choosing a plan (plan.h), and running it.
 *
 * cuDNN's heuristics propose engines with settings for a graph; the first dozen are timed once
 * (algorithms.h). A choice is kept as the engine's number and its settings, from which the plan is
 * made again without heuristics or timing. Our own kernels (hopper.cu) are timed beside them.
 *
 * Invariants: a plan belongs to one context of a card. After a fault its descriptors are not
 * destroyed, because the library's handle is gone. An entry owns its descriptors and is never
 * moved. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conv/conv.h"
#include "conv/plan.h"
#include "device/algorithms.h"
#include "device/switches.h"

typedef cudnnBackendDescriptor_t descriptor;
typedef crk_conv_problem problem;
typedef crk_conv_choice choice;
typedef crk_conv_plan plan;
typedef crk_conv_descriptors descriptors;

enum {
  NONE = CRK_CONV_NONE,
  PLAIN = CRK_CONV_PLAIN,
  FUSED = CRK_CONV_FUSED,
  DIRECT = CRK_CONV_DIRECT,
  BIASED = CRK_CONV_BIASED,
  HOPPER = CRK_CONV_HOPPER
};

typedef struct entry {
  struct entry *next;
  problem key;
  uint64_t hash, context;
  int card;
  bool decided; /* it was timed, or there is nothing to time */
  plan plan;
  descriptors graph; /* the graph of the plan's form */
} entry;

enum { SLOTS = 512, MOST_ENTRIES = 4096 };
static entry *entries[SLOTS];
static int entry_count;

/* ---- running ----------------------------------------------------------------------------------*/

/* Reports cuDNN's error. Nothing is queued, so other kernels may try, unless the card itself has
 * failed. */
static int failed(crk_device *d, cudnnStatus_t status) {
  CR_TRY(crk_launched("conv2d", d));
  char why[300] = "";
  cudnnGetLastErrorString(why, sizeof why);
  return cr__fail(CR_EUNSUPPORTED, "conv2d: cuDNN: %s%s%s", cudnnGetErrorString(status),
                  why[0] ? ": " : "", why);
}

static int execute(const plan *p, const problem *q, const crk_conv *c, cudnnHandle_t handle) {
  cr_storage *scratch = NULL;
  if (p->workspace > 0) {
    scratch = cr__storage_new(p->workspace, c->d->device);
    if (!scratch) return CR_ENOMEM;
  }
  int64_t names[5] = {CRK_CONV_X, CRK_CONV_WEIGHT, CRK_CONV_OUT};
  void *data[5] = {crk_ptr(c->x), crk_ptr(c->weight), crk_ptr(c->out)};
  int n = 3;
  if (p->choice.form != PLAIN) {
    names[n] = CRK_CONV_BIAS;
    data[n++] = crk_ptr(c->bias);
  }
  if (p->choice.form == FUSED && q->residual) {
    names[n] = CRK_CONV_RESIDUAL;
    data[n++] = crk_ptr(c->residual);
  }
  void *workspace = scratch ? scratch->data : NULL;
  descriptor pack = NULL;
  cudnnStatus_t status = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
  if (status == CUDNN_STATUS_SUCCESS)
    status = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                      CUDNN_TYPE_VOID_PTR, n, data);
  if (status == CUDNN_STATUS_SUCCESS)
    status = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n,
                                      names);
  if (status == CUDNN_STATUS_SUCCESS)
    status = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
                                      1, &workspace);
  if (status == CUDNN_STATUS_SUCCESS) status = cudnnBackendFinalize(pack);
  if (status == CUDNN_STATUS_SUCCESS) status = cudnnBackendExecute(handle, p->plan, pack);
  int rc = status == CUDNN_STATUS_SUCCESS ? CR_OK : failed(c->d, status);
  if (pack) cudnnBackendDestroyDescriptor(pack);
  if (scratch) cr__release(scratch);
  return rc;
}

static int by_hopper(const problem *q, const crk_conv *c, int32_t tile) {
  crk_conv first = *c;
  if (!q->bias) first.bias = NULL;
  if (!q->residual) first.residual = NULL;
  return crk_conv_hopper(&first, tile);
}

/* Runs one of the forms, and the epilogue for what it leaves. */
static int run(const plan *p, const problem *q, const crk_conv *c, cudnnHandle_t handle) {
  int32_t form = p->choice.form;
  if (form == DIRECT) return crk_conv_direct(c);
  CR_TRY(form == HOPPER ? by_hopper(q, c, (int32_t)p->choice.engine) : execute(p, q, c, handle));
  crk_conv rest = *c;
  cr_conv after = *c->o;
  rest.o = &after;
  if (form == HOPPER) {
    if (q->bias) rest.bias = NULL;
    if (q->residual) rest.residual = NULL;
  } else if (form != PLAIN) {
    rest.bias = NULL;
    if (q->residual && form == FUSED) rest.residual = NULL;
    if (q->relu) after.act = CR_ACT_NONE;
  }
  if (!rest.bias && !rest.residual && after.act == CR_ACT_NONE) return crk_launched("conv2d", c->d);
  return crk_conv_epilogue(&rest, c->out);
}

typedef struct search {
  const plan *plans;
  const problem *problem;
  const crk_conv *conv;
  cudnnHandle_t handle;
} search;

static int run_candidate(void *arg, int i) {
  const search *s = (const search *)arg;
  return run(&s->plans[i], s->problem, s->conv, s->handle);
}

/* ---- choosing ---------------------------------------------------------------------------------*/

static problem describe(const crk_conv *c) {
  problem p = {};
  const cr_conv *o = c->o;
  p.dtype = c->x->dtype;
  p.n = c->x->shape[0];
  p.h = c->x->shape[1];
  p.w = c->x->shape[2];
  p.c = c->x->shape[3];
  p.o = c->weight->shape[0];
  p.kh = c->weight->shape[1];
  p.kw = c->weight->shape[2];
  p.kc = c->weight->shape[3];
  p.oh = c->out->shape[1];
  p.ow = c->out->shape[2];
  memcpy(p.pad, o->pad, sizeof p.pad);
  p.stride[0] = o->stride_h;
  p.stride[1] = o->stride_w;
  p.dilation[0] = o->dilation_h;
  p.dilation[1] = o->dilation_w;
  p.groups = o->groups;
  int steps = crk_fused_steps(c->d, CRK_FUSE_CONV, c->bias, o->act != CR_ACT_NONE, c->residual);
  p.bias = c->bias && steps > 0;
  p.relu = o->act == CR_ACT_RELU && !c->residual && steps > 1;
  p.residual = c->residual && o->act == CR_ACT_NONE && steps > 2;
  p.tf32 = c->d->tf32 != 0;
  p.search = c->d->search != 0;
  p.hopper =
      p.search && crk_switch_value(CRK_SWITCH_CONV_HOPPER) < 0 && crk_conv_hopper_takes(c, 1);
  return p;
}

static void key_text(char *text, size_t size, const problem *p) {
  int n = snprintf(text, size, "conv2d 7 cudnn %zu", cudnnGetVersion());
  const int32_t *v = (const int32_t *)p;
  for (size_t i = 0; i < sizeof *p / sizeof *v && n > 0 && (size_t)n < size; i++)
    n += snprintf(text + n, size - (size_t)n, " %d", v[i]);
}

/* Sets e->plan: the remembered plan, else the fastest of the proposals, else, where timing is not
 * possible, the first. */
static void choose(entry *e, const crk_conv *c, cudnnHandle_t handle) {
  enum { MOST_FUSED = 12, MOST_PLAIN = 4, MOST_OTHER = 4 };
  enum { MOST = MOST_FUSED + 2 * MOST_PLAIN + 2 * MOST_OTHER + 1 + CRK_CONV_HOPPER_TILES };
  /* In small convolutions the launch takes most of the time, so a few proposals are enough. */
  double work =
      2.0 * e->key.n * e->key.oh * e->key.ow * e->key.o * e->key.kh * e->key.kw * e->key.kc;
  int most_fused = work < 2e8 ? 5 : MOST_FUSED, most_plain = work < 2e8 ? 3 : MOST_PLAIN;
  const problem *p = &e->key;
  char key[CRK_ALGORITHM_KEY + 1];
  key_text(key, sizeof key, p);
  crk_conv_plan_free(&e->plan);
  crk_conv_destroy(&e->graph);
  e->decided = true;
  e->plan.choice.form = DIRECT;

  choice found;
  if (c->d->search && crk_algorithm_find(c->d, key, &found, sizeof found)) {
    if (found.form == DIRECT) return;
    if (found.form == HOPPER && p->hopper && crk_conv_hopper_takes(c, found.engine)) {
      e->plan.choice = found;
      return;
    }
    if (found.form == PLAIN || ((found.form == FUSED || found.form == BIASED) && p->bias)) {
      e->plan.choice = found;
      if (crk_conv_restore(&e->plan, crk_conv_graph(&e->graph, p, found.form, handle), handle))
        return;
      crk_conv_destroy(&e->graph);
      e->plan.choice.form = DIRECT;
    }
  }

  plan plans[MOST] = {};
  descriptors graphs[3] = {}; /* fused, biased, plain */
  int n = 0;
  if (p->bias) {
    descriptor g = crk_conv_graph(&graphs[0], p, FUSED, handle);
    if (g) n += crk_conv_propose(plans, most_fused, p, FUSED, g, CUDNN_HEUR_MODE_A, handle);
    if (g && n < most_fused)
      n += crk_conv_propose(plans + n, MOST_OTHER, p, FUSED, g, CUDNN_HEUR_MODE_FALLBACK, handle);
  }
  /* The fused form has few engines of full f32, and slow ones; and for some shapes a faster engine
   * that fuses less makes up for the pass that follows. */
  if (p->residual && p->bias && p->search) {
    descriptor g = crk_conv_graph(&graphs[1], p, BIASED, handle);
    if (g) n += crk_conv_propose(plans + n, most_plain, p, BIASED, g, CUDNN_HEUR_MODE_A, handle);
  }
  if (n == 0 || p->search) {
    descriptor g = crk_conv_graph(&graphs[2], p, PLAIN, handle);
    int before = n;
    if (g) n += crk_conv_propose(plans + n, most_plain, p, PLAIN, g, CUDNN_HEUR_MODE_A, handle);
    if (g && n - before < MOST_OTHER)
      n += crk_conv_propose(plans + n, MOST_OTHER, p, PLAIN, g, CUDNN_HEUR_MODE_FALLBACK, handle);
  }
  int best = n > 0 ? 0 : -1;
  if (n > 0 && p->search) {
    /* Our own kernels compete where cuDNN's tiles would be mostly padding, or where the launch
     * takes most of the time. */
    if (n < MOST && (p->o <= 8 || (p->dtype == CR_F32 && work < 2e9)))
      plans[n++].choice.form = DIRECT;
    /* They come after the library's first proposal, which is used without timing; so they are timed
     * before the time is up. */
    if (p->hopper && work >= 2e8) {
      memmove(plans + 1 + CRK_CONV_HOPPER_TILES, plans + 1, (size_t)(n - 1) * sizeof *plans);
      memset(plans + 1, 0, CRK_CONV_HOPPER_TILES * sizeof *plans);
      for (int tile = 1; tile <= CRK_CONV_HOPPER_TILES; tile++) {
        plans[tile].choice.form = HOPPER;
        plans[tile].choice.engine = tile;
      }
      n += CRK_CONV_HOPPER_TILES;
    }
    if (crk_may_search(c->d)) {
      search s = {plans, p, c, handle};
      best = crk_fastest("conv2d", c->d, n, run_candidate, &s, 200);
      if (best >= 0)
        crk_algorithm_remember(c->d, key, &plans[best].choice, sizeof plans[best].choice);
    } else {
      e->decided = false; /* until a call that may take the time */
    }
  }
  if (best >= 0) {
    e->plan = plans[best];
    if (e->plan.choice.form != DIRECT && e->plan.choice.form != HOPPER) {
      int g = e->plan.choice.form == FUSED ? 0 : e->plan.choice.form == BIASED ? 1 : 2;
      e->graph = graphs[g];
      graphs[g].n = 0;
    }
  }
  for (int i = 0; i < n; i++)
    if (i != best) crk_conv_plan_free(&plans[i]);
  for (int i = 0; i < 3; i++) crk_conv_destroy(&graphs[i]);
}

static uint64_t hash_bytes(const void *data, size_t n) {
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)data)[i]) * 1099511628211u;
  return h;
}

/* The entry of a problem, a new and empty one if there was none; NULL without memory. */
static entry *find_entry(const problem *p, const crk_device *d) {
  uint64_t hash = hash_bytes(p, sizeof *p);
  entry **slot = &entries[hash % SLOTS];
  for (entry **at = slot, *e = *at; e; e = *at) {
    if (e->card == d->card && e->context != d->context) {
      *at = e->next;
      free(e);
      entry_count--;
      continue;
    }
    if (e->hash == hash && e->card == d->card && memcmp(&e->key, p, sizeof *p) == 0) return e;
    at = &e->next;
  }
  /* If a program's shapes never end, all entries are dropped. */
  if (entry_count >= MOST_ENTRIES)
    for (int i = 0; i < SLOTS; i++)
      while (entries[i]) {
        entry *e = entries[i];
        entries[i] = e->next;
        crk_conv_plan_free(&e->plan);
        crk_conv_destroy(&e->graph);
        free(e);
        entry_count--;
      }
  entry *e = (entry *)calloc(1, sizeof *e);
  if (!e) return NULL;
  e->key = *p;
  e->hash = hash;
  e->card = d->card;
  e->context = d->context;
  e->next = *slot;
  *slot = e;
  entry_count++;
  return e;
}

int crk_conv_cudnn(const crk_conv *c) {
  problem p = describe(c);
  /* The switch is the tile of hopper.cu to use wherever it fits, or 0 for none. */
  int tile = crk_switch_value(CRK_SWITCH_CONV_HOPPER);
  if (tile > 0 && crk_conv_hopper_takes(c, tile)) {
    plan forced = {};
    forced.choice.form = HOPPER;
    forced.choice.engine = tile;
    return run(&forced, &p, c, NULL);
  }
  if (!crk_libraries_wanted()) return CR_EUNSUPPORTED;
  cudnnHandle_t handle = crk_cudnn("conv2d", c->d);
  if (!handle) return CR_EDEVICE;
  entry *e = find_entry(&p, c->d);
  if (!e) return cr__fail(CR_ENOMEM, "conv2d: out of memory");
  if (e->plan.choice.form == NONE || (!e->decided && crk_may_search(c->d))) choose(e, c, handle);
  if (e->plan.choice.form == DIRECT) return CR_EUNSUPPORTED;
  int rc = run(&e->plan, &e->key, c, handle);
  if (rc == CR_EUNSUPPORTED) e->plan.choice.form = DIRECT;
  return rc;
}
