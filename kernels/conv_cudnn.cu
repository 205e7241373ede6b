/* Convolutions by cuDNN 9's backend API.
 *
 * A convolution is described to cuDNN as a graph of operations, in one of three forms:
 *   fused   conv, then + residual, then + bias (then ReLU): in this order it is the one pattern of
 *           a convolution with two additions that cuDNN has ready-made kernels for; with the bias
 *           first it would compile one for seconds
 *   biased  conv, then + bias (then ReLU); the residual is a pass of our own (crk_conv_epilogue)
 *   plain   the convolution alone; what follows is a pass of our own
 * cuDNN's heuristics propose engines with settings ("configurations") for a graph; those whose
 * arithmetic we refuse, that would be compiled at run time or take much memory are left out, and
 * the rest is timed once (algorithms.h). A choice is kept as the engine's number and its settings,
 * from which the plan is made again without heuristics or timing.
 *
 * Tensors are described as cuDNN wants them: sizes in the order N C H W, strides of channels-last
 * data. Sums are f32; what is not stored between the operations of a graph is f32 too.
 *
 * Invariants: a plan belongs to one generation of a card; after a reset its descriptors are left to
 * the library, whose handle is gone. An entry holds its descriptors and is never moved. */
#include <stdio.h>
#include <string.h>

#include "algorithms.h"
#include "conv.h"

typedef cudnnBackendDescriptor_t descriptor;

/* All that a choice depends on but the card and the library; int32_t only, so without padding. */
typedef struct problem {
  int32_t dtype, n, h, w, c, o, kh, kw, kc, oh, ow;
  int32_t pad[4], stride[2], dilation[2], groups;
  int32_t bias, residual, relu; /* what may be fused */
  int32_t tf32, search, fusion;
} problem;

enum { NONE, PLAIN, FUSED, DIRECT, BIASED }; /* forms; DIRECT: own kernels are to do it */
enum { X = 1, WEIGHT, OUT, BIAS, RESIDUAL }; /* names of tensors in a graph */
enum { KNOBS = 24 };

/* An engine and its settings, as it is kept on disk. */
typedef struct choice {
  int32_t form, knobs;
  int64_t engine;
  int64_t value[KNOBS];
  int32_t type[KNOBS];
} choice;

typedef struct plan {
  choice choice;
  descriptor config, plan;
  int64_t workspace;
} plan;

/* Descriptors that are destroyed together. */
typedef struct bag {
  descriptor d[32];
  int n;
} bag;

typedef struct entry {
  struct entry *next;
  problem key;
  uint64_t hash, generation;
  int card;
  bool settled; /* timed, or there is nothing to time */
  plan plan;
  bag graph; /* of its form */
} entry;

enum { SLOTS = 512, MOST_ENTRIES = 4096 };
static entry *entries[SLOTS];
static int entry_count;

/* ---- descriptors ------------------------------------------------------------------------------*/

static descriptor create(bag *b, cudnnBackendDescriptorType_t type) {
  descriptor d = NULL;
  if (b->n == (int)(sizeof b->d / sizeof *b->d)) return NULL;
  if (cudnnBackendCreateDescriptor(type, &d) != CUDNN_STATUS_SUCCESS) return NULL;
  b->d[b->n++] = d;
  return d;
}

static void empty(bag *b) {
  while (b->n > 0) cudnnBackendDestroyDescriptor(b->d[--b->n]);
}

static void destroy(descriptor *d) {
  if (*d) cudnnBackendDestroyDescriptor(*d);
  *d = NULL;
}

/* False if anything before has failed already: d is NULL then. */
static bool set(descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t n, const void *values) {
  return d && cudnnBackendSetAttribute(d, name, type, n, values) == CUDNN_STATUS_SUCCESS;
}

static bool set_int(descriptor d, cudnnBackendAttributeName_t name, int64_t value) {
  return set(d, name, CUDNN_TYPE_INT64, 1, &value);
}

