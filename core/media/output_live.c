/* Live sinks: a URL, a pipe, memory.
 *
 * A frame and the sound up to its end are written at once; in MP4 they form a fragment. The sink is
 * never seeked. */
#include <libavutil/avstring.h>
#include <libavutil/opt.h>
#include <stdlib.h>
#include <string.h>

#include "media/output.h"

enum { BUFFER = 1 << 15 };

struct media_bytes {
  pthread_mutex_t lock;
  uint8_t *data;
  size_t count, room;
};

static bool is_mp4(const AVOutputFormat *kind) {
  return strcmp(kind->name, "mp4") == 0 || strcmp(kind->name, "mov") == 0 ||
         strcmp(kind->name, "ipod") == 0;
}

int media__output_live_kind(const media_output *o, const AVOutputFormat **kind) {
  static const char *const usual[][2] = {{"rtmp", "flv"},    {"srt:", "mpegts"}, {"udp:", "mpegts"},
                                         {"tcp:", "mpegts"}, {"rtsp:", "rtsp"},  {"pipe:", "mp4"}};
  const char *name = o->options.container, *path = o->path;
  for (size_t i = 0; !name[0] && i < sizeof usual / sizeof *usual; i++)
    if (av_strstart(path, usual[i][0], NULL)) name = usual[i][1];
  *kind = av_guess_format(name[0] ? name : NULL, path, NULL);
  if (*kind && (*kind)->video_codec != AV_CODEC_ID_NONE) return CR_OK;
  if (name[0])
    return cr__fail(CR_EINVAL, "%s: FFmpeg here cannot write video in a container named '%s'",
                    path[0] ? path : "memory", name);
  return cr__fail(CR_EINVAL,
                  "%s: its ending does not name a kind of video: name the container, such as mp4, "
                  "hls, flv or mpegts",
                  path);
}

static int stop_asked(void *argument) {
  atomic_int *stop = argument;
  return cr_interrupted() || (stop && *stop);
}

/* ---- memory ---- */

static int keep(void *owner, uint8_t *data, int size) {
  media_bytes *b = owner;
  int rc = size;
  pthread_mutex_lock(&b->lock);
  if (b->count + (size_t)size > b->room) {
    size_t room = FFMAX(2 * b->room, b->count + (size_t)size);
    uint8_t *grown = realloc(b->data, room);
    if (grown) {
      b->data = grown;
      b->room = room;
    } else {
      rc = AVERROR(ENOMEM);
    }
  }
  if (rc > 0) {
    memcpy(b->data + b->count, data, (size_t)size);
    b->count += (size_t)size;
  }
  pthread_mutex_unlock(&b->lock);
  return rc;
}

static int open_memory(media_output *o) {
  media_bytes *b = o->bytes = calloc(1, sizeof *b);
  if (!b) return AVERROR(ENOMEM);
  pthread_mutex_init(&b->lock, NULL);
  uint8_t *buffer = av_malloc(BUFFER);
  if (!buffer) return AVERROR(ENOMEM);
  o->format->pb = avio_alloc_context(buffer, BUFFER, 1, b, NULL, keep, NULL);
  if (!o->format->pb) {
    av_free(buffer);
    return AVERROR(ENOMEM);
  }
  o->format->pb->seekable = 0;
  return 0;
}

int media__output_live_take(media_output *o, cr_tensor *out) {
  media_bytes *b = o->bytes;
  if (!b) return cr__fail(CR_EINVAL, "writer take: the writer does not write to memory");
  pthread_mutex_lock(&b->lock);
  int32_t shape[1] = {(int32_t)b->count};
  int64_t stride[1] = {1};
  cr_storage *result = cr__storage_new(shape[0], CR_CPU);
  if (result) {
    if (b->count) memcpy(result->data, b->data, b->count);
    b->count = 0;
  }
  pthread_mutex_unlock(&b->lock);
  if (!result) return CR_ENOMEM;
  cr__tensor_set(out, result, CR_U8, 1, shape, stride, 0);
  cr__release(result);
  return CR_OK;
}

/* ---- header, frames, trailer ---- */

int media__output_live_open(media_output *o) {
  AVFormatContext *f = o->format;
  const char *name = o->path[0] ? o->path : "memory";
  f->interrupt_callback = (AVIOInterruptCB){stop_asked, o->stop};
  f->flags |= AVFMT_FLAG_FLUSH_PACKETS;
  f->url = av_strdup(o->path);
  if (!f->url) return media__output_no_memory(o);
  int rc = 0;
  if (!o->path[0])
    rc = open_memory(o);
  else if (!(f->oformat->flags & AVFMT_NOFILE))
    rc = avio_open2(&f->pb, o->path, AVIO_FLAG_WRITE, &f->interrupt_callback, NULL);
  AVDictionary *options = NULL;
  o->in_order = is_mp4(f->oformat);
  if (o->in_order) av_dict_set(&options, "movflags", "empty_moov+default_base_moof+frag_custom", 0);
  if (rc >= 0) rc = avformat_write_header(f, &options);
  av_dict_free(&options);
  if (rc < 0) return media__fail(rc, "%s: cannot be written", name);
  if (f->pb) avio_flush(f->pb);
  return CR_OK;
}

int media__output_live_push(media_output *o) {
  int rc = o->in_order ? av_write_frame(o->format, NULL) : 0;
  if (o->format->pb) {
    avio_flush(o->format->pb);
    if (rc >= 0) rc = o->format->pb->error;
  }
  return rc < 0 ? media__fail(rc, "%s: cannot be written", o->path[0] ? o->path : "memory") : CR_OK;
}

/* Closes what was opened. Returns 0 or an AVERROR. */
static int close_sink(media_output *o) {
  AVFormatContext *f = o->format;
  if (!f || !f->pb || (f->oformat->flags & AVFMT_NOFILE)) return 0;
  if (!o->bytes) return avio_closep(&f->pb);
  av_freep(&f->pb->buffer);
  avio_context_free(&f->pb);
  return 0;
}

int media__output_live_finish(media_output *o) {
  int rc = av_write_trailer(o->format);
  if (o->format->pb) {
    avio_flush(o->format->pb);
    if (rc >= 0) rc = o->format->pb->error;
  }
  int closed = close_sink(o);
  if (rc >= 0) rc = closed;
  return rc < 0 ? media__fail(rc, "%s: cannot be written", o->path[0] ? o->path : "memory") : CR_OK;
}

void media__output_live_close(media_output *o) {
  close_sink(o);
  if (!o->bytes) return;
  pthread_mutex_destroy(&o->bytes->lock);
  free(o->bytes->data);
  free(o->bytes);
  o->bytes = NULL;
}
