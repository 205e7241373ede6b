/* The sounds of a file being written: a single one unchanged, or the sum of several times a gain.
 *
 * Several sounds are converted to their highest rate and largest number of channels; one that ends
 * early is silent. The caller, who knows how loud the sum becomes, gives the gain; samples beyond
 * full scale are clipped. */
#include <libavutil/audio_fifo.h>
#include <math.h>
#include <stdlib.h>

#include "media/output.h"

int media__output_open_sounds(media_output *o, enum AVSampleFormat format) {
  const cr_writer_options *p = &o->options;
  bool several = p->audio_count > 1;
  o->sounds = calloc((size_t)FFMAX(1, p->audio_count), sizeof *o->sounds);
  if (!o->sounds) return media__output_no_memory(o);
  if (p->sound_rate > 0) {
    o->sound_count = 1;
    return media__sound_open_pushed(o->sounds, p->sound_rate, p->sound_channels, format);
  }
  int rate = 0, channels = 0;
  for (int i = 0; i < p->audio_count; i++) {
    CR_TRY(media__sound_open(&o->sounds[i], p->audio_paths[i], NULL, 0, 0,
                             several ? AV_SAMPLE_FMT_FLTP : format, o->stop));
    o->sound_count++;
    rate = FFMAX(rate, o->sounds[i].rate);
    channels = FFMAX(channels, o->sounds[i].layout.nb_channels);
  }
  if (!several) return CR_OK;
  for (int i = 0; i < o->sound_count; i++) o->sounds[i].rate = rate;
  return media__output_mix_sounds(o, channels);
}

void media__output_close_sounds(media_output *o) {
  for (int i = 0; i < o->sound_count; i++) media__sound_close(&o->sounds[i]);
  o->sound_count = 0;
  free(o->sounds);
  o->sounds = NULL;
}

int media__output_mix_sounds(media_output *o, int channels) {
  for (int i = 0; i < o->sound_count; i++) CR_TRY(media__sound_mix(&o->sounds[i], channels));
  return CR_OK;
}

/* Writes v, full scale at 1, as sample i of packed samples. */
static void put(uint8_t *row, enum AVSampleFormat format, int i, double v) {
  double cut = fmin(fmax(v, -1), 1);
  if (format == AV_SAMPLE_FMT_FLT)
    ((float *)(void *)row)[i] = (float)v;
  else if (format == AV_SAMPLE_FMT_DBL)
    ((double *)(void *)row)[i] = v;
  else if (format == AV_SAMPLE_FMT_S16)
    ((int16_t *)(void *)row)[i] = (int16_t)fmin(rint(cut * 32768), 32767);
  else if (format == AV_SAMPLE_FMT_S32)
    ((int32_t *)(void *)row)[i] = (int32_t)fmin(rint(cut * 2147483648.0), 2147483647);
  else
    row[i] = (uint8_t)fmin(rint(cut * 128) + 128, 255);
}

/* Adds up to `there` samples of each sound to sum, one channel after another. `one` has room for as
 * many, and `planes` for its channels. */
static int add_up(media_output *o, float *sum, float *one, void **planes, int channels, int there) {
  for (int c = 0; c < channels; c++) planes[c] = one + (size_t)c * (size_t)there;
  for (int s = 0; s < o->sound_count; s++) {
    AVAudioFifo *queue = o->sounds[s].queue;
    int n = FFMIN(there, av_audio_fifo_size(queue));
    if (n > 0 && av_audio_fifo_read(queue, planes, n) < n) return media__output_no_memory(o);
    for (int c = 0; c < channels; c++)
      for (int i = 0; i < n; i++)
        sum[(size_t)c * (size_t)there + (size_t)i] += ((float *)planes[c])[i];
  }
  return CR_OK;
}

static int mix(media_output *o, AVFrame *frame, int there) {
  enum AVSampleFormat format = av_get_packed_sample_fmt(frame->format);
  bool planar = av_sample_fmt_is_planar(frame->format) != 0;
  int channels = frame->ch_layout.nb_channels;
  size_t room = (size_t)channels * (size_t)there;
  float *sum = calloc(2 * room, sizeof *sum);
  void **planes = calloc((size_t)channels, sizeof *planes);
  if (!sum || !planes) {
    free(sum);
    free(planes);
    return media__output_no_memory(o);
  }
  int rc = add_up(o, sum, sum + room, planes, channels, there);
  for (int c = 0; rc >= 0 && c < channels; c++)
    for (int i = 0; i < there; i++) {
      double v = sum[(size_t)c * (size_t)there + (size_t)i] * o->options.audio_gain;
      put(frame->extended_data[planar ? c : 0], format, planar ? i : i * channels + c, v);
    }
  free(sum);
  free(planes);
  return rc;
}

int media__output_read_sound(media_output *o, AVFrame *frame, int n) {
  int there = 0;
  for (int s = 0; s < o->sound_count; s++) {
    int has = media__sound_fill(&o->sounds[s], n);
    if (has < 0) return has;
    there = FFMAX(there, has);
  }
  if (there == 0) return 0;
  AVAudioFifo *first = o->sounds->queue;
  if (!frame) {
    for (int s = 0; s < o->sound_count; s++) {
      AVAudioFifo *queue = o->sounds[s].queue;
      av_audio_fifo_drain(queue, FFMIN(there, av_audio_fifo_size(queue)));
    }
  } else if (o->sound_count > 1) {
    CR_TRY(mix(o, frame, there));
  } else if (av_audio_fifo_read(first, (void **)frame->extended_data, there) < there) {
    return media__output_no_memory(o);
  }
  return there;
}
