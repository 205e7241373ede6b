/* Graphs, heuristics and plans of cuDNN 9's backend API (plan.h).
 *
 * Tensors are described as cuDNN requires: sizes in the order N C H W, and strides of channels-last
 * data. Sums are f32, and so is what passes between the operations of a graph. */
#include <string.h>

#include "conv/plan.h"

typedef cudnnBackendDescriptor_t descriptor;
typedef crk_conv_problem problem;
typedef crk_conv_choice choice;
typedef crk_conv_plan plan;
typedef crk_conv_descriptors descriptors;

enum { X = CRK_CONV_X, WEIGHT, OUT, BIAS, RESIDUAL };
enum { PLAIN = CRK_CONV_PLAIN, FUSED = CRK_CONV_FUSED, KNOBS = CRK_CONV_KNOBS };

/* ---- descriptors ------------------------------------------------------------------------------*/

static descriptor create(descriptors *b, cudnnBackendDescriptorType_t type) {
  descriptor d = NULL;
  if (b->n == (int)(sizeof b->d / sizeof *b->d)) return NULL;
  if (cudnnBackendCreateDescriptor(type, &d) != CUDNN_STATUS_SUCCESS) return NULL;
  b->d[b->n++] = d;
  return d;
}

void crk_conv_destroy(descriptors *b) {
  while (b->n > 0) cudnnBackendDestroyDescriptor(b->d[--b->n]);
}

static void destroy(descriptor *d) {
  if (*d) cudnnBackendDestroyDescriptor(*d);
  *d = NULL;
}

/* False if anything has failed before: then d is NULL. */
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

/* A channels-last tensor; `stored` is false for one that stays inside the graph. */
static descriptor tensor(descriptors *b, const problem *p, int64_t name, int64_t n, int64_t h,
                         int64_t w, int64_t c, bool stored) {
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

static descriptor convolution(descriptors *b, const problem *p, descriptor y) {
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
static descriptor pointwise(descriptors *b, cudnnPointwiseMode_t mode, descriptor x,
                            descriptor other, descriptor y) {
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

descriptor crk_conv_graph(descriptors *b, const problem *p, int32_t form, cudnnHandle_t handle) {
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

/* The most bytes of workspace that a plan may need. In full f32, which no long run uses, the fast
 * ones build a matrix. */
static int64_t most_workspace(const problem *p) {
  return p->dtype == CR_F32 ? 256ll << 20 : 64ll << 20;
}

void crk_conv_plan_free(plan *p) {
  destroy(&p->plan);
  destroy(&p->config);
}

/* Builds p->plan from p->config. */
static bool finish_plan(plan *p, cudnnHandle_t handle, int64_t most) {
  int64_t n = 0;
  bool ok =
      cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan) ==
          CUDNN_STATUS_SUCCESS &&
      set(p->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle) &&
      set_descriptor(p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, p->config) &&
      cudnnBackendFinalize(p->plan) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                               1, &n, &p->workspace) == CUDNN_STATUS_SUCCESS &&
      p->workspace <= most;
  if (!ok) crk_conv_plan_free(p);
  return ok;
}

bool crk_conv_restore(plan *p, descriptor graph, cudnnHandle_t handle) {
  const choice *c = &p->choice;
  if (!graph || c->knobs < 0 || c->knobs > KNOBS) return false;
  descriptors b = {};
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
  ok = ok && cudnnBackendFinalize(p->config) == CUDNN_STATUS_SUCCESS &&
       finish_plan(p, handle, INT64_MAX);
  if (!ok) crk_conv_plan_free(p);
  crk_conv_destroy(&b);
  return ok;
}

/* Whether an engine computes as we require: sums in f32 of the given numbers, f32 in full precision
 * unless TF32 is on, the same result each time, and no compilation at run time. */
static bool acceptable(descriptor engine, const problem *p) {
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  cudnnBackendBehaviorNote_t behaviors[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
  int64_t n = 0, n_behaviors = 0;
  uint32_t has = 0;
  if (cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                               CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n,
                               notes) != CUDNN_STATUS_SUCCESS ||
      cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                               CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &n_behaviors,
                               behaviors) != CUDNN_STATUS_SUCCESS)
    return false;
  for (int64_t i = 0; i < n && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++) has |= 1u << notes[i];
  for (int64_t i = 0; i < n_behaviors && i < CUDNN_BEHAVIOR_NOTE_TYPE_COUNT; i++)
    if (behaviors[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION ||
        behaviors[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_FILTER_INT8x32_REORDER ||
        behaviors[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_BIAS_INT8x32_REORDER)
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

/* Reads a configuration into a choice; false if it is not acceptable. */
static bool read_choice(choice *c, descriptor config, const problem *p) {
  descriptors b = {};
  int64_t n = 0;
  descriptor engine = create(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), knobs[KNOBS];
  bool ok =
      engine &&
      cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               1, &n, &engine) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n,
                               &c->engine) == CUDNN_STATUS_SUCCESS &&
      acceptable(engine, p);
  /* If only the number of settings is queried, cuDNN 9.14 returns 0; and a plan that is made again
   * without its settings is slower by up to half. */
  for (int i = 0; ok && i < KNOBS; i++)
    ok = (knobs[i] = create(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)) != NULL;
  bool known = ok &&
               cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                        CUDNN_TYPE_BACKEND_DESCRIPTOR, KNOBS, &n,
                                        knobs) == CUDNN_STATUS_SUCCESS &&
               n <= KNOBS;
  c->knobs = known ? (int32_t)n : -1;
  for (int i = 0; known && i < c->knobs; i++) {
    cudnnBackendKnobType_t type;
    known = cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                                     CUDNN_TYPE_KNOB_TYPE, 1, &n, &type) == CUDNN_STATUS_SUCCESS &&
            cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64,
                                     1, &n, &c->value[i]) == CUDNN_STATUS_SUCCESS;
    c->type[i] = known ? (int32_t)type : 0;
  }
  if (!known) c->knobs = -1;
  crk_conv_destroy(&b);
  return ok;
}

int crk_conv_propose(plan *plans, int most, const problem *p, int32_t form, descriptor graph,
                     cudnnBackendHeurMode_t mode, cudnnHandle_t handle) {
  enum { ASKED = 64 };
  descriptors b = {};
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
      if (finish_plan(&candidate, handle, most_workspace(p))) {
        plans[count++] = candidate;
        continue;
      }
    } else {
      destroy(&configs[i]);
    }
  }
  crk_conv_destroy(&b);
  return count;
}

void crk_conv_warm_up(cudnnHandle_t handle) {
  crk_conv_problem p = {};
  p.dtype = CR_F16;
  p.n = 1;
  p.h = p.w = p.oh = p.ow = 16;
  p.c = p.kc = p.o = 64;
  p.kh = p.kw = 3;
  p.groups = 1;
  p.search = 1;
  for (int i = 0; i < 4; i++) p.pad[i] = 1;
  for (int i = 0; i < 2; i++) p.stride[i] = p.dilation[i] = 1;
  crk_conv_descriptors b = {};
  crk_conv_plan plan = {};
  cudnnBackendDescriptor_t graph = crk_conv_graph(&b, &p, CRK_CONV_PLAIN, handle);
  if (graph && crk_conv_propose(&plan, 1, &p, CRK_CONV_PLAIN, graph, CUDNN_HEUR_MODE_A, handle) > 0)
    crk_conv_plan_free(&plan);
  crk_conv_destroy(&b);
}
