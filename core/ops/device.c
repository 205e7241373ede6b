/* The public functions for devices, graphs and runtime kernels: checks, then the GPU's table does
 * the work. */
#include "base/backend.h"

static const cr__backend *card(const char *name, int32_t device) {
  if (device >= CR_CUDA) return cr__backend_for(name, device);
  cr__fail(CR_EINVAL, "%s: a GPU is needed, not the CPU", name);
  return NULL;
}

/* Calls one entry of a GPU's table; the value is the call's result. */
#define ON_CARD(name, device_, field, ...)                                                         \
  (card((name), (device_)) ? card((name), (device_))->field(__VA_ARGS__) : CR_EDEVICE)

CR_EXPORT int32_t cr_device_count(void) {
  const cr__backend *b = cr__backend_for("device_count", CR_CUDA);
  return b ? b->device_count() : CR_EDEVICE;
}

CR_EXPORT int cr_device_info_get(int32_t device, cr_device_info *out) {
  return ON_CARD("device_info", device, device_info, device, out);
}

CR_EXPORT int cr_device_option(int32_t device, const char *name, int64_t *value, int32_t set) {
  return ON_CARD("device_option", device, device_option, device, name, value, set);
}

CR_EXPORT int cr_device_synchronize(int32_t device) {
  if (device == CR_CPU) return CR_OK;
  return ON_CARD("synchronize", device, device_synchronize, device);
}

CR_EXPORT int32_t cr_device_stream(int32_t stream) {
  return ON_CARD("stream", CR_CUDA, device_stream, stream);
}

CR_EXPORT int64_t cr_device_record(int32_t device) {
  return ON_CARD("record", device, device_record, device);
}

CR_EXPORT int cr_device_reset(int32_t device) {
  return ON_CARD("reset", device, device_reset, device);
}

CR_EXPORT int cr_graph_begin(int32_t device) {
  return ON_CARD("graph", device, graph_begin, device);
}

CR_EXPORT int cr_graph_end(int32_t device, cr_graph **out) {
  return ON_CARD("graph", device, graph_end, device, out);
}

CR_EXPORT int cr_graph_abandon(int32_t device) {
  return ON_CARD("graph", device, graph_abandon, device);
}

CR_EXPORT int cr_graph_rehearse(int32_t device, int32_t on) {
  return ON_CARD("graph", device, graph_rehearse, device, on);
}

CR_EXPORT int cr_graph_launch(cr_graph *g) {
  if (!g) return cr__fail(CR_ECLOSED, "graph: the graph has been freed");
  if (cr__check_interrupt("graph")) return CR_EINTERRUPT;
  return ON_CARD("graph", CR_CUDA, graph_launch, g);
}

CR_EXPORT int64_t cr_graph_size(const cr_graph *g) {
  if (!g) return cr__fail(CR_ECLOSED, "graph: the graph has been freed");
  return ON_CARD("graph", CR_CUDA, graph_size, g);
}

CR_EXPORT void cr_graph_free(cr_graph *g) {
  const cr__backend *b = g ? card("graph", CR_CUDA) : NULL;
  if (b) b->graph_free(g);
}

CR_EXPORT int cr_code_load(cr_code **out, int32_t device, const void *image, const char *function) {
  return ON_CARD("kernel", device, code_load, out, device, image, function);
}

CR_EXPORT int cr_code_launch(cr_code *c, const int32_t *grid, const int32_t *block, int32_t shared,
                             int32_t n, const cr_argument *arguments) {
  if (!c) return cr__fail(CR_ECLOSED, "kernel: the kernel has been freed");
  if (cr__check_interrupt("kernel")) return CR_EINTERRUPT;
  for (int32_t k = 0; k < 3; k++) {
    if (grid[k] < 1 || block[k] < 1)
      return cr__fail(CR_EINVAL,
                      "kernel: %d x %d x %d blocks of %d x %d x %d threads cannot be launched: "
                      "each size must be at least 1",
                      grid[0], grid[1], grid[2], block[0], block[1], block[2]);
  }
  for (int32_t i = 0; i < n; i++) {
    if (arguments[i].tensor) CR_TRY(cr__alive("kernel", arguments[i].tensor));
  }
  return ON_CARD("kernel", CR_CUDA, code_launch, c, grid, block, shared, n, arguments);
}

CR_EXPORT void cr_code_free(cr_code *c) {
  const cr__backend *b = c ? card("kernel", CR_CUDA) : NULL;
  if (b) b->code_free(c);
}
