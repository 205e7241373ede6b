/* The sound of a file, resampled and mixed: what the audio reader and the writer's sound track
 * share.
 *
 * Invariants: at most one decoded frame and what it resamples to is held beyond what was asked for;
 * the encoder's padding at the start of AAC and MP3 is left out by the decoder, as ffmpeg does. */
#include <libavutil/audio_fifo.h>
#include <libavutil/opt.h>
#include <libswresample/swresample.h>
#include <string.h>

#include "media/media.h"

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

int media__sound_open(media_sound *s, const char *path, int rate, int channels,
                      enum AVSampleFormat format, atomic_int *stop) {
  memset(s, 0, sizeof *s);
  CR_TRY(media__source_open(&s->source, path, AVMEDIA_TYPE_AUDIO, stop));
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
  return s->queue ? CR_OK : cr__fail(CR_ENOMEM, "%s: out of memory", s->source.path);
}

/* Resamples n samples of `in` (NULL: what the resampler still holds) into the queue. Returns the
 * number queued or an AVERROR. */
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

/* Makes the resampler fit the frame; a stream may change its format on the way. */
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

int media__sound_fill(media_sound *s, int n) {
  while (!s->ended && av_audio_fifo_size(s->queue) < n) {
    int rc = media__source_next(&s->source);
    if (rc < 0) return rc;
    if (rc == 0) {
      s->ended = true;
      rc = flush(s);
    } else {
      rc = adapt(s, s->source.frame);
      if (rc >= 0)
        rc = resample(s, (const uint8_t **)s->source.frame->extended_data,
                      s->source.frame->nb_samples);
    }
    if (rc < 0) return media__fail(rc, "%s: resampling its sound", s->source.path);
  }
  if (s->ended && s->produced == 0)
    return cr__fail(CR_EFORMAT, "%s: its sound is empty", s->source.path);
  int there = av_audio_fifo_size(s->queue);
  return there < n ? there : n;
}