static bool set_type(descriptor d, cudnnBackendAttributeName_t name, cudnnDataType_t type) {
  return set(d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static bool set_descriptor(descriptor d, cudnnBackendAttributeName_t name, descriptor value) {
  return value && set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static descriptor finish(descriptor d, bool ok) {
  return ok && cudnnBackendFinalize(d) == CUDNN_STATUS_SUCCESS ? d : NULL;
}

/* ---- graphs -----------------------------------------------------------------------------------*/

static cudnnDataType_t data_type(int32_t dtype) {
  return dtype == CR_F16    ? CUDNN_DATA_HALF
         : dtype == CR_BF16 ? CUDNN_DATA_BFLOAT16
                            : CUDNN_DATA_FLOAT;
}

/* A channels-last tensor; `stored` is false for what stays inside the graph. */
static descriptor tensor(bag *b, const problem *p, int64_t name, int64_t n, int64_t h, int64_t w,
                         int64_t c, bool stored) {
  descriptor d = create(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  int64_t size[4] = {n, c, h, w}, stride[4] = {h * w * c, 1, w * c, c};
  bool ok =
      set_type(d, CUDNN_ATTR_TENSOR_DATA_TYPE, stored ? data_type(p->dtype) : CUDNN_DATA_FLOAT) &&
      set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, size) &&
      set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride) &&
      set_int(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, name) &&
      set_int(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16);
  bool inside = true;
  if (ok && !stored) ok = set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inside);
  return finish(d, ok);
}

static descriptor convolution(bag *b, const problem *p, descriptor y) {
  descriptor x = tensor(b, p, X, p->n, p->h, p->w, p->c, true);
  descriptor weight = tensor(b, p, WEIGHT, p->o, p->kh, p->kw, p->kc, true);
  descriptor how = create(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  int64_t before[2] = {p->pad[0], p->pad[2]}, after[2] = {p->pad[1], p->pad[3]};
  int64_t stride[2] = {p->stride[0], p->stride[1]}, dilation[2] = {p->dilation[0], p->dilation[1]};
  bool ok = set_int(how, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 2) &&
            set_type(how, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT) &&
            set(how, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode) &&
            set(how, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before) &&
            set(how, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after) &&
            set(how, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation) &&
            set(how, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
  how = finish(how, ok);
  descriptor op = create(b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
  float one = 1, zero = 0;
  ok = set_descriptor(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, how) &&
       set_descriptor(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x) &&
       set_descriptor(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, weight) &&
       set_descriptor(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y) &&
       set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one) &&
       set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
  return finish(op, ok);
}

/* y = mode(x) or mode(x, other) */
static descriptor pointwise(bag *b, cudnnPointwiseMode_t mode, descriptor x, descriptor other,
                            descriptor y) {
  descriptor how = create(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  bool ok = set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode) &&
            set_type(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  how = finish(how, ok);
  descriptor op = create(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  ok = set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how) &&
       set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x) &&
       set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  if (ok && mode == CUDNN_POINTWISE_ADD)
    ok = set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other);
  return finish(op, ok);
}

/* The graph of a form; NULL if cuDNN does not take it. */
static descriptor make_graph(bag *b, const problem *p, int32_t form, cudnnHandle_t handle) {
  descriptor ops[4];
  int n = 0, inside = RESIDUAL;
  bool fused = form != PLAIN, add = form == FUSED && p->residual, relu = fused && p->relu;
  descriptor out = tensor(b, p, OUT, p->n, p->oh, p->ow, p->o, true), y = out;
  if (fused) y = tensor(b, p, ++inside, p->n, p->oh, p->ow, p->o, false);
  ops[n++] = convolution(b, p, y);
  if (add) {
    descriptor r = tensor(b, p, RESIDUAL, p->n, p->oh, p->ow, p->o, true);
    descriptor sum = tensor(b, p, ++inside, p->n, p->oh, p->ow, p->o, false);
    ops[n++] = pointwise(b, CUDNN_POINTWISE_ADD, y, r, sum);
    y = sum;
  }
  if (fused) {
    descriptor bias = tensor(b, p, BIAS, 1, 1, 1, p->o, true);
    descriptor sum = relu ? tensor(b, p, ++inside, p->n, p->oh, p->ow, p->o, false) : out;
    ops[n++] = pointwise(b, CUDNN_POINTWISE_ADD, y, bias, sum);
    y = sum;
  }
  if (relu) ops[n++] = pointwise(b, CUDNN_POINTWISE_RELU_FWD, y, NULL, out);
  for (int i = 0; i < n; i++)
    if (!ops[i]) return NULL;
  descriptor g = create(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  bool ok = set(g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle) &&
            set(g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, ops);
  return finish(g, ok);
}

/* ---- plans ------------------------------------------------------------------------------------*/

/* Scratch that a plan may ask for. */
static const int64_t most_workspace = 256ll << 20;

static void plan_free(plan *p) {
  destroy(&p->plan);
  destroy(&p->config);
}

/* Makes p->plan of p->config. */
static bool finish_plan(plan *p, cudnnHandle_t handle) {
  int64_t n = 0;
  bool ok =
      cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan) ==
          CUDNN_STATUS_SUCCESS &&
      set(p->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle) &&
      set_descriptor(p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, p->config) &&
      cudnnBackendFinalize(p->plan) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                               1, &n, &p->workspace) == CUDNN_STATUS_SUCCESS &&
      p->workspace <= most_workspace;
  if (!ok) plan_free(p);
  return ok;
}

/* Makes a plan of p->choice again. */
static bool restore_plan(plan *p, descriptor graph, cudnnHandle_t handle) {
  const choice *c = &p->choice;
  if (!graph || c->knobs < 0 || c->knobs > KNOBS) return false;
  bag b = {};
  descriptor knobs[KNOBS];
  descriptor engine = create(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  bool ok = set_descriptor(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph) &&
            set_int(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, c->engine);
  engine = finish(engine, ok);
  ok = engine != NULL;
  for (int i = 0; ok && i < c->knobs; i++) {
    cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)c->type[i];
    knobs[i] = create(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    ok = set(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type) &&
         set_int(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, c->value[i]);
    ok = finish(knobs[i], ok) != NULL;
  }
  ok = ok && cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &p->config) ==
                 CUDNN_STATUS_SUCCESS;
  ok = ok && set_descriptor(p->config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (ok && c->knobs > 0)
    ok = set(p->config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, c->knobs,
             knobs);
  ok = ok && cudnnBackendFinalize(p->config) == CUDNN_STATUS_SUCCESS && finish_plan(p, handle);
  if (!ok) plan_free(p);
  empty(&b);
  return ok;
}

/* Whether an engine computes as we want: sums in f32 of the given numbers, f32 in full precision
 * unless TF32 is on, the same result each time, and ready-made. */
static bool acceptable(descriptor engine, const problem *p) {
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  cudnnBackendBehaviorNote_t ways[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
  int64_t n = 0, n_ways = 0;
  uint32_t has = 0;
  if (cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                               CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n,
                               notes) != CUDNN_STATUS_SUCCESS ||
      cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                               CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &n_ways,
                               ways) != CUDNN_STATUS_SUCCESS)
    return false;
  for (int64_t i = 0; i < n && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++) has |= 1u << notes[i];
  for (int64_t i = 0; i < n_ways && i < CUDNN_BEHAVIOR_NOTE_TYPE_COUNT; i++)
    if (ways[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION ||
        ways[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_FILTER_INT8x32_REORDER ||
        ways[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_BIAS_INT8x32_REORDER)
      return false;
  uint32_t refused = 1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC |
                     1u << CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION |
                     1u << CUDNN_NUMERICAL_NOTE_FFT | 1u << CUDNN_NUMERICAL_NOTE_WINOGRAD |
                     1u << CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6 |
                     1u << CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13;
  if (p->dtype == CR_F32 && !p->tf32)
    refused |=
        1u << CUDNN_NUMERICAL_NOTE_TENSOR_CORE | 1u << CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
  return !(has & refused);
}

/* Reads a configuration as a choice; false if it is not acceptable. */
static bool read_choice(choice *c, descriptor config, const problem *p) {
  bag b = {};
  int64_t n = 0;
  descriptor engine = create(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), knobs[KNOBS];
  bool ok =
      engine &&
      cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               1, &n, &engine) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n,
                               &c->engine) == CUDNN_STATUS_SUCCESS &&
      acceptable(engine, p) &&
      cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &n,
                               NULL) == CUDNN_STATUS_SUCCESS &&
      n <= KNOBS;
  c->knobs = ok ? (int32_t)n : 0;
  for (int i = 0; ok && i < c->knobs; i++)
    ok = (knobs[i] = create(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)) != NULL;
  if (ok && c->knobs > 0)
    ok = cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                  CUDNN_TYPE_BACKEND_DESCRIPTOR, c->knobs, &n,
                                  knobs) == CUDNN_STATUS_SUCCESS;
  for (int i = 0; ok && i < c->knobs; i++) {
    cudnnBackendKnobType_t type;
    ok = cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
                                  1, &n, &type) == CUDNN_STATUS_SUCCESS &&
         cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1,
                                  &n, &c->value[i]) == CUDNN_STATUS_SUCCESS;
    c->type[i] = ok ? (int32_t)type : 0;
  }
  empty(&b);
  return ok;
}

