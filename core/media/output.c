/* Writes a video file: the container, the conversion of frames to the encoder's format, and the
 * sound.
 *
 * Invariant: the file has a temporary name (base/output.h) until it is complete. */
#include <errno.h>
#include <libavutil/avstring.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "media/output.h"

int media__output_no_memory(const media_output *o) {
  return cr__fail(CR_ENOMEM, "%s: out of memory", o->path ? o->path : "writer");
}

/* ---- opening ---- */

static int open_file(media_output *o) {
  CR_TRY(cr__output_open(&o->file, o->path));
  o->format->url = av_asprintf("file:%s", o->file.temp);
  if (!o->format->url) return media__output_no_memory(o);
  int rc = avio_open(&o->format->pb, o->format->url, AVIO_FLAG_WRITE);
  if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  AVDictionary *options = NULL;
  const AVClass *class = o->format->oformat->priv_class;
  if (class && av_opt_find((void *)&class, "movflags", NULL, 0, AV_OPT_SEARCH_FAKE_OBJ))
    av_dict_set(&options, "movflags", "+faststart", 0);
  rc = avformat_write_header(o->format, &options);
  av_dict_free(&options);
  if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  return CR_OK;
}

static int open_all(media_output *o) {
  const cr_writer_options *p = &o->options;
  if (p->width < 1 || p->height < 1 || p->width > 65535 || p->height > 65535)
    return cr__fail(CR_EINVAL, "%s: frames of %dx%d cannot be written", o->path, p->width,
                    p->height);
  if (!(p->fps > 0 && p->fps <= 1000))
    return cr__fail(CR_EINVAL, "%s: %g frames a second cannot be written", o->path, p->fps);
  if (p->crf > 63) return cr__fail(CR_EINVAL, "%s: crf must be 0 to 63, not %d", o->path, p->crf);
  o->rate = av_d2q(p->fps, 1001000);
  const AVOutputFormat *kind = NULL;
  if (p->live)
    CR_TRY(media__output_live_kind(o, &kind));
  else
    kind = av_guess_format(NULL, o->path, NULL);
  if (!kind || (!p->live && (kind->flags & AVFMT_NOFILE)))
    return cr__fail(CR_EINVAL,
                    "%s: the ending does not name a kind of video file: use .mp4, .mov, .mkv or "
                    ".webm",
                    o->path);
  if (avformat_alloc_output_context2(&o->format, kind, NULL, NULL) < 0)
    return media__output_no_memory(o);
  o->packet = av_packet_alloc();
  if (!o->packet) return media__output_no_memory(o);
  CR_TRY(media__output_open_video(o));
  if (p->audio_count > 0 || p->sound_rate > 0) CR_TRY(media__output_open_audio(o));
  if (p->comment[0]) av_dict_set(&o->format->metadata, "comment", p->comment, 0);
  return p->live ? media__output_live_open(o) : open_file(o);
}

int media__output_open(media_output *o, const char *path, const cr_writer_options *options,
                       atomic_int *stop) {
  *o = (media_output){.file = {.fd = -1, .through = -1}};
  media__quiet();
  o->options = *options;
  o->stop = stop;
  o->failures = cr__allocations_failed();
  o->path = strdup(path);
  int rc = o->path ? open_all(o) : media__output_no_memory(o);
  o->options.audio_paths = NULL;
  if (rc < 0) media__output_close(o);
  return rc;
}

void media__output_close(media_output *o) {
  if (o->options.live)
    media__output_live_close(o);
  else if (o->format && o->format->pb)
    avio_closep(&o->format->pb);
  cr__output_abandon(&o->file);
  avcodec_free_context(&o->video);
  avcodec_free_context(&o->audio);
  media__output_close_sounds(o);
  avformat_free_context(o->format);
  o->format = NULL;
  sws_freeContext(o->scaler);
  o->scaler = NULL;
  av_freep(&o->picture);
  av_packet_free(&o->packet);
  free(o->path);
  o->path = NULL;
}

/* ---- writing ---- */

/* Sends a frame (NULL: the end) to an encoder, and writes its packets to the file. */
int media__output_encode(media_output *o, AVCodecContext *c, AVStream *s, AVFrame *frame) {
  int rc = avcodec_send_frame(c, frame);
  if (rc < 0) return media__fail(rc, "%s: the encoder %s failed", o->path, c->codec->name);
  for (;;) {
    rc = avcodec_receive_packet(c, o->packet);
    if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return CR_OK;
    if (rc < 0) return media__fail(rc, "%s: the encoder %s failed", o->path, c->codec->name);
    o->packet->stream_index = s->index;
    if (s == o->video_stream && o->packet->duration <= 0)
      o->packet->duration = media__output_length(o);
    if (s == o->audio_stream && !media__output_place_sound(o, o->packet)) {
      av_packet_unref(o->packet);
      continue;
    }
    if (s == o->audio_stream) o->sound_end = o->packet->pts + o->packet->duration;
    av_packet_rescale_ts(o->packet, c->time_base, s->time_base);
    if (o->in_order) {
      rc = av_write_frame(o->format, o->packet);
      av_packet_unref(o->packet);
    } else {
      rc = av_interleaved_write_frame(o->format, o->packet);
    }
    if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  }
}

