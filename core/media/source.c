/* One stream of a file, decoded frame by frame, with the timestamps of ffmpeg's command line: the
 * file starts at 0, jumps in transport streams are closed, and missing decoding times are filled
 * in.
 *
 * Invariants: only plain files are opened, so that a protocol in a name or a playlist cannot reach
 * anything else. Files that are visibly truncated are refused before anything is decoded, and a
 * file that was truncated meanwhile is refused at its end. A frame that is damaged, or that follows
 * a lost one, has AV_FRAME_FLAG_CORRUPT up to the next key frame, and callers use
 * media__source_check. What cannot be decoded before the first key frame is not damage: the stream
 * was cut there. */
#include <libavutil/avstring.h>
#include <string.h>

#include "media/media.h"

#define MAX_TAG_BYTES 65536 /* bytes at the end of a sound file that may be tags */
#define JOINT_PACKETS 3     /* packets from a marked one to the joint behind it */
#define JUMP_SECONDS 10     /* a larger step of a transport stream's clock means a new clock */

static int stop_asked(void *argument) {
  atomic_int *stop = argument;
  return cr_interrupted() || (stop && *stop);
}

/* ---- opening ---- */

int media__format_open(AVFormatContext **out, const char *path, atomic_int *stop) {
  *out = NULL;
  media__quiet();
  if (cr_interrupted()) return cr__fail(CR_EINTERRUPT, "%s: interrupted", path);
  struct stat info;
  int64_t failures = cr__allocations_failed();
  CR_TRY(media__file_check(path, &info));
  AVFormatContext *format = avformat_alloc_context();
  char *url = av_asprintf("file:%s", path);
  AVDictionary *options = NULL;
  av_dict_set(&options, "protocol_whitelist", "file", 0);
  av_dict_set(&options, "pattern_type", "none", 0); /* "p%d.png" is the name of one image */
  if (!format || !url || !options) {
    avformat_free_context(format);
    av_free(url);
    av_dict_free(&options);
    return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  format->interrupt_callback = (AVIOInterruptCB){stop_asked, stop};
  int rc = avformat_open_input(&format, url, NULL, &options); /* frees format on failure */
  av_free(url);
  av_dict_free(&options);
  if (rc < 0) return media__fail(rc, "%s: cannot be read as video or sound", path);
  rc = avformat_find_stream_info(format, NULL);
  if (cr__allocations_failed() != failures)
    rc = cr__fail(CR_ENOMEM, "%s: out of memory", path);
  else if (rc < 0)
    rc = media__fail(rc, "%s: cannot be read as video or sound", path);
  else
    rc = media__file_check_index(path, format, &info);
  if (rc < 0) {
    avformat_close_input(&format);
    return rc;
  }
  *out = format;
  return CR_OK;
}

AVStream *media__best_stream(AVFormatContext *format, enum AVMediaType type) {
  AVStream *best = NULL;
  int64_t best_score = -1;
  for (unsigned i = 0; i < format->nb_streams; i++) {
    AVStream *s = format->streams[i];
    if (s->codecpar->codec_type != type) continue;
    if (s->disposition & AV_DISPOSITION_ATTACHED_PIC) continue;
    int64_t score = type == AVMEDIA_TYPE_VIDEO ? (int64_t)s->codecpar->width * s->codecpar->height
                                               : s->codecpar->ch_layout.nb_channels;
    if (s->disposition & AV_DISPOSITION_DEFAULT) score += 100000000;
    if (score > best_score) {
      best = s;
      best_score = score;
    }
  }
  return best;
}

/* For VP9 and AV1, libvpx and libaom notice nearly all damage and FFmpeg's default decoders nearly
 * none; the decoded frames are the same. */
static const AVCodec *find_decoder(enum AVCodecID id) {
  const char *name = id == AV_CODEC_ID_VP9 ? "libvpx-vp9" : "libaom-av1";
  bool better = id == AV_CODEC_ID_VP9 || id == AV_CODEC_ID_AV1;
  const AVCodec *codec = better ? avcodec_find_decoder_by_name(name) : NULL;
  return codec ? codec : avcodec_find_decoder(id);
}

static int decoder_open(media_source *s, const char *path) {
  const char *kind = s->stream->codecpar->codec_type == AVMEDIA_TYPE_VIDEO ? "video" : "sound";
  const AVCodec *codec = find_decoder(s->stream->codecpar->codec_id);
  if (!codec)
    return cr__fail(CR_EUNSUPPORTED, "%s: its %s has the codec %s, which FFmpeg here cannot decode",
                    path, kind, avcodec_get_name(s->stream->codecpar->codec_id));
  s->decoder = avcodec_alloc_context3(codec);
  if (!s->decoder) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  int rc = avcodec_parameters_to_context(s->decoder, s->stream->codecpar);
  if (rc >= 0) {
    s->decoder->pkt_timebase = s->stream->time_base;
    s->decoder->framerate = s->stream->avg_frame_rate;
    s->decoder->thread_count = media__codec_threads();
    s->decoder->err_recognition = AV_EF_CRCCHECK;
    s->decoder->opaque = s->damage;
    rc = avcodec_open2(s->decoder, codec, NULL);
  }
  if (rc < 0)
    return media__fail(rc, "%s: the %s decoder %s cannot be opened", path, kind, codec->name);
  return CR_OK;
}

/* Time 0 is the file's start; in a transport stream it is the start of its video and sound. */
static int64_t start_offset(const media_source *s) {
  int64_t start = s->format->start_time;
  if (start == AV_NOPTS_VALUE) return 0;
  if (s->format->iformat->flags & AVFMT_TS_DISCONT) {
    int64_t earliest = INT64_MAX;
    const enum AVMediaType types[] = {AVMEDIA_TYPE_VIDEO, AVMEDIA_TYPE_AUDIO};
    for (int i = 0; i < 2; i++) {
      const AVStream *used = media__best_stream(s->format, types[i]);
      if (!used || used->start_time == AV_NOPTS_VALUE) continue;
      int64_t t = av_rescale_q(used->start_time, used->time_base, AV_TIME_BASE_Q);
      if (t < earliest) earliest = t;
    }
    if (earliest != INT64_MAX && earliest > start) start = earliest;
  }
  return -start;
}

static int open_source(media_source *s, const char *path, const char *live, enum AVMediaType type,
                       atomic_int *stop) {
  memset(s, 0, sizeof *s);
  s->failures = cr__allocations_failed();
  s->live = live != NULL;
  if (live || stat(path, &s->file) != 0) s->file.st_size = 0;
  int rc = live ? media__format_open_live(&s->format, path, live, stop)
                : media__format_open(&s->format, path, stop);
  if (rc < 0 || !s->format) return rc;
  s->stop = stop;
  s->path = av_strdup(path);
  s->packet = av_packet_alloc();
  s->frame = av_frame_alloc();
  s->damage = media__damage_new(path, s->format);
  s->stream = media__best_stream(s->format, type);
  if (!s->path || !s->packet || !s->frame || !s->damage)
    rc = cr__fail(CR_ENOMEM, "%s: out of memory", path);
  else if (!s->stream)
    rc = cr__fail(CR_EINVAL, "%s has no %s", path,
                  type == AVMEDIA_TYPE_VIDEO ? "video stream" : "audio stream");
  else
    rc = decoder_open(s, path);
  if (rc < 0 || !s->stream || !s->decoder) {
    media__source_close(s);
    return rc;
  }
  s->offset = start_offset(s);
  for (unsigned i = 0; i < s->format->nb_streams; i++)
    if (s->format->streams[i] != s->stream) s->format->streams[i]->discard = AVDISCARD_ALL;
  s->last_dts = AV_NOPTS_VALUE;
  s->lost_pts = s->last_pts = INT64_MIN;
  s->next_dts = 0;
  if (s->stream->avg_frame_rate.num && s->stream->avg_frame_rate.den)
    s->next_dts = (int64_t)(-s->decoder->has_b_frames * (double)AV_TIME_BASE /
                            av_q2d(s->stream->avg_frame_rate));
  s->dts = s->next_dts;
  s->pts = 0;
  return CR_OK;
}

int media__source_open(media_source *s, const char *path, enum AVMediaType type, atomic_int *stop) {
  return open_source(s, path, NULL, type, stop);
}

int media__source_open_live(media_source *s, const char *url, const char *format,
                            enum AVMediaType type, atomic_int *stop) {
  return open_source(s, url, format, type, stop);
}

/* A decoder that ran out of memory may have threads that wait for each other forever, so it is
 * leaked. */
void media__source_close(media_source *s) {
  if (s->path && cr__allocations_failed() != s->failures) {
    s->decoder = NULL;
    s->damage = NULL;
  }
  av_frame_free(&s->frame);
  av_packet_free(&s->packet);
  avcodec_free_context(&s->decoder);
  media__damage_free(s->damage);
  s->damage = NULL;
  avformat_close_input(&s->format);
  av_freep(&s->path);
  s->stream = NULL;
}

/* ---- reading ---- */

static int64_t to_us(const media_source *s, int64_t t) {
  return av_rescale_q_rnd(t, s->stream->time_base, AV_TIME_BASE_Q,
                          AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
}

static int64_t from_us(const media_source *s, int64_t t) {
  return av_rescale_q_rnd(t, AV_TIME_BASE_Q, s->stream->time_base,
                          AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
}

static void shift(media_source *s, AVPacket *packet, int64_t us) {
  int64_t by = from_us(s, us);
  if (packet->dts != AV_NOPTS_VALUE) packet->dts += by;
  if (packet->pts != AV_NOPTS_VALUE) packet->pts += by;
}

/* Shifts a video packet's timestamps to the output clock and fills in a missing decoding time. */
static void retime(media_source *s, AVPacket *packet) {
  shift(s, packet, s->offset);
  int64_t dts = to_us(s, packet->dts);
  bool jumps = (s->format->iformat->flags & AVFMT_TS_DISCONT) != 0;
  if (dts != AV_NOPTS_VALUE && jumps) {
    int64_t expected = s->next_dts != AV_NOPTS_VALUE ? s->next_dts : s->last_dts;
    int64_t limit = (int64_t)JUMP_SECONDS * AV_TIME_BASE;
    int64_t delta = expected != AV_NOPTS_VALUE ? dts - expected : 0;
    bool backwards = s->next_dts != AV_NOPTS_VALUE &&
                     dts + AV_TIME_BASE / 10 < (s->pts > s->dts ? s->pts : s->dts);
    if (delta > limit || delta < -limit || backwards) {
      s->offset -= delta;
      shift(s, packet, -delta);
    }
  }
  if (packet->dts != AV_NOPTS_VALUE) {
    s->last_dts = to_us(s, packet->dts);
    s->next_dts = s->last_dts;
  }
  s->dts = s->next_dts;
  if (s->dts != AV_NOPTS_VALUE) packet->dts = from_us(s, s->dts);
  int64_t duration = packet->duration > 0 ? to_us(s, packet->duration) : 0;
  AVRational rate = s->decoder->framerate;
  if (!duration && rate.num > 0 && rate.den > 0)
    duration = av_rescale_q(1, av_inv_q(rate), AV_TIME_BASE_Q);
  s->next_dts = s->dts != AV_NOPTS_VALUE && duration ? s->dts + duration : AV_NOPTS_VALUE;
}

/* ---- damage ---- */

static bool is_sound(const media_source *s) {
  return s->stream->codecpar->codec_type == AVMEDIA_TYPE_AUDIO;
}

/* Video timestamps come with the offset applied, those of sound as in the file. */
static double seconds(const media_source *s, int64_t pts) {
  if (pts == AV_NOPTS_VALUE) return (double)s->pts / AV_TIME_BASE;
  double offset = is_sound(s) ? (double)s->offset / AV_TIME_BASE : 0;
  return (double)pts * av_q2d(s->stream->time_base) + offset;
}

/* Notes that the decoder could not decode what belongs at `pts`. */
static int lose(media_source *s, int averror, int64_t pts) {
  if (averror == AVERROR(ENOMEM)) return cr__fail(CR_ENOMEM, "%s: out of memory", s->path);
  if (averror == AVERROR_PATCHWELCOME || averror == AVERROR(ENOSYS))
    return media__fail(averror, "%s: it cannot be decoded at %.2f s", s->path, seconds(s, pts));
  if (!s->begun)
    s->headless = true;
  else if (s->lost_pts == INT64_MIN)
    s->lost_pts = pts == AV_NOPTS_VALUE ? s->last_pts : pts;
  return CR_OK;
}

int media__source_check(const media_source *s, const AVFrame *frame) {
  if (!(frame->flags & AV_FRAME_FLAG_CORRUPT)) return CR_OK;
  if (media__damage_of(s->damage, frame) == MEDIA_BAD_CHECKSUM)
    return cr__fail(CR_EFORMAT,
                    "%s: the checksum of its part from %.2f s on is wrong, so frames there are "
                    "damaged: cut that part out, or repair the file",
                    s->path, seconds(s, frame->pts));
  return cr__fail(
      CR_EFORMAT,
      "%s: its frame at %.2f s is damaged or missing: cut that part out, or repair the file",
      s->path, seconds(s, frame->pts));
}

/* ---- packets ---- */

/* Keeps what is needed if this packet is the last one. An MP4 cannot be truncated: its index has
 * been checked. */
static void remember(media_source *s) {
  s->lacks_bytes = (s->packet->flags & AV_PKT_FLAG_CORRUPT) != 0;
  s->may_be_truncated = s->lacks_bytes || !av_match_name("mp4", s->format->iformat->name);
  s->packet_position = s->packet->pos;
  s->packet_pts = s->packet->pts;
}

static void warn_of_end(media_source *s) {
  if (!is_sound(s) && !s->warned_of_end)
    media__warn("%s: it is truncated: its last frame, at %.2f s, is left out or incomplete",
                s->path, seconds(s, s->packet_pts));
  s->warned_of_end = true;
}

/* Checks the packet just read. Where streams were joined, one of the last packets is also marked as
 * incomplete, but then a key frame follows. */
static void watch_gap(media_source *s) {
  if (is_sound(s) || s->warned_of_gap) return;
  if (s->lacks_bytes && s->begun && s->since_gap == 0) {
    s->gap_pts = s->packet_pts;
    s->since_gap = 1;
  }
  if (s->packet->flags & AV_PKT_FLAG_KEY) s->since_gap = 0;
  if (s->since_gap == 0 || s->since_gap++ < JOINT_PACKETS) return;
  media__warn("%s: bytes are missing near %.2f s: its frames may be damaged there", s->path,
              seconds(s, s->gap_pts));
  s->warned_of_gap = true;
}

/* Handles the end of the demuxer's packets. */
static int end(media_source *s, int averror) {
  if (!s->live) CR_TRY(media__file_check_size(s->path, &s->file));
  if (averror != AVERROR_EOF && averror != AVERROR_INVALIDDATA)
    return media__fail(averror, "%s: it cannot be read", s->path);
  if (s->live) {
    s->draining = true;
    return 0;
  }
  int64_t left = s->file.st_size - avio_tell(s->format->pb);
  if (averror == AVERROR_INVALIDDATA && (!is_sound(s) || left > MAX_TAG_BYTES))
    media__warn("%s: it cannot be read beyond %.2f s: what follows is left out", s->path,
                (double)s->pts / AV_TIME_BASE);
  if (s->lacks_bytes) warn_of_end(s);
  s->draining = true;
  return 0;
}

/* Reads the stream's next packet into s->packet. Returns 1; 0: there is none; negative: error. */
static int next_packet(media_source *s) {
  if (s->draining || s->waiting) return !s->draining;
  for (;;) {
    if (stop_asked(s->stop)) return media__fail(AVERROR_EXIT, "%s", s->path);
    int rc = av_read_frame(s->format, s->packet);
    if (rc == AVERROR(EAGAIN)) continue;
    if (rc == AVERROR_EXIT) return media__fail(rc, "%s", s->path);
    if (rc == AVERROR(ENOMEM)) return cr__fail(CR_ENOMEM, "%s: out of memory", s->path);
    if (rc < 0) return end(s, rc);
    if (s->packet->stream_index == s->stream->index && s->packet->size > 0) break;
    av_packet_unref(s->packet);
  }
  if (!is_sound(s)) retime(s, s->packet);
  watch_gap(s);
  s->waiting = true;
  return 1;
}

/* ---- decoding ---- */

/* Sends the stream's next packet, or its end, to the decoder. */
static int feed(media_source *s) {
  int rc = next_packet(s);
  if (rc < 0) return rc;
  if (rc == 0) {
    rc = avcodec_send_packet(s->decoder, NULL);
    return rc == AVERROR(ENOMEM) ? lose(s, rc, AV_NOPTS_VALUE) : CR_OK;
  }
  remember(s);
  s->decoder->reordered_opaque = ++s->sent;
  media__damage_packet(s->damage, s->sent, s->packet->pos);
  rc = avcodec_send_packet(s->decoder, s->packet);
  if (rc < 0) rc = lose(s, rc, s->packet->pts);
  av_packet_unref(s->packet);
  s->waiting = false;
  return rc;
}

/* Judges the frame just decoded. Returns 1; 0: it is left out; negative: error. */
static int judge(media_source *s) {
  AVFrame *f = s->frame;
  bool first = !s->begun, damaged = f->decode_error_flags || (f->flags & AV_FRAME_FLAG_CORRUPT) ||
                                    media__damage_of(s->damage, f);
  s->begun = s->begun || f->key_frame || is_sound(s);
  if (!s->begun) {
    s->headless = s->headless || damaged;
    damaged = false;
  } else if (first && s->headless && !is_sound(s)) {
    media__warn("%s: it begins in the middle of a sequence: what cannot be decoded before %.2f s "
                "is left out or incomplete",
                s->path, seconds(s, f->pts));
  }
  if (damaged && s->may_be_truncated && f->pkt_pos == s->packet_position && !is_sound(s)) {
    int more = next_packet(s);
    if (more < 0) return more;
    if (more == 0) warn_of_end(s);
    if (more == 0) return 0;
  }
  bool behind = s->lost_pts != INT64_MIN && (f->pts == AV_NOPTS_VALUE || f->pts >= s->lost_pts);
  bool alone = f->key_frame || is_sound(s);
  if (behind && alone) s->lost_pts = INT64_MIN;
  s->in_damage = damaged || (s->in_damage && !alone);
  damaged = s->in_damage || behind;
  f->flags = damaged ? f->flags | AV_FRAME_FLAG_CORRUPT : f->flags & ~AV_FRAME_FLAG_CORRUPT;
  if (f->pts != AV_NOPTS_VALUE) s->last_pts = f->pts;
  return 1;
}

/* Everything is decoded. Reports a loss at the end, which no later frame has revealed. */
static int finish(media_source *s) {
  s->ended = true;
  if (s->lost_pts == INT64_MIN || s->lost_pts <= s->last_pts || is_sound(s)) return 0;
  if (!s->may_be_truncated || s->lost_pts != s->packet_pts)
    return cr__fail(
        CR_EFORMAT,
        "%s: its last frames, from %.2f s on, are damaged: cut them off, or repair the file",
        s->path, seconds(s, s->lost_pts));
  warn_of_end(s);
  return 0;
}

int media__source_next(media_source *s) {
  if (s->ended) return 0;
  for (;;) {
    int rc = avcodec_receive_frame(s->decoder, s->frame);
    if (cr__allocations_failed() != s->failures) return lose(s, AVERROR(ENOMEM), AV_NOPTS_VALUE);
    if (rc >= 0) {
      s->frame->pts = s->frame->best_effort_timestamp;
      if (s->frame->pts != AV_NOPTS_VALUE) s->pts = to_us(s, s->frame->pts);
      if (s->stream->sample_aspect_ratio.num)
        s->frame->sample_aspect_ratio = s->stream->sample_aspect_ratio;
      rc = judge(s);
      if (rc != 0) return rc;
    } else if (rc == AVERROR_EOF || (rc == AVERROR(EAGAIN) && s->draining && s->drained)) {
      return finish(s);
    } else if (rc == AVERROR(EAGAIN)) {
      s->drained = s->draining;
      CR_TRY(feed(s));
    } else {
      CR_TRY(lose(s, rc, AV_NOPTS_VALUE));
    }
  }
}

int media__source_seek(media_source *s, int64_t timestamp) {
  int rc = av_seek_frame(s->format, s->stream->index, timestamp, AVSEEK_FLAG_BACKWARD);
  if (rc < 0) return rc;
  avcodec_flush_buffers(s->decoder);
  av_packet_unref(s->packet);
  s->draining = s->drained = s->ended = s->begun = s->headless = false;
  s->waiting = s->lacks_bytes = s->may_be_truncated = false;
  s->in_damage = false;
  s->since_gap = 0;
  s->lost_pts = s->last_pts = INT64_MIN;
  s->next_dts = s->last_dts = AV_NOPTS_VALUE;
  s->dts = s->pts = INT64_MIN / 2; /* so far back that nothing looks like a step back */
  return 0;
}

int media__source_restart(media_source *s) {
  enum AVMediaType type = s->stream->codecpar->codec_type;
  media_source fresh;
  CR_TRY(media__source_open(&fresh, s->path, type, s->stop));
  media__source_close(s);
  *s = fresh;
  return CR_OK;
}