/* Appends at most `most` plans that a heuristic proposes for a graph; best first. */
static int propose(plan *plans, int most, const problem *p, int32_t form, descriptor graph,
                   cudnnBackendHeurMode_t mode, cudnnHandle_t handle) {
  enum { ASKED = 64 };
  bag b = {};
  descriptor heuristic = create(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), configs[ASKED];
  bool ok = set_descriptor(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph) &&
            set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  heuristic = finish(heuristic, ok);
  int64_t n = 0, got = 0;
  if (!heuristic ||
      cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &n, NULL) != CUDNN_STATUS_SUCCESS)
    n = 0;
  if (n > ASKED) n = ASKED;
  int made = 0, count = 0;
  while (made < n && cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                                  &configs[made]) == CUDNN_STATUS_SUCCESS)
    made++;
  if (made > 0 && cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                           CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &got,
                                           configs) != CUDNN_STATUS_SUCCESS)
    got = 0;
  for (int i = 0; i < made; i++) {
    plan candidate = {};
    candidate.choice.form = form;
    if (i < got && count < most && read_choice(&candidate.choice, configs[i], p)) {
      candidate.config = configs[i];
      if (finish_plan(&candidate, handle)) {
        plans[count++] = candidate;
        continue;
      }
    } else {
      destroy(&configs[i]);
    }
  }
  empty(&b);
  return count;
}

