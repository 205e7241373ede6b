/* One convolution as cuDNN sees it: its description, graphs of operations, and plans for them
 * (plan.cu builds them, cudnn.cu chooses and runs them).
 *
 * A graph has one of three forms:
 *   fused   conv, then + residual, then + bias (then ReLU). This order is the only pattern of a
 *           convolution with two additions for which cuDNN has precompiled kernels; with the bias
 *           first it would compile one for seconds.
 *   biased  conv, then + bias (then ReLU); the residual is our own pass (crk_conv_epilogue).
 *   plain   the convolution alone; the rest is our own pass. */
#ifndef CRK_CONV_PLAN_H
#define CRK_CONV_PLAN_H

#include "device/cuda.h"

/* CRK_CONV_DIRECT: our own kernels; CRK_CONV_HOPPER: hopper.cu, with its tile as the engine. */
enum {
  CRK_CONV_NONE,
  CRK_CONV_PLAIN,
  CRK_CONV_FUSED,
  CRK_CONV_DIRECT,
  CRK_CONV_BIASED,
  CRK_CONV_HOPPER
};
/* Ids of the tensors in a graph; inner ones have larger numbers. */
enum { CRK_CONV_X = 1, CRK_CONV_WEIGHT, CRK_CONV_OUT, CRK_CONV_BIAS, CRK_CONV_RESIDUAL };
enum { CRK_CONV_KNOBS = CUDNN_KNOB_TYPE_COUNTS };

/* Everything that a choice depends on, except the card and the library. int32_t only, so there is
 * no padding. */
typedef struct crk_conv_problem {
  int32_t dtype, n, h, w, c, o, kh, kw, kc, oh, ow;
  int32_t pad[4], stride[2], dilation[2], groups;
  int32_t bias, residual, relu; /* what may be fused */
  int32_t tf32, search;
  int32_t hopper; /* whether hopper.cu may be chosen */
} crk_conv_problem;

/* An engine of cuDNN and its settings, as stored on disk. knobs is -1 if cuDNN does not tell the
 * settings, so that the plan cannot be made again. */
typedef struct crk_conv_choice {
  int32_t form, knobs;
  int64_t engine;
  int64_t value[CRK_CONV_KNOBS];
  int32_t type[CRK_CONV_KNOBS];
} crk_conv_choice;

typedef struct crk_conv_plan {
  crk_conv_choice choice;
  cudnnBackendDescriptor_t config, plan;
  int64_t workspace; /* bytes of workspace that it needs */
} crk_conv_plan;

/* Descriptors that are destroyed together. */
typedef struct crk_conv_descriptors {
  cudnnBackendDescriptor_t d[CRK_CONV_KNOBS + 8];
  int n;
} crk_conv_descriptors;
void crk_conv_destroy(crk_conv_descriptors *b);

/* The graph of a form; its parts are kept in `b`. NULL if cuDNN does not support it. */
cudnnBackendDescriptor_t crk_conv_graph(crk_conv_descriptors *b, const crk_conv_problem *p,
                                        int32_t form, cudnnHandle_t handle);
/* Fills `plans` with at most `most` plans that a heuristic of cuDNN proposes for a graph, best
 * first, and returns how many. It leaves out those whose arithmetic we refuse, that would be
 * compiled at run time, or that need much workspace. */
int crk_conv_propose(crk_conv_plan *plans, int most, const crk_conv_problem *p, int32_t form,
                     cudnnBackendDescriptor_t graph, cudnnBackendHeurMode_t mode,
                     cudnnHandle_t handle);
/* Builds the plan of p->choice again, without heuristics; false if the library refuses. */
bool crk_conv_restore(crk_conv_plan *p, cudnnBackendDescriptor_t graph, cudnnHandle_t handle);
void crk_conv_plan_free(crk_conv_plan *p);
/* Builds the plan of a small convolution, so that cuDNN loads what it loads for its first plan. */
void crk_conv_warm_up(cudnnHandle_t handle);

#endif
