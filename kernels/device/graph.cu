/* Recordings: CUDA graphs captured from a card's stream.
 *
 * Invariants: while a card records (d->capturing), memory_new draws from the pool that recordings
 * share (d->graph_memory). A recording retains every storage from outside of it whose address goes
 * into a recorded kernel, so that freeing a weight cannot make a replay read freed memory. A
 * recording belongs to one generation of its card and refuses to run after a reset. */
#include <stdlib.h>
#include <string.h>

#include "device/cuda.h"

struct cr_graph {
  crk_device *d;
  uint64_t context, generation;
  int32_t stream; /* it was recorded on this stream, so its temporaries belong to it */
  cudaGraphExec_t exec;
  size_t size; /* nodes */
  cr_storage **held;
  int64_t held_count;
};

uint64_t crk_recording;
static uint64_t recordings;

/* The storages that the recording under way uses: an open-addressing set of pointers. */
static cr_storage **noted;
static int64_t noted_count, noted_room;

static int64_t slot_of(cr_storage *const *set, int64_t room, const cr_storage *s) {
  uint64_t i = (uint64_t)(uintptr_t)s / 64 * 0x9E3779B97F4A7C15u >> 20;
  while (set[i & (uint64_t)(room - 1)] && set[i & (uint64_t)(room - 1)] != s) i++;
  return (int64_t)(i & (uint64_t)(room - 1));
}

void crk_graph_note(cr_storage *s) {
  if (s->recorded == crk_recording) return; /* its own temporaries */
  if (noted_count * 2 >= noted_room) {
    int64_t room = noted_room ? noted_room * 2 : 4096;
    cr_storage **set = (cr_storage **)calloc((size_t)room, sizeof *set);
    if (!set) return; /* only this protection is lost */
    for (int64_t i = 0; i < noted_room; i++)
      if (noted[i]) set[slot_of(set, room, noted[i])] = noted[i];
    free(noted);
    noted = set;
    noted_room = room;
  }
  int64_t at = slot_of(noted, noted_room, s);
  if (noted[at]) return;
  noted[at] = s;
  noted_count++;
  cr__retain(s);
}

/* Hands the noted storages over to a recording, or (NULL) releases them. */
static void take_noted(cr_graph *g) {
  if (g && noted_count) {
    g->held = (cr_storage **)malloc((size_t)noted_count * sizeof *g->held);
    if (!g->held) g = NULL;
  }
  for (int64_t i = 0; i < noted_room; i++) {
    if (!noted[i]) continue;
    if (g)
      g->held[g->held_count++] = noted[i];
    else
      cr__release(noted[i]);
  }
  free(noted);
  noted = NULL;
  noted_count = noted_room = 0;
}

static int graph_begin(int32_t device) {
  crk_device *d = crk_device_get("graph", device);
  if (!d) return CR_EDEVICE;
  if (crk_recording) return cr__fail(CR_EUNSUPPORTED, "graph: another recording is under way");
  /* Relaxed: device memory may be allocated meanwhile, and other threads do not concern us. */
  CRK_TRY("graph", d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed));
  d->capturing = true;
  d->uncapturable[0] = 0;
  crk_recording = ++recordings;
  d->graph_memory = true;
  return CR_OK;
}

/* Ends the capture; *graph is NULL if it has failed. */
static cudaError_t stop(crk_device *d, cudaGraph_t *graph) {
  *graph = NULL;
  cudaError_t e = cudaStreamEndCapture(d->stream, graph);
  d->capturing = false;
  crk_recording = 0;
  d->graph_memory = false;
  return e;
}

static int graph_end(int32_t device, cr_graph **out) {
  crk_device *d = crk_device_get("graph", device);
  if (!d) return CR_EDEVICE;
  if (!d->capturing) return cr__fail(CR_EINVAL, "graph: nothing is being recorded");
  cudaGraph_t graph;
  cudaError_t e = stop(d, &graph);
  cr_graph *g = NULL;
  if (d->uncapturable[0]) {
    cr__fail(CR_EUNSUPPORTED, "graph: the work cannot be recorded: %s", d->uncapturable);
  } else if (e != cudaSuccess) {
    crk_check("graph", d, e);
  } else if ((g = (cr_graph *)calloc(1, sizeof *g)) == NULL) {
    cr__fail(CR_ENOMEM, "graph: out of memory");
  } else if ((e = cudaGraphInstantiate(&g->exec, graph, 0)) != cudaSuccess) {
    crk_check("graph", d, e);
    free(g);
    g = NULL;
  } else {
    cudaGraphGetNodes(graph, NULL, &g->size);
  }
  if (graph) cudaGraphDestroy(graph);
  if (!g) {
    cudaGetLastError();
    take_noted(NULL);
    return cr__last_code();
  }
  g->d = d;
  g->context = d->context;
  g->generation = d->generation;
  g->stream = crk_stream;
  take_noted(g);
  d->graphs++;
  cudaGraphUpload(g->exec, d->stream);
  *out = g;
  return crk_launched("graph", d);
}

static int graph_abandon(int32_t device) {
  crk_device *d = crk_device_get("graph", device);
  if (!d) return CR_EDEVICE;
  if (!d->capturing) return CR_OK;
  cudaGraph_t graph;
  stop(d, &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError(); /* a failed capture leaves an error */
  take_noted(NULL);
  return CR_OK;
}

static int graph_rehearse(int32_t device, int32_t on) {
  crk_device *d = crk_device_get("graph", device);
  if (!d) return CR_EDEVICE;
  if (d->capturing) return cr__fail(CR_EINVAL, "graph: a recording is under way");
  d->graph_memory = on != 0;
  return CR_OK;
}

static int graph_launch(cr_graph *g) {
  crk_device *d = crk_device_get("graph", g->d->device);
  if (!d) return CR_EDEVICE;
  if (g->generation != d->generation)
    return cr__fail(CR_ECLOSED, "graph: the recording was lost when its device was reset");
  if (g->stream != crk_stream)
    return cr__fail(CR_EINVAL, "graph: it was recorded on stream %d, but stream %d is in use",
                    g->stream, crk_stream);
  for (int64_t i = 0; i < g->held_count; i++)
    if (g->held[i]->stream != crk_stream) crk_touch(g->held[i]);
  cudaError_t e = cudaGraphLaunch(g->exec, d->stream);
  if (e != cudaSuccess) return crk_check("graph", d, e);
  return crk_launched("graph", d);
}

static int64_t graph_size(const cr_graph *g) { return (int64_t)g->size; }

/* Queued work may still run: the card keeps what it needs until that is done, and memory is
 * returned in stream order. */
static void graph_free(cr_graph *g) {
  if (g->context == g->d->context) {
    cudaSetDevice(g->d->card);
    if (g->exec) cudaGraphExecDestroy(g->exec);
    cudaGetLastError();
  }
  if (g->generation == g->d->generation) g->d->graphs--;
  for (int64_t i = 0; i < g->held_count; i++) cr__release(g->held[i]);
  free(g->held);
  free(g);
}

void crk_fill_graph(cr__backend *b) {
  b->graph_begin = graph_begin, b->graph_end = graph_end;
  b->graph_abandon = graph_abandon, b->graph_rehearse = graph_rehearse;
  b->graph_launch = graph_launch, b->graph_size = graph_size;
  b->graph_free = graph_free;
}