/* ---- running ----------------------------------------------------------------------------------*/

/* Says what cuDNN says. Nothing is queued, so others may try, unless the card itself has failed. */
static int failed(crk_device *d, cudnnStatus_t status) {
  CR_TRY(crk_launched("conv2d", d));
  char why[300] = "";
  cudnnGetLastErrorString(why, sizeof why);
  return cr__fail(CR_EUNSUPPORTED, "conv2d: cuDNN: %s%s%s", cudnnGetErrorString(status),
                  why[0] ? ": " : "", why);
}

static int execute(const plan *p, const crk_conv *c, cudnnHandle_t handle) {
  cr_storage *scratch = NULL;
  if (p->workspace > 0) {
    scratch = cr__storage_new(p->workspace, c->d->device);
    if (!scratch) return CR_ENOMEM;
  }
  int64_t names[5] = {X, WEIGHT, OUT};
  void *data[5] = {crk_ptr(c->x), crk_ptr(c->weight), crk_ptr(c->out)};
  int n = 3;
  if (p->choice.form != PLAIN) {
    names[n] = BIAS;
    data[n++] = crk_ptr(c->bias);
  }
  if (p->choice.form == FUSED && c->residual && c->o->act == CR_ACT_NONE) {
    names[n] = RESIDUAL;
    data[n++] = crk_ptr(c->residual);
  }
  void *workspace = scratch ? scratch->data : NULL;
  bag b = {};
  descriptor pack = create(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  bool ok = set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data) &&
            set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, names) &&
            set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack = finish(pack, ok);
  cudnnStatus_t status =
      pack ? cudnnBackendExecute(handle, p->plan, pack) : CUDNN_STATUS_INTERNAL_ERROR;
  int rc = status == CUDNN_STATUS_SUCCESS ? CR_OK : failed(c->d, status);
  empty(&b);
  if (scratch) cr__release(scratch);
  return rc;
}

