/* The sound of a file being written. It is decoded in step with the video and ends exactly with
 * it. */
#include <math.h>
#include <string.h>

#include "media/output.h"

enum { SOUND_BITS_A_CHANNEL = 96000, FREE_FRAME = 1024 };

static int nearest_rate(const AVCodec *codec, int rate) {
  if (!codec->supported_samplerates) return rate;
  int above = 0, highest = 0;
  for (const int *r = codec->supported_samplerates; *r; r++) {
    if (*r >= rate && (!above || *r < above)) above = *r;
    if (*r > highest) highest = *r;
  }
  return above ? above : highest;
}

/* AAC if the container accepts it. Lossless video gets FLAC, which is also sample-exact at its
 * start and end. */
static const AVCodec *find_audio_encoder(const media_output *o) {
  const AVOutputFormat *container = o->format->oformat;
  const enum AVCodecID wishes[] = {o->options.lossless ? AV_CODEC_ID_FLAC : AV_CODEC_ID_AAC,
                                   AV_CODEC_ID_AAC, container->audio_codec};
  for (int i = 0; i < 3; i++) {
    if (wishes[i] == AV_CODEC_ID_NONE ||
        avformat_query_codec(container, wishes[i], FF_COMPLIANCE_NORMAL) == 0)
      continue;
    const AVCodec *codec = avcodec_find_encoder(wishes[i]);
    if (codec && codec->sample_fmts) return codec;
  }
  return NULL;
}

static int open_audio_encoder(media_output *o, const AVCodec *codec) {
  AVCodecContext *c = o->audio = avcodec_alloc_context3(codec);
  if (!c) return AVERROR(ENOMEM);
  c->sample_fmt = codec->sample_fmts[0];
  c->sample_rate = o->sounds->rate;
  c->time_base = (AVRational){1, c->sample_rate};
  int rc = av_channel_layout_copy(&c->ch_layout, &o->sounds->layout);
  if (rc < 0) return rc;
  c->bit_rate = (int64_t)SOUND_BITS_A_CHANNEL * c->ch_layout.nb_channels;
  if (o->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  return avcodec_open2(c, codec, NULL);
}

int media__output_open_audio(media_output *o) {
  const AVCodec *codec = find_audio_encoder(o);
  if (!codec)
    return cr__fail(CR_EINVAL, "%s: a %s file cannot hold sound", o->path,
                    o->format->oformat->name);
  CR_TRY(media__output_open_sounds(o, codec->sample_fmts[0]));
  int rate = nearest_rate(codec, o->sounds->rate), channels = o->sounds->layout.nb_channels;
  for (int i = 0; i < o->sound_count; i++) o->sounds[i].rate = rate; /* before the first sample */
  /* If the encoder does not accept this layout, the default one with as many channels is tried,
   * then stereo. */
  int rc = open_audio_encoder(o, codec);
  for (int attempt = 0; rc < 0 && rc != AVERROR(ENOMEM) && attempt < 2; attempt++) {
    avcodec_free_context(&o->audio);
    CR_TRY(media__output_mix_sounds(o, attempt == 0 ? channels : 2));
    rc = open_audio_encoder(o, codec);
  }
  if (rc < 0)
    return media__fail(rc, "%s: the encoder %s cannot be opened at %d Hz with %d channels", o->path,
                       codec->name, rate, channels);
  AVStream *s = o->audio_stream = avformat_new_stream(o->format, NULL);
  if (!s) return media__output_no_memory(o);
  s->time_base = o->audio->time_base;
  if (avcodec_parameters_from_context(s->codecpar, o->audio) < 0) return media__output_no_memory(o);
  double start = o->options.audio_start, end = o->options.audio_end;
  o->skip = start > 0 ? llrint(start * rate) : 0;
  o->limit = end > 0 ? llrint(end * rate) - o->skip : -1;
  if (end > 0 && o->limit < 0) o->limit = 0;
  return CR_OK;
}

/* ---- writing ---- */

/* Matroska and live containers have no edit list to hide the encoder's priming samples, and
 * shifting everything by them would delay the video. Opus packets count from 0 and name the samples
 * to drop; with other codecs the packet before time 0 is left out. Returns false if the packet must
 * not be written. */
bool media__output_place_sound(const media_output *o, AVPacket *packet) {
  const char *container = o->format->oformat->name;
  bool matroska = strcmp(container, "matroska") == 0 || strcmp(container, "webm") == 0;
  if (!matroska && !o->options.live) return true;
  if (matroska && o->audio->codec_id == AV_CODEC_ID_OPUS) {
    packet->pts += o->audio->initial_padding;
    packet->dts += o->audio->initial_padding;
    return true;
  }
  return packet->pts >= 0;
}

/* Takes n samples of the sound into frame, and silence after its end. */
static int take_sound(media_output *o, AVFrame *frame, int n) {
  while (o->skip > 0) {
    int part = o->skip < 16384 ? (int)o->skip : 16384;
    int there = media__output_read_sound(o, NULL, part);
    if (there < 0) return there;
    o->skip = there < part ? 0 : o->skip - there;
  }
  int wanted = n;
  if (o->limit >= 0 && o->limit - o->samples < wanted)
    wanted = o->limit > o->samples ? (int)(o->limit - o->samples) : 0;
  int there = wanted > 0 ? media__output_read_sound(o, frame, wanted) : 0;
  if (there < 0) return there;
  if (there < n)
    av_samples_set_silence(frame->extended_data, there, n - there, frame->ch_layout.nb_channels,
                           frame->format);
  return CR_OK;
}

static int write_sound(media_output *o, int n) {
  AVFrame *frame = av_frame_alloc();
  if (!frame) return media__output_no_memory(o);
  frame->nb_samples = n;
  frame->format = o->audio->sample_fmt;
  frame->sample_rate = o->audio->sample_rate;
  int rc = CR_OK;
  if (av_channel_layout_copy(&frame->ch_layout, &o->audio->ch_layout) < 0 ||
      av_frame_get_buffer(frame, 0) < 0)
    rc = media__output_no_memory(o);
  if (rc >= 0) rc = take_sound(o, frame, n);
  frame->pts = o->samples;
  if (rc >= 0) rc = media__output_encode(o, o->audio, o->audio_stream, frame);
  o->samples += n;
  av_frame_free(&frame);
  return rc;
}

/* Writes the sound up to the end of the frames that were sent, in whole encoder frames unless
 * `all`. */
int media__output_follow_with_sound(media_output *o, bool all) {
  if (!o->audio) return CR_OK;
  int size = o->audio->frame_size > 0 ? o->audio->frame_size : FREE_FRAME;
  int64_t end = av_rescale_q(o->end, o->video->time_base, (AVRational){1, o->audio->sample_rate});
  while (o->samples + size <= end) CR_TRY(write_sound(o, size));
  if (all && o->samples < end) CR_TRY(write_sound(o, (int)(end - o->samples)));
  return CR_OK;
}
