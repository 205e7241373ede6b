/* cr_media_probe: the properties of a file by its headers and its first frame, as the readers will
 * show it. */
#include <libavutil/mastering_display_metadata.h>
#include <libavutil/pixdesc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"

static double seconds(const AVFormatContext *format, const AVStream *s) {
  if (s->duration != AV_NOPTS_VALUE && s->duration > 0)
    return (double)s->duration * av_q2d(s->time_base);
  if (format->duration != AV_NOPTS_VALUE && format->duration > 0)
    return (double)format->duration / AV_TIME_BASE;
  return 0;
}

static void put(int32_t *to, const AVRational *from, int n) {
  for (int i = 0; i < n; i++) {
    to[2 * i] = from[i].num;
    to[2 * i + 1] = from[i].den;
  }
}

static void probe_hdr(cr_hdr *out, const uint8_t *mastering, const uint8_t *light) {
  if (mastering) {
    const AVMasteringDisplayMetadata *m = (const AVMasteringDisplayMetadata *)mastering;
    out->mastering = m->has_primaries && m->has_luminance;
    put(out->primaries, m->display_primaries[0], 6);
    put(out->white, m->white_point, 2);
    put(out->luminance, &m->min_luminance, 1);
    put(out->luminance + 2, &m->max_luminance, 1);
  }
  if (light) {
    const AVContentLightMetadata *l = (const AVContentLightMetadata *)light;
    out->max_light = (int32_t)l->MaxCLL;
    out->max_average_light = (int32_t)l->MaxFALL;
  }
}

static const uint8_t *frame_data(const AVFrame *frame, enum AVFrameSideDataType type) {
  const AVFrameSideData *side = av_frame_get_side_data(frame, type);
  return side ? side->data : NULL;
}

/* What the first frame says takes precedence over the container. The frame need not be
 * decodable. */
static void probe_picture(const char *path, cr_media_info *out) {
  media_source source;
  if (media__source_open(&source, path, AVMEDIA_TYPE_VIDEO, NULL) < 0) return;
  if (media__source_next(&source) > 0) {
    const AVFrame *f = source.frame;
    out->rotation = media__rotation(media__display_matrix(f, source.stream));
    probe_hdr(&out->hdr, frame_data(f, AV_FRAME_DATA_MASTERING_DISPLAY_METADATA),
              frame_data(f, AV_FRAME_DATA_CONTENT_LIGHT_LEVEL));
    if (frame_data(f, AV_FRAME_DATA_DYNAMIC_HDR_PLUS) || frame_data(f, AV_FRAME_DATA_DOVI_METADATA))
      out->hdr.dynamic = 1;
  }
  media__source_close(&source);
}

static void probe_video(const char *path, AVFormatContext *format, AVStream *s,
                        cr_media_info *out) {
  const AVCodecParameters *c = s->codecpar;
  out->has_video = 1;
  out->rotation = media__rotation(media__stream_matrix(s));
  probe_hdr(&out->hdr, av_stream_get_side_data(s, AV_PKT_DATA_MASTERING_DISPLAY_METADATA, NULL),
            av_stream_get_side_data(s, AV_PKT_DATA_CONTENT_LIGHT_LEVEL, NULL));
  out->hdr.dynamic = av_stream_get_side_data(s, AV_PKT_DATA_DOVI_CONF, NULL) != NULL;
  probe_picture(path, out);
  bool sideways = out->rotation == 90 || out->rotation == 270;
  out->width = sideways ? c->height : c->width;
  out->height = sideways ? c->width : c->height;
  AVRational aspect = av_guess_sample_aspect_ratio(format, s, NULL);
  out->aspect_num = sideways ? aspect.den : aspect.num;
  out->aspect_den = sideways ? aspect.num : aspect.den;
  if (aspect.num <= 0 || aspect.den <= 0) {
    out->aspect_num = 0;
    out->aspect_den = 1;
  }
  AVRational rate = s->avg_frame_rate.num ? s->avg_frame_rate : s->r_frame_rate;
  out->fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
  out->duration = seconds(format, s);
  if (out->duration > 0) {
    out->frames = llround(out->duration * 25);
    if (out->frames == 0) out->frames = 1;
  }
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->format);
  out->bits = d ? d->comp[0].depth : 0;
  out->alpha = d && (d->flags & AV_PIX_FMT_FLAG_ALPHA) && !(d->flags & AV_PIX_FMT_FLAG_PAL);
  if (d) snprintf(out->pix_fmt, sizeof out->pix_fmt, "%s", d->name);
  bool rgb = d && (d->flags & AV_PIX_FMT_FLAG_RGB);
  out->color_space = rgb ? AVCOL_SPC_RGB : (int32_t)c->color_space;
  out->color_range = (int32_t)c->color_range;
  if (c->format == AV_PIX_FMT_YUVJ420P || c->format == AV_PIX_FMT_YUVJ422P ||
      c->format == AV_PIX_FMT_YUVJ444P || c->format == AV_PIX_FMT_YUVJ440P)
    out->color_range = AVCOL_RANGE_JPEG;
  out->color_primaries = (int32_t)c->color_primaries;
  out->color_transfer = (int32_t)c->color_trc;
  snprintf(out->video_codec, sizeof out->video_codec, "%s", avcodec_get_name(c->codec_id));
}

CR_EXPORT int cr_media_probe(const char *path, cr_media_info *out) {
  memset(out, 0, sizeof *out);
  out->aspect_den = 1;
  AVFormatContext *format;
  CR_TRY(media__format_open(&format, path, NULL));
  AVStream *video = media__best_stream(format, AVMEDIA_TYPE_VIDEO);
  AVStream *sound = media__best_stream(format, AVMEDIA_TYPE_AUDIO);
  if (video) probe_video(path, format, video, out);
  if (sound) {
    out->has_audio = 1;
    out->sample_rate = sound->codecpar->sample_rate;
    out->channels = sound->codecpar->ch_layout.nb_channels;
    out->audio_duration = seconds(format, sound);
    snprintf(out->audio_codec, sizeof out->audio_codec, "%s",
             avcodec_get_name(sound->codecpar->codec_id));
  }
  snprintf(out->format, sizeof out->format, "%s", format->iformat->name);
  avformat_close_input(&format);
  return CR_OK;
}

static char version[100];

static void write_version(void) {
  unsigned c = avcodec_version(), f = avformat_version();
  snprintf(version, sizeof version, "libavcodec %u.%u.%u, libavformat %u.%u.%u", c >> 16,
           c >> 8 & 255, c & 255, f >> 16, f >> 8 & 255, f & 255);
}

CR_EXPORT const char *cr_media_version(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, write_version);
  return version;
}