/* What a form leaves to the epilogue. */
static int run(const plan *p, const crk_conv *c, cudnnHandle_t handle) {
  if (p->choice.form == DIRECT) return crk_conv_direct(c);
  CR_TRY(execute(p, c, handle));
  crk_conv rest = *c;
  cr_conv after = *c->o;
  rest.o = &after;
  if (p->choice.form != PLAIN) {
    rest.bias = NULL;
    if (after.act == CR_ACT_NONE && p->choice.form == FUSED) rest.residual = NULL;
    if (after.act == CR_ACT_RELU && !rest.residual) after.act = CR_ACT_NONE;
  }
  if (!rest.bias && !rest.residual && after.act == CR_ACT_NONE) return crk_launched("conv2d", c->d);
  return crk_conv_epilogue(&rest, c->out);
}

typedef struct search {
  const plan *plans;
  const crk_conv *conv;
  cudnnHandle_t handle;
} search;

static int run_candidate(void *arg, int i) {
  const search *s = (const search *)arg;
  return run(&s->plans[i], s->conv, s->handle);
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
  p.bias = c->bias != NULL;
  p.residual = c->residual && o->act == CR_ACT_NONE;
  p.relu = o->act == CR_ACT_RELU && !c->residual;
  p.tf32 = c->d->tf32 != 0;
  p.search = c->d->search != 0;
  p.fusion = c->d->fusion != 0;
  return p;
}

static void key_text(char *text, size_t size, const problem *p) {
  int n = snprintf(text, size, "conv2d 4 cudnn %zu", cudnnGetVersion());
  const int32_t *v = (const int32_t *)p;
  for (size_t i = 0; i < sizeof *p / sizeof *v && n > 0 && (size_t)n < size; i++)
    n += snprintf(text + n, size - (size_t)n, " %d", v[i]);
}

/* Puts plans into e->plan: what was found before, else the fastest of the proposals, else, where
 * timing is not possible, the first. */
