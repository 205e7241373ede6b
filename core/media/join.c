/* Joins files that are parts of one film without encoding: packets are copied.
 *
 * Invariants: the video of all parts comes from one encoder with the same settings, and begins with
 * a key frame. At 25 frames a second, packet k of the film, in decoding order, gets the time k
 * minus the encoder's delay, so times increase across borders. Frames with times of their own,
 * which are encoded in their order, keep them. */
#include <libavutil/avstring.h>
#include <libavutil/opt.h>
#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "media/media.h"

static const AVRational FRAME = {1, 25};

typedef struct join {
  const char *path;
  cr__output file;
  AVFormatContext *out, *part, *sound;
  AVStream *from, *from_sound; /* in the part that is being read, and in the sound's file */
  AVStream *to, *to_sound;
  AVPacket *packet, *sound_packet;
  AVCodecParameters *first; /* parameters of the first part */
  int64_t frames, before;   /* packets written, and those of earlier parts */
  bool sound_waits, sound_ended;
  bool timed;  /* frames have times of their own */
  int64_t now; /* time of the frame written last, in its part's units */
} join;

static int no_memory(const join *j) { return cr__fail(CR_ENOMEM, "%s: out of memory", j->path); }

static AVStream *add_stream(const join *j, const AVStream *from) {
  AVStream *to = avformat_new_stream(j->out, NULL);
  if (!to || avcodec_parameters_copy(to->codecpar, from->codecpar) < 0) return NULL;
  to->codecpar->codec_tag = 0; /* lets the container choose its own tag */
  to->time_base = from->time_base;
  to->sample_aspect_ratio = from->sample_aspect_ratio;
  to->avg_frame_rate = from->avg_frame_rate;
  for (int i = 0; i < from->nb_side_data; i++) {
    const AVPacketSideData *side = &from->side_data[i];
    uint8_t *copy = av_stream_new_side_data(to, side->type, side->size);
    if (!copy) return NULL;
    memcpy(copy, side->data, side->size);
  }
  return to;
}

/* Opens a part and finds its video, which must be encoded like that of the first part. */
static int open_part(join *j, const char *path) {
  avformat_close_input(&j->part);
  CR_TRY(media__format_open(&j->part, path, NULL));
  j->from = media__best_stream(j->part, AVMEDIA_TYPE_VIDEO);
  if (!j->from) return cr__fail(CR_EFORMAT, "%s: it has no video", path);
  const AVCodecParameters *p = j->from->codecpar, *f = j->first;
  if (f->codec_id == AV_CODEC_ID_NONE)
    return avcodec_parameters_copy(j->first, p) < 0 ? no_memory(j) : CR_OK;
  if (p->codec_id != f->codec_id || p->width != f->width || p->height != f->height ||
      p->format != f->format || p->extradata_size != f->extradata_size ||
      (p->extradata_size && memcmp(p->extradata, f->extradata, (size_t)p->extradata_size) != 0))
    return cr__fail(CR_EINVAL, "%s: its video is encoded differently from the first part's", path);
  return CR_OK;
}

static int open_output(join *j, const char *sound) {
  const AVOutputFormat *kind = av_guess_format(NULL, j->path, NULL);
  if (!kind || (kind->flags & AVFMT_NOFILE))
    return cr__fail(CR_EINVAL,
                    "%s: the ending does not name a kind of video file: use .mp4, .mov or .mkv",
                    j->path);
  if (avformat_alloc_output_context2(&j->out, kind, NULL, NULL) < 0) return no_memory(j);
  j->to = add_stream(j, j->from);
  if (!j->to) return no_memory(j);
  if (sound) {
    CR_TRY(media__format_open(&j->sound, sound, NULL));
    j->from_sound = media__best_stream(j->sound, AVMEDIA_TYPE_AUDIO);
    if (!j->from_sound) return cr__fail(CR_EFORMAT, "%s: it has no sound", sound);
    j->to_sound = add_stream(j, j->from_sound);
    if (!j->to_sound) return no_memory(j);
  }
  const AVDictionaryEntry *comment = av_dict_get(j->part->metadata, "comment", NULL, 0);
  if (comment) av_dict_set(&j->out->metadata, "comment", comment->value, 0);
  CR_TRY(cr__output_open(&j->file, j->path));
  j->out->url = av_asprintf("file:%s", j->file.temp);
  if (!j->out->url) return no_memory(j);
  int rc = avio_open(&j->out->pb, j->out->url, AVIO_FLAG_WRITE);
  if (rc < 0) return media__fail(rc, "%s: cannot be written", j->path);
  AVDictionary *options = NULL;
  const AVClass *class = kind->priv_class;
  if (class && av_opt_find((void *)&class, "movflags", NULL, 0, AV_OPT_SEARCH_FAKE_OBJ))
    av_dict_set(&options, "movflags", "+faststart", 0);
  rc = avformat_write_header(j->out, &options);
  av_dict_free(&options);
  return rc < 0 ? media__fail(rc, "%s: cannot be written", j->path) : CR_OK;
}

