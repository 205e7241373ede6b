/* The libraries' handles, and preparing them in parallel to other work.
 *
 * The first use of a card or of a library takes tenths of a second, in which it finds and loads the
 * rest of itself, while the thread that runs Lua and the card wait. A program that knows that it
 * will need them prepares them while it reads its files.
 *
 * Invariants: a handle belongs to the thread that creates it until that thread has ended. crk_lt
 * and crk_cudnn, the only ways to a handle, wait for it. */
#include <pthread.h>
#include <stdlib.h>

#include "device/libraries.h"

typedef struct preparing {
  pthread_t thread;
  bool running;
  int card;
  cublasLtHandle_t lt;
  cudnnHandle_t cudnn;
} preparing;

static preparing ahead[CRK_MAX_CARDS];

static crk_warm_up *warm_up_cudnn;
void crk_libraries_warm_up(crk_warm_up *warm_up) { warm_up_cudnn = warm_up; }

static void *work(void *argument) {
  preparing *p = (preparing *)argument;
  if (cudaSetDevice(p->card) != cudaSuccess) return NULL;
  if (cudnnCreate(&p->cudnn) != CUDNN_STATUS_SUCCESS) p->cudnn = NULL;
  if (cublasLtCreate(&p->lt) != CUBLAS_STATUS_SUCCESS) p->lt = NULL;
  if (p->cudnn && warm_up_cudnn) warm_up_cudnn(p->cudnn);
  return NULL;
}

static void wait_for(preparing *p) {
  if (p->running) pthread_join(p->thread, NULL);
  p->running = false;
}

/* The process must not end while this thread runs: the libraries' own exit handlers would
 * interfere. */
static void wait_for_all(void) {
  for (int i = 0; i < CRK_MAX_CARDS; i++) wait_for(&ahead[i]);
}

void crk_libraries_prepare(crk_device *d) {
  static bool registered;
  preparing *p = &ahead[d->card];
  if (p->running || d->lt || d->cudnn) return;
  if (!registered && atexit(wait_for_all) != 0) return;
  registered = true;
  p->card = d->card;
  p->lt = NULL;
  p->cudnn = NULL;
  p->running = pthread_create(&p->thread, NULL, work, p) == 0;
}

void crk_libraries_prepared(crk_device *d) {
  preparing *p = &ahead[d->card];
  if (!p->running) return;
  wait_for(p);
  d->lt = p->lt;
  d->cudnn = p->cudnn;
  d->cudnn_stream = NULL;
}

cublasLtHandle_t crk_lt(const char *name, crk_device *d) {
  crk_libraries_prepared(d);
  if (!d->lt) {
    cublasStatus_t rc = cublasLtCreate(&d->lt);
    if (rc != CUBLAS_STATUS_SUCCESS) {
      d->lt = NULL;
      cr__fail(CR_EDEVICE, "%s: cuBLAS does not start: %s", name, cublasLtGetStatusString(rc));
    }
  }
  return d->lt;
}

cudnnHandle_t crk_cudnn(const char *name, crk_device *d) {
  crk_libraries_prepared(d);
  if (!d->cudnn) {
    cudnnStatus_t rc = cudnnCreate(&d->cudnn);
    if (rc != CUDNN_STATUS_SUCCESS) {
      if (d->cudnn) cudnnDestroy(d->cudnn);
      d->cudnn = NULL;
      cr__fail(CR_EDEVICE, "%s: cuDNN does not start: %s", name, cudnnGetErrorString(rc));
      return NULL;
    }
    d->cudnn_stream = NULL;
  }
  if (d->cudnn_stream != d->stream) {
    cudnnStatus_t rc = cudnnSetStream(d->cudnn, d->stream);
    if (rc != CUDNN_STATUS_SUCCESS) {
      cr__fail(CR_EDEVICE, "%s: cuDNN: %s", name, cudnnGetErrorString(rc));
      return NULL;
    }
    d->cudnn_stream = d->stream;
  }
  return d->cudnn;
}