static void choose(entry *e, const crk_conv *c, cudnnHandle_t handle) {
  enum { MOST_FUSED = 12, MOST_PLAIN = 4, MOST_OTHER = 4 };
  enum { MOST = MOST_FUSED + 2 * MOST_PLAIN + 2 * MOST_OTHER + 1 };
  /* In small ones the launch is all: a few proposals will do. */
  double work =
      2.0 * e->key.n * e->key.oh * e->key.ow * e->key.o * e->key.kh * e->key.kw * e->key.kc;
  int most_fused = work < 2e8 ? 5 : MOST_FUSED, most_plain = work < 2e8 ? 3 : MOST_PLAIN;
  const problem *p = &e->key;
  char key[CRK_ALGORITHM_KEY + 1];
  key_text(key, sizeof key, p);
  plan_free(&e->plan);
  empty(&e->graph);
  e->settled = true;
  e->plan.choice.form = DIRECT;

  choice found;
  if (c->d->search && crk_algorithm_find(c->d, key, &found, sizeof found)) {
    if (found.form == DIRECT) return;
    if (found.form == PLAIN ||
        ((found.form == FUSED || found.form == BIASED) && p->bias && p->fusion)) {
      e->plan.choice = found;
      if (restore_plan(&e->plan, make_graph(&e->graph, p, found.form, handle), handle)) return;
      empty(&e->graph);
      e->plan.choice.form = DIRECT;
    }
  }

  plan plans[MOST] = {};
  bag graphs[3] = {}; /* fused, biased, plain */
  int n = 0;
  if (p->bias && p->fusion) {
    descriptor g = make_graph(&graphs[0], p, FUSED, handle);
    if (g) n += propose(plans, most_fused, p, FUSED, g, CUDNN_HEUR_MODE_A, handle);
    if (g && n < most_fused)
      n += propose(plans + n, MOST_OTHER, p, FUSED, g, CUDNN_HEUR_MODE_FALLBACK, handle);
  }
  /* The fused form has few engines of full f32, and slow ones; and there are shapes where a faster
   * engine for less wins back the pass that follows. */
  if (p->residual && p->bias && p->fusion && p->search) {
    descriptor g = make_graph(&graphs[1], p, BIASED, handle);
    if (g) n += propose(plans + n, most_plain, p, BIASED, g, CUDNN_HEUR_MODE_A, handle);
  }
  if (n == 0 || p->search) {
    descriptor g = make_graph(&graphs[2], p, PLAIN, handle);
    int before = n;
    if (g) n += propose(plans + n, most_plain, p, PLAIN, g, CUDNN_HEUR_MODE_A, handle);
    if (g && n - before < MOST_OTHER)
      n += propose(plans + n, MOST_OTHER, p, PLAIN, g, CUDNN_HEUR_MODE_FALLBACK, handle);
  }
  int best = n > 0 ? 0 : -1;
  if (n > 0 && p->search) {
    /* Own kernels as well where cuDNN's tiles would be mostly padding, or the launch is all. */
    if (n < MOST && (p->o <= 8 || (p->dtype == CR_F32 && work < 2e9)))
      plans[n++].choice.form = DIRECT;
    if (crk_may_search(c->d)) {
      search s = {plans, c, handle};
      best = crk_fastest("conv2d", c->d, n, run_candidate, &s, 200);
      if (best >= 0)
        crk_algorithm_remember(c->d, key, &plans[best].choice, sizeof plans[best].choice);
    } else {
      e->settled = false; /* until a call that may take time */
    }
  }
  if (best >= 0) {
    e->plan = plans[best];
    if (e->plan.choice.form != DIRECT) {
      int g = e->plan.choice.form == FUSED ? 0 : e->plan.choice.form == BIASED ? 1 : 2;
      e->graph = graphs[g];
      graphs[g].n = 0;
    }
  }
  for (int i = 0; i < n; i++)
    if (i != best) plan_free(&plans[i]);
  for (int i = 0; i < 3; i++) empty(&graphs[i]);
}

static uint64_t hash_bytes(const void *data, size_t n) {
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)data)[i]) * 1099511628211u;
  return h;
}

/* The entry of a problem, new and empty if there was none; NULL without memory. */
static entry *find_entry(const problem *p, const crk_device *d) {
  uint64_t hash = hash_bytes(p, sizeof *p);
  entry **slot = &entries[hash % SLOTS];
  for (entry **at = slot, *e = *at; e; e = *at) {
    if (e->card == d->card && e->generation != d->generation) {
      *at = e->next;
      free(e);
      entry_count--;
      continue;
    }
    if (e->hash == hash && e->card == d->card && memcmp(&e->key, p, sizeof *p) == 0) return e;
    at = &e->next;
  }
  /* A program whose shapes never end starts over. */
  if (entry_count >= MOST_ENTRIES)
    for (int i = 0; i < SLOTS; i++)
      while (entries[i]) {
        entry *e = entries[i];
        entries[i] = e->next;
        plan_free(&e->plan);
        empty(&e->graph);
        free(e);
        entry_count--;
      }
  entry *e = (entry *)calloc(1, sizeof *e);
  if (!e) return NULL;
  e->key = *p;
  e->hash = hash;
  e->card = d->card;
  e->generation = d->generation;
  e->next = *slot;
  *slot = e;
  entry_count++;
  return e;
}

int crk_conv_cudnn(const crk_conv *c) {
  cudnnHandle_t handle = crk_cudnn("conv2d", c->d);
  if (!handle) return CR_EDEVICE;
  problem p = describe(c);
  entry *e = find_entry(&p, c->d);
  if (!e) return cr__fail(CR_ENOMEM, "conv2d: no memory");
  if (e->plan.choice.form == NONE || (!e->settled && crk_may_search(c->d))) choose(e, c, handle);
  if (e->plan.choice.form == DIRECT) return CR_EUNSUPPORTED;
  int rc = run(&e->plan, c, handle);
  if (rc == CR_EUNSUPPORTED) e->plan.choice.form = DIRECT;
  return rc;
}
