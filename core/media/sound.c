/* The sound of a file, resampled and mixed, for the audio reader and for the writer.
 *
 * Sound is placed by its timestamps, as players do: silence precedes a track that starts late, a
 * gap is filled with silence, and an overlap is cut. Between frames only errors of at least
 * MIN_ERROR are corrected: smaller ones are rounding of containers, and every correction is
 * audible.
 *
 * Invariants: beyond what was requested, at most one decoded frame and its resampled samples are
 * held. The decoder drops the priming samples at the start of AAC and MP3, as ffmpeg does. */
#include <libavutil/audio_fifo.h>
#include <libavutil/opt.h>
#include <libswresample/swresample.h>
#include <math.h>
#include <string.h>

#include "media/media.h"

#define MIN_ERROR 0.04        /* seconds: the duration of a video frame */
#define MIN_START_ERROR 0.002 /* the same at the first frame; containers round to milliseconds */
#define CLOCK_RESET 1.0       /* a larger step back means that the clock was reset */
#define JUMP 10.0             /* so does a larger step ahead in a transport stream */
#define LONGEST_GAP (30 * 3600.0) /* a longer gap is a broken timestamp */
enum { SILENCE = 4096 };

static void drop_buffer(media_sound *s) {
  if (s->buffer) av_freep(&s->buffer[0]);
  av_freep(&s->buffer);
  s->buffer_room = 0;
}

void media__sound_close(media_sound *s) {
  drop_buffer(s);
  swr_free(&s->resampler);
  if (s->queue) av_audio_fifo_free(s->queue);
  s->queue = NULL;
  av_channel_layout_uninit(&s->layout);
  av_channel_layout_uninit(&s->in_layout);
  media__source_close(&s->source);
}

int media__sound_open_pushed(media_sound *s, int rate, int channels, enum AVSampleFormat format) {
  memset(s, 0, sizeof *s);
  s->pushed = true;
  s->rate = rate;
  s->format = format;
  av_channel_layout_default(&s->layout, channels);
  s->queue = av_audio_fifo_alloc(format, channels, 4096);
  return s->queue ? CR_OK : cr__fail(CR_ENOMEM, "sound: out of memory");
}

