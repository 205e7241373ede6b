/* Live inputs: URLs, pipes, devices.
 *
 * Invariant: as little as possible is buffered before the first sample, since that delay would
 * never be caught up. */
#include <dlfcn.h>
#include <stdio.h>

#include "media/media.h"

/* How long FFmpeg may analyze the streams; its default is 5 s. */
#define LOOK_MICROSECONDS "200000"

static int stop_asked(void *argument) {
  atomic_int *stop = argument;
  return cr_interrupted() || (stop && *stop);
}

/* Devices are in libavdevice, which has libavformat's version number and which few machines need,
 * so it is loaded on demand. */
static const AVInputFormat *find_format(const char *name) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static bool asked;
  const AVInputFormat *found = av_find_input_format(name);
  pthread_mutex_lock(&lock);
  if (!found && !asked) {
    char library[64];
    snprintf(library, sizeof library, "libavdevice.so.%d", LIBAVFORMAT_VERSION_MAJOR);
    void *handle = dlopen(library, RTLD_NOW | RTLD_NODELETE);
    void (*register_all)(void) = NULL;
    if (handle) *(void **)&register_all = dlsym(handle, "avdevice_register_all");
    if (register_all) register_all();
    asked = true;
  }
  pthread_mutex_unlock(&lock);
  return found ? found : av_find_input_format(name);
}

int media__format_open_live(AVFormatContext **out, const char *url, const char *format,
                            atomic_int *stop) {
  *out = NULL;
  media__quiet();
  const AVInputFormat *kind = format[0] ? find_format(format) : NULL;
  if (format[0] && !kind)
    return cr__fail(CR_EUNSUPPORTED, "%s: FFmpeg here has no input format or device named '%s'",
                    url, format);
  AVFormatContext *context = avformat_alloc_context();
  AVDictionary *options = NULL;
  av_dict_set(&options, "analyzeduration", LOOK_MICROSECONDS, 0);
  if (!context || !options) {
    avformat_free_context(context);
    av_dict_free(&options);
    return cr__fail(CR_ENOMEM, "%s: out of memory", url);
  }
  context->interrupt_callback = (AVIOInterruptCB){stop_asked, stop};
  int rc = avformat_open_input(&context, url, kind, &options); /* frees context on failure */
  av_dict_free(&options);
  if (rc < 0) return media__fail(rc, "%s: cannot be opened as live sound", url);
  rc = avformat_find_stream_info(context, NULL);
  if (rc < 0) {
    avformat_close_input(&context);
    return media__fail(rc, "%s: cannot be read as live sound", url);
  }
  *out = context;
  return CR_OK;
}