/* Copies a frame and repeats its last column and row up to the encoder's size. */
static void fill_picture(media_output *o, const uint8_t *rgb) {
  int w = o->options.width, h = o->options.height, full = o->video->width;
  for (int y = 0; y < o->video->height; y++) {
    uint8_t *to = o->picture + (size_t)y * (size_t)full * 3;
    memcpy(to, rgb + (size_t)(y < h ? y : h - 1) * (size_t)w * 3, (size_t)w * 3);
    for (int x = w; x < full; x++) memcpy(to + (size_t)x * 3, to + (size_t)(w - 1) * 3, 3);
  }
}

/* Converts RGB to the encoder's frame. */
static void convert(media_output *o, AVFrame *frame, const uint8_t *rgb) {
  fill_picture(o, rgb);
  const uint8_t *rows[4] = {o->picture};
  int strides[4] = {o->video->width * 3};
  sws_scale(o->scaler, rows, strides, 0, o->video->height, frame->data, frame->linesize);
}

/* Copies planes that have the encoder's format. */
static void copy_planes(const media_output *o, AVFrame *frame, const uint8_t *from) {
  const cr_yuv *f = &o->planes;
  int value = f->bits ? 2 : 1;
  for (int p = 0; p < 3; p++) {
    int bytes = (p ? (f->width + f->shift_x) >> f->shift_x : f->width) * value,
        rows = p ? (f->height + f->shift_y) >> f->shift_y : f->height;
    av_image_copy_plane(frame->data[p], frame->linesize[p], from, bytes, bytes, rows);
    from += (ptrdiff_t)bytes * rows;
  }
  /* If the encoder's size is larger by one, luma's last column and row are repeated. */
  size_t row = (size_t)f->width * (size_t)value;
  for (int y = 0; y < f->height && f->width < frame->width; y++) {
    uint8_t *end = frame->data[0] + (ptrdiff_t)y * frame->linesize[0] + row;
    memcpy(end, end - value, (size_t)value);
  }
  if (f->height < frame->height) {
    uint8_t *last = frame->data[0] + (ptrdiff_t)f->height * frame->linesize[0];
    memcpy(last, last - frame->linesize[0], (size_t)frame->width * (size_t)value);
  }
}

int64_t media__output_length(const media_output *o) {
  return FFMAX(1, av_rescale_q(1, av_inv_q(o->rate), o->video->time_base));
}

/* Returns a frame's time, which is at least one tick after that of the previous frame. */
static int64_t place(const media_output *o, double seconds) {
  if (seconds < 0 || !o->options.timed) return o->end;
  int64_t ticks = llrint(seconds / av_q2d(o->video->time_base));
  return o->frames ? FFMAX(ticks, o->last + 1) : ticks;
}

int media__output_frame(media_output *o, const uint8_t *picture, bool planes, double seconds) {
  if (cr_interrupted() || (o->stop && *o->stop))
    return cr__fail(CR_EINTERRUPT, "%s: interrupted", o->path);
  AVFrame *frame = av_frame_alloc();
  if (!frame) return media__output_no_memory(o);
  const AVCodecContext *c = o->video;
  frame->format = c->pix_fmt;
  frame->width = c->width;
  frame->height = c->height;
  frame->colorspace = c->colorspace;
  frame->color_range = c->color_range;
  frame->color_primaries = c->color_primaries;
  frame->color_trc = c->color_trc;
  frame->sample_aspect_ratio = c->sample_aspect_ratio;
  frame->quality = c->global_quality;
  frame->pts = place(o, seconds);
  int64_t pts = frame->pts;
  int rc = av_frame_get_buffer(frame, 0) < 0 ? media__output_no_memory(o) : CR_OK;
  if (rc >= 0) {
    if (planes)
      copy_planes(o, frame, picture);
    else
      convert(o, frame, picture);
    rc = media__output_encode(o, o->video, o->video_stream, frame);
  }
  av_frame_free(&frame);
  if (rc < 0) return rc;
  o->frames++;
  o->last = pts;
  o->end = pts + media__output_length(o);
  CR_TRY(media__output_follow_with_sound(o, false));
  return o->options.live ? media__output_live_push(o) : CR_OK;
}

int media__output_finish(media_output *o) {
  if (o->frames == 0) return cr__fail(CR_EINVAL, "%s: no frame was written", o->path);
  CR_TRY(media__output_follow_with_sound(o, true));
  CR_TRY(media__output_encode(o, o->video, o->video_stream, NULL));
  if (o->audio) CR_TRY(media__output_encode(o, o->audio, o->audio_stream, NULL));
  if (o->options.live) return media__output_live_finish(o);
  int rc = av_write_trailer(o->format);
  if (rc >= 0 && o->format->pb->error < 0) rc = o->format->pb->error;
  int closed = avio_closep(&o->format->pb);
  if (rc >= 0) rc = closed;
  if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  if (cr__allocations_failed() != o->failures) return media__output_no_memory(o);
  return cr__output_finish(&o->file);
}