int media__sound_open(media_sound *s, const char *path, const char *live, int rate, int channels,
                      enum AVSampleFormat format, atomic_int *stop) {
  memset(s, 0, sizeof *s);
  CR_TRY(live ? media__source_open_live(&s->source, path, live, AVMEDIA_TYPE_AUDIO, stop)
              : media__source_open(&s->source, path, AVMEDIA_TYPE_AUDIO, stop));
  const AVCodecContext *decoder = s->source.decoder;
  s->format = format;
  s->rate = rate > 0 ? rate : decoder->sample_rate;
  int rc = 0;
  if (channels > 0)
    av_channel_layout_default(&s->layout, channels);
  else if (decoder->ch_layout.order == AV_CHANNEL_ORDER_UNSPEC)
    av_channel_layout_default(&s->layout, decoder->ch_layout.nb_channels);
  else
    rc = av_channel_layout_copy(&s->layout, &decoder->ch_layout);
  if (s->rate <= 0 || s->layout.nb_channels <= 0) {
    rc = cr__fail(CR_EFORMAT, "%s: its sound has no sample rate or no channels", path);
  } else if (rc >= 0) {
    s->queue = av_audio_fifo_alloc(format, s->layout.nb_channels, 4096);
    rc = s->queue ? CR_OK : cr__fail(CR_ENOMEM, "%s: out of memory", path);
  } else {
    rc = cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  if (rc < 0) media__sound_close(s);
  return rc;
}

int media__sound_mix(media_sound *s, int channels) {
  av_channel_layout_uninit(&s->layout);
  av_channel_layout_default(&s->layout, channels);
  av_audio_fifo_free(s->queue);
  s->queue = av_audio_fifo_alloc(s->format, channels, 4096);
  return s->queue ? CR_OK : cr__fail(CR_ENOMEM, "sound: out of memory");
}

/* Resamples n samples of `in` (NULL: what the resampler still holds) into the queue. Returns the
 * number of queued samples, or an AVERROR. */
static int resample(media_sound *s, const uint8_t **in, int n) {
  int room = swr_get_out_samples(s->resampler, n);
  if (room < 0) return room;
  if (room < 4096) room = 4096;
  if (room > s->buffer_room) {
    drop_buffer(s);
    int rc = av_samples_alloc_array_and_samples(&s->buffer, NULL, s->layout.nb_channels, room,
                                                s->format, 0);
    if (rc < 0) return rc;
    s->buffer_room = room;
  }
  int got = swr_convert(s->resampler, s->buffer, s->buffer_room, in, n);
  if (got <= 0) return got;
  if (av_audio_fifo_write(s->queue, (void **)s->buffer, got) < got) return AVERROR(ENOMEM);
  s->produced += got;
  return got;
}

static int flush(media_sound *s) {
  int rc = s->resampler ? 1 : 0;
  while (rc > 0) rc = resample(s, NULL, 0);
  return rc;
}

/* Adapts the resampler to the frame, since a stream may change its format. */
static int adapt(media_sound *s, AVFrame *frame) {
  if (frame->ch_layout.order == AV_CHANNEL_ORDER_UNSPEC)
    av_channel_layout_default(&frame->ch_layout, frame->ch_layout.nb_channels);
  if (s->resampler && s->in_rate == frame->sample_rate && s->in_format == frame->format &&
      av_channel_layout_compare(&s->in_layout, &frame->ch_layout) == 0)
    return 0;
  int rc = flush(s);
  swr_free(&s->resampler);
  if (rc >= 0) rc = av_channel_layout_copy(&s->in_layout, &frame->ch_layout);
  if (rc < 0) return rc;
  s->in_rate = frame->sample_rate;
  s->in_format = frame->format;
  rc = swr_alloc_set_opts2(&s->resampler, &s->layout, s->format, s->rate, &s->in_layout,
                           frame->format, frame->sample_rate, 0, NULL);
  return rc < 0 ? rc : swr_init(s->resampler);
}

/* Sets, for the frame just decoded, how much silence precedes it or how much is cut from its
 * start. */
static void place(media_sound *s) {
  const media_source *source = &s->source;
  const AVFrame *frame = source->frame;
  s->silence = s->cut = 0;
  if (frame->pts == AV_NOPTS_VALUE) return;
  /* What precedes time 0 in a file that starts before it is priming that must not be heard. */
  int64_t offset = source->offset < 0 ? source->offset : 0;
  double time = (double)frame->pts * av_q2d(source->stream->time_base) +
                (double)offset / AV_TIME_BASE + s->clock;
  double gap = time - s->at;
  bool first = s->produced == 0 && s->at == 0;
  bool jumps = (source->format->iformat->flags & AVFMT_TS_DISCONT) != 0;
  if (!first && (gap < -CLOCK_RESET || gap > (jumps ? JUMP : LONGEST_GAP))) {
    s->clock -= gap;
  } else if (fabs(gap) >= (first ? MIN_START_ERROR : MIN_ERROR) && gap <= LONGEST_GAP) {
    int64_t samples = llrint(fabs(gap) * frame->sample_rate);
    if (gap > 0)
      s->silence = samples;
    else
      s->cut = samples < frame->nb_samples ? (int)samples : frame->nb_samples;
    s->at += gap > 0 ? gap : 0;
  }
  s->at += (double)(frame->nb_samples - s->cut) / frame->sample_rate;
}

/* Resamples up to SILENCE samples of the due silence, in the frame's format. */
static int give_silence(media_sound *s) {
  const AVFrame *frame = s->source.frame;
  uint8_t **zeros = NULL;
  int n = s->silence < SILENCE ? (int)s->silence : SILENCE;
  int channels = frame->ch_layout.nb_channels;
  int rc = av_samples_alloc_array_and_samples(&zeros, NULL, channels, n, frame->format, 0);
  if (rc >= 0) {
    av_samples_set_silence(zeros, 0, n, channels, frame->format);
    rc = resample(s, (const uint8_t **)zeros, n);
    av_freep(&zeros[0]);
  }
  av_freep(&zeros);
  s->silence -= n;
  return rc;
}

/* Resamples the frame without what is cut from its start. */
static int give_frame(media_sound *s) {
  const AVFrame *frame = s->source.frame;
  s->held = false;
  if (s->cut == 0) return resample(s, (const uint8_t **)frame->extended_data, frame->nb_samples);
  int n = frame->nb_samples - s->cut, channels = frame->ch_layout.nb_channels;
  uint8_t **rest = NULL;
  if (n == 0) return 0;
  int rc = av_samples_alloc_array_and_samples(&rest, NULL, channels, n, frame->format, 0);
  if (rc >= 0) {
    av_samples_copy(rest, frame->extended_data, 0, s->cut, n, channels, frame->format);
    rc = resample(s, (const uint8_t **)rest, n);
    av_freep(&rest[0]);
  }
  av_freep(&rest);
  return rc;
}

/* Replaces nan and infinite samples, which float files may have, by silence. Returns 1 if there are
 * any, or an AVERROR. */
static int clear_nans(AVFrame *frame) {
  enum AVSampleFormat packed = av_get_packed_sample_fmt(frame->format);
  bool single = packed == AV_SAMPLE_FMT_FLT, planar = packed != frame->format;
  if (!single && packed != AV_SAMPLE_FMT_DBL) return 0;
  int channels = frame->ch_layout.nb_channels, found = 0;
  int planes = planar ? channels : 1, count = frame->nb_samples * (planar ? 1 : channels);
  for (int p = 0; p < planes; p++)
    for (int i = 0; i < count; i++) {
      const uint8_t *plane = frame->extended_data[p];
      if (isfinite(single ? ((const float *)plane)[i] : ((const double *)plane)[i])) continue;
      int rc = found ? 0 : av_frame_make_writable(frame);
      if (rc < 0) return rc;
      found = 1;
      if (single)
        ((float *)frame->extended_data[p])[i] = 0;
      else
        ((double *)frame->extended_data[p])[i] = 0;
    }
  return found;
}

static void tell_damage(media_sound *s) {
  if (!(s->source.frame->flags & AV_FRAME_FLAG_CORRUPT) || s->damaged) return;
  s->damaged = true;
  if (media__damage_of(s->source.damage, s->source.frame) == MEDIA_BAD_CHECKSUM)
    media__warn("%s: the checksum of its part from %.2f s on is wrong: its sound may be damaged",
                s->source.path, s->at);
  else
    media__warn("%s: its sound is damaged at %.2f s: what cannot be decoded is silent",
                s->source.path, s->at);
}

int media__sound_push(media_sound *s, const void *samples, int n, enum AVSampleFormat format,
                      int rate, int channels) {
  if (n == 0) {
    int rc = flush(s);
    swr_free(&s->resampler);
    return rc < 0 ? media__fail(rc, "sound: it cannot be resampled") : CR_OK;
  }
  AVFrame *frame = av_frame_alloc();
  if (!frame) return cr__fail(CR_ENOMEM, "sound: out of memory");
  frame->format = format;
  frame->sample_rate = rate;
  frame->nb_samples = n;
  av_channel_layout_default(&frame->ch_layout, channels);
  int rc = av_frame_get_buffer(frame, 0);
  if (rc >= 0) {
    memcpy(frame->data[0], samples,
           (size_t)n * (size_t)channels * (size_t)av_get_bytes_per_sample(format));
    rc = clear_nans(frame);
  }
  if (rc >= 0) rc = adapt(s, frame);
  if (rc >= 0) rc = resample(s, (const uint8_t **)frame->extended_data, n);
  av_frame_free(&frame);
  return rc < 0 ? media__fail(rc, "sound: it cannot be resampled") : CR_OK;
}

int media__sound_fill(media_sound *s, int n) {
  if (s->pushed) return FFMIN(n, av_audio_fifo_size(s->queue));
  while (!s->ended && av_audio_fifo_size(s->queue) < n) {
    int rc;
    if (s->held) {
      rc = s->silence > 0 ? give_silence(s) : give_frame(s);
    } else {
      rc = media__source_next(&s->source);
      if (rc < 0) return rc;
      s->ended = rc == 0;
      s->held = rc > 0;
      rc = s->held ? clear_nans(s->source.frame) : 0;
      if (rc > 0) s->source.frame->flags |= AV_FRAME_FLAG_CORRUPT;
      if (s->held) tell_damage(s);
      if (rc >= 0) rc = s->ended ? flush(s) : adapt(s, s->source.frame);
      if (s->held) place(s);
    }
    if (rc < 0) return media__fail(rc, "%s: its sound cannot be resampled", s->source.path);
  }
  if (s->ended && s->produced == 0)
    return cr__fail(CR_EFORMAT, "%s: its sound is empty", s->source.path);
  int there = av_audio_fifo_size(s->queue);
  return there < n ? there : n;
}