static int write_packet(const join *j, AVPacket *packet, const AVStream *to, AVRational base) {
  av_packet_rescale_ts(packet, base, to->time_base);
  packet->stream_index = to->index;
  packet->pos = -1;
  int rc = av_interleaved_write_frame(j->out, packet);
  return rc < 0 ? media__fail(rc, "%s: cannot be written", j->path) : CR_OK;
}

/* Writes the sound up to the time of the next frame, so that no packets pile up in memory. */
static int write_sound(join *j, bool all) {
  while (j->to_sound && !j->sound_ended) {
    if (!j->sound_waits) {
      int rc = av_read_frame(j->sound, j->sound_packet);
      if (rc == AVERROR_EOF) {
        j->sound_ended = true;
        break;
      }
      if (rc < 0) return media__fail(rc, "the sound cannot be read");
      if (j->sound_packet->stream_index != j->from_sound->index) {
        av_packet_unref(j->sound_packet);
        continue;
      }
      j->sound_waits = true;
    }
    int64_t next = j->timed ? j->now : j->frames;
    AVRational unit = j->timed ? j->from->time_base : FRAME;
    if (!all && av_compare_ts(j->sound_packet->pts, j->from_sound->time_base, next, unit) > 0)
      break;
    j->sound_waits = false;
    CR_TRY(write_packet(j, j->sound_packet, j->to_sound, j->from_sound->time_base));
  }
  return CR_OK;
}

/* Gives a packet its time in the film. */
static int set_times(join *j, const char *path, int64_t start) {
  AVPacket *p = j->packet;
  if (j->timed) {
    if (p->pts == AV_NOPTS_VALUE) return cr__fail(CR_EFORMAT, "%s: a frame has no time", path);
    p->dts = j->now = p->pts;
    return CR_OK;
  }
  int64_t at = p->pts == AV_NOPTS_VALUE ? j->frames - j->before
                                        : av_rescale_q(p->pts - start, j->from->time_base, FRAME);
  p->pts = j->before + at;
  p->dts = j->frames - j->first->video_delay;
  p->duration = 1;
  return CR_OK;
}

static int copy_part(join *j, const char *path) {
  int64_t start = j->from->start_time == AV_NOPTS_VALUE ? 0 : j->from->start_time;
  for (;;) {
    if (cr_interrupted()) return cr__fail(CR_EINTERRUPT, "%s: interrupted", j->path);
    int rc = av_read_frame(j->part, j->packet);
    if (rc == AVERROR_EOF) break;
    if (rc < 0) return media__fail(rc, "%s", path);
    if (j->packet->stream_index != j->from->index) {
      av_packet_unref(j->packet);
      continue;
    }
    if (j->frames == j->before && !(j->packet->flags & AV_PKT_FLAG_KEY))
      return cr__fail(CR_EFORMAT, "%s: it does not begin with a key frame", path);
    CR_TRY(set_times(j, path, start));
    CR_TRY(write_packet(j, j->packet, j->to, j->timed ? j->from->time_base : FRAME));
    j->frames++;
    CR_TRY(write_sound(j, false));
  }
  if (j->frames == j->before) return cr__fail(CR_EFORMAT, "%s: it has no video", path);
  j->before = j->frames;
  return CR_OK;
}

static int finish(join *j) {
  CR_TRY(write_sound(j, true));
  int rc = av_write_trailer(j->out);
  if (rc >= 0 && j->out->pb->error < 0) rc = j->out->pb->error;
  int closed = avio_closep(&j->out->pb);
  if (rc >= 0) rc = closed;
  if (rc < 0) return media__fail(rc, "%s: cannot be written", j->path);
  return cr__output_finish(&j->file);
}

static int run(join *j, int32_t count, const char *const *parts, const char *sound) {
  j->packet = av_packet_alloc();
  j->sound_packet = av_packet_alloc();
  j->first = avcodec_parameters_alloc();
  if (!j->packet || !j->sound_packet || !j->first) return no_memory(j);
  for (int32_t i = 0; i < count; i++) {
    CR_TRY(open_part(j, parts[i]));
    if (i == 0) CR_TRY(open_output(j, sound));
    CR_TRY(copy_part(j, parts[i]));
  }
  return finish(j);
}

CR_EXPORT int64_t cr_media_join(const char *path, int32_t count, const char *const *parts,
                                const char *sound, int32_t timed, double *last) {
  if (count < 1) return cr__fail(CR_EINVAL, "%s: no parts are given", path);
  media__quiet();
  join j = {.path = path, .timed = timed != 0, .file = {.fd = -1, .through = -1}};
  int rc = run(&j, count, parts, sound);
  if (rc >= 0)
    *last = j.timed && j.from ? (double)j.now * av_q2d(j.from->time_base)
                              : (double)(j.frames - 1) * av_q2d(FRAME);
  if (j.out && j.out->pb) avio_closep(&j.out->pb);
  cr__output_abandon(&j.file);
  avformat_free_context(j.out);
  avformat_close_input(&j.part);
  avformat_close_input(&j.sound);
  avcodec_parameters_free(&j.first);
  av_packet_free(&j.packet);
  av_packet_free(&j.sound_packet);
  return rc < 0 ? rc : j.frames;
}
