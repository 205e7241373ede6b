/* The video encoder of a file being written: its choice, pixel format, colours and quality.
 *
 * Invariant: RGB is converted to YUV with the matrix that the file's tags name. */
#include <libavutil/mastering_display_metadata.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

#include "media/output.h"

/* LOOKAHEAD: the frames that libx264 looks ahead, which remain to be encoded when a film ends. 20
 * would raise the SSIM from 0.9921 to 0.9928 in a file that is 10 % larger (1080p, crf 18). */
enum { QUALITY = 18, LOOKAHEAD = 10, KEY_SECONDS = 2 };

/* Ticks per second of a timed file: a multiple of all usual frame rates except 24000/1001. MPEG-4
 * counts to 65535 at most. */
enum { TICKS = 120000, MPEG4_TICKS = 60000 };

/* Containers from which films are read back as they were written. Others fail late or lose the
 * timestamps. */
static bool holds_films(const AVOutputFormat *container) {
  static const char *const names[] = {"mp4",      "mov",  "ipod", "3gp",    "3g2", "f4v", "ismv",
                                      "matroska", "webm", "avi",  "mpegts", "flv", "asf", "nut"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(container->name, names[i]) == 0) return container->video_codec != AV_CODEC_ID_NONE;
  return false;
}

static int find_video_encoder(const media_output *o, const AVCodec **out) {
  const AVOutputFormat *container = o->format->oformat;
  const char *name = o->options.codec;
  const AVCodec *codec = NULL;
  if (!o->options.live && !holds_films(container))
    return cr__fail(
        CR_EINVAL,
        "%s: a %s file cannot hold video and sound of this kind: use .mp4, .mov, .mkv or .webm",
        o->path, container->name);
  if (o->options.lossless) {
    if (name[0] && strcmp(name, "ffv1") != 0)
      return cr__fail(CR_EINVAL,
                      "%s: lossless video is encoded as FFV1, so the codec %s cannot be used",
                      o->path, name);
    name = "ffv1";
  }
  if (name[0]) {
    codec = avcodec_find_encoder_by_name(name);
    const AVCodecDescriptor *d = codec ? NULL : avcodec_descriptor_get_by_name(name);
    if (d) codec = avcodec_find_encoder(d->id);
    if (!codec || codec->type != AVMEDIA_TYPE_VIDEO)
      return cr__fail(CR_EUNSUPPORTED, "%s: FFmpeg here has no video encoder named '%s'", o->path,
                      name);
    if (avformat_query_codec(container, codec->id, FF_COMPLIANCE_NORMAL) == 0)
      return cr__fail(CR_EINVAL, "%s: a %s file cannot hold %s: use the ending .mkv", o->path,
                      container->name, avcodec_get_name(codec->id));
  } else if (avformat_query_codec(container, AV_CODEC_ID_H264, FF_COMPLIANCE_NORMAL) != 0) {
    codec = avcodec_find_encoder_by_name("libx264");
    if (!codec)
      return cr__fail(CR_EUNSUPPORTED,
                      "%s: FFmpeg here lacks the encoder libx264: name another codec", o->path);
  } else {
    if (container->video_codec != AV_CODEC_ID_NONE)
      codec = avcodec_find_encoder(container->video_codec);
    if (!codec)
      return cr__fail(CR_EUNSUPPORTED,
                      "%s: FFmpeg here lacks the encoder of a %s file: name another "
                      "codec",
                      o->path, container->name);
  }
  *out = codec;
  return CR_OK;
}

static bool takes(const AVCodec *codec, enum AVPixelFormat wanted) {
  if (!codec->pix_fmts) return true;
  for (const enum AVPixelFormat *f = codec->pix_fmts; *f != AV_PIX_FMT_NONE; f++)
    if (*f == wanted) return true;
  return false;
}

static enum AVPixelFormat usual_format(const AVCodec *codec, const cr_writer_options *p) {
  if (codec->id == AV_CODEC_ID_MJPEG) return AV_PIX_FMT_YUVJ420P; /* it refuses the limited range */
  enum AVPixelFormat own =
      p->deep ? media__deep_format(av_get_pix_fmt(p->source_pix_fmt)) : AV_PIX_FMT_YUV420P;
  if (media__deep_planes(own).bits && takes(codec, own)) return own;
  if (p->lossless) return p->deep ? AV_PIX_FMT_GBRP16 : AV_PIX_FMT_BGR0;
  if (p->bits > 8 && takes(codec, AV_PIX_FMT_YUV420P10)) return AV_PIX_FMT_YUV420P10;
  if (takes(codec, AV_PIX_FMT_YUV420P)) return AV_PIX_FMT_YUV420P;
  return avcodec_find_best_pix_fmt_of_list(codec->pix_fmts, AV_PIX_FMT_RGB24, 0, NULL);
}

static int choose_format(media_output *o, const AVCodec *codec) {
  const cr_writer_options *p = &o->options;
  enum AVPixelFormat format = usual_format(codec, p);
  if (p->pix_fmt[0]) {
    format = av_get_pix_fmt(p->pix_fmt);
    if (format == AV_PIX_FMT_NONE)
      return cr__fail(CR_EINVAL,
                      "%s: FFmpeg has no pixel format '%s': yuv420p or yuv420p10le, for example",
                      o->path, p->pix_fmt);
    if (!takes(codec, format))
      return cr__fail(CR_EINVAL, "%s: the encoder %s does not take %s pixels", o->path, codec->name,
                      p->pix_fmt);
  }
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(format);
  if (!d)
    return cr__fail(CR_EUNSUPPORTED, "%s: the encoder %s has no usable pixel format", o->path,
                    codec->name);
  o->video->pix_fmt = format;
  if (p->bits > 8 && !(p->deep && media__deep_planes(format).bits))
    media__warn(
        "%s: the video has %d bits per sample; they pass through 8 bits, and the file has %d (%s)",
        o->path, p->bits, d->comp[0].depth, d->name);
  else if (p->bits > d->comp[0].depth)
    media__warn("%s: the video has %d bits per sample, but the file has %d (%s)", o->path, p->bits,
                d->comp[0].depth, d->name);
  if (p->hdr.dynamic)
    media__warn("%s: the dynamic HDR metadata (Dolby Vision, HDR10+) are lost", o->path);
  return CR_OK;
}

static AVRational ratio(const int32_t *pair) { return (AVRational){pair[0], pair[1]}; }

/* Writes the HDR metadata of the display to the container, whatever the codec. */
static int set_hdr(const media_output *o) {
  const cr_hdr *h = &o->options.hdr;
  if (h->mastering) {
    AVMasteringDisplayMetadata *m = av_mastering_display_metadata_alloc();
    if (!m) return media__output_no_memory(o);
    for (int i = 0; i < 6; i++) m->display_primaries[i / 2][i % 2] = ratio(h->primaries + 2 * i);
    for (int i = 0; i < 2; i++) m->white_point[i] = ratio(h->white + 2 * i);
    m->min_luminance = ratio(h->luminance);
    m->max_luminance = ratio(h->luminance + 2);
    m->has_primaries = m->has_luminance = 1;
    if (av_stream_add_side_data(o->video_stream, AV_PKT_DATA_MASTERING_DISPLAY_METADATA,
                                (uint8_t *)m, sizeof *m) < 0) {
      av_free(m);
      return media__output_no_memory(o);
    }
  }
  if (h->max_light > 0 || h->max_average_light > 0) {
    size_t bytes = 0;
    AVContentLightMetadata *l = av_content_light_metadata_alloc(&bytes);
    if (!l) return media__output_no_memory(o);
    l->MaxCLL = (unsigned)h->max_light;
    l->MaxFALL = (unsigned)h->max_average_light;
    if (av_stream_add_side_data(o->video_stream, AV_PKT_DATA_CONTENT_LIGHT_LEVEL, (uint8_t *)l,
                                bytes) < 0) {
      av_free(l);
      return media__output_no_memory(o);
    }
  }
  return CR_OK;
}

/* Copies the source's colour tags. RGB sources get the matrix that players assume for the size. */
static void set_colors(AVCodecContext *c, const cr_writer_options *options) {
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->pix_fmt);
  c->color_primaries = options->color_primaries;
  c->color_trc = options->color_transfer;
  if (d && (d->flags & AV_PIX_FMT_FLAG_RGB)) {
    c->colorspace = AVCOL_SPC_RGB;
    c->color_range = AVCOL_RANGE_JPEG;
    return;
  }
  c->colorspace = options->color_space;
  c->color_range = options->color_range;
  if (c->colorspace == AVCOL_SPC_RGB) {
    c->colorspace = options->height >= 720 ? AVCOL_SPC_BT709 : AVCOL_SPC_SMPTE170M;
    c->color_range = AVCOL_RANGE_MPEG;
  }
  if (c->pix_fmt == AV_PIX_FMT_YUVJ420P || c->pix_fmt == AV_PIX_FMT_YUVJ422P ||
      c->pix_fmt == AV_PIX_FMT_YUVJ444P)
    c->color_range = AVCOL_RANGE_JPEG;
}

static const int *table_of(const AVCodecContext *c) {
  return sws_getCoefficients(c->colorspace == AVCOL_SPC_RGB ? SWS_CS_DEFAULT : (int)c->colorspace);
}

/* Frames that cr_rgb_to_yuv made need no scaler where they equal the scaler's results. Neither do a
 * reader's planes of more than 8 bits if the encoder accepts them. */
static void set_planes(media_output *o) {
  const AVCodecContext *c = o->video;
  cr_yuv planes = media__deep_planes(c->pix_fmt);
  planes.width = o->options.width;
  planes.height = o->options.height;
  if (!planes.bits) {
    if (c->pix_fmt != AV_PIX_FMT_YUV420P && c->pix_fmt != AV_PIX_FMT_YUVJ420P) return;
    if (c->width < 12 || c->height < 12) return;
    planes.shift_x = planes.shift_y = 1;
    planes.width = c->width;
    planes.height = c->height;
  }
  bool rgb = planes.full_range != 0;
  if (!rgb) planes.full_range = c->color_range == AVCOL_RANGE_JPEG;
  for (int i = 0; i < 4 && !rgb; i++) planes.matrix[i] = table_of(c)[i];
  o->planes = planes;
}

static int open_scaler(media_output *o) {
  const AVCodecContext *c = o->video;
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->pix_fmt);
  struct SwsContext *s = o->scaler = sws_alloc_context();
  if (!s) return media__output_no_memory(o);
  av_opt_set_int(s, "srcw", c->width, 0);
  av_opt_set_int(s, "srch", c->height, 0);
  av_opt_set_int(s, "src_format", AV_PIX_FMT_RGB24, 0);
  av_opt_set_int(s, "dstw", c->width, 0);
  av_opt_set_int(s, "dsth", c->height, 0);
  av_opt_set_int(s, "dst_format", c->pix_fmt, 0);
  av_opt_set_int(s, "sws_flags",
                 SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_FULL_CHR_H_INT, 0);
  /* The vertical position of chroma samples that the readers assume too. */
  if (d && d->log2_chroma_h == 1) av_opt_set_int(s, "dst_v_chr_pos", 128, 0);
  if (sws_init_context(s, NULL, NULL) < 0)
    return cr__fail(CR_EUNSUPPORTED, "%s: RGB cannot be converted to %s", o->path,
                    d ? d->name : "the codec's format");
  sws_setColorspaceDetails(s, sws_getCoefficients(SWS_CS_DEFAULT), 1, table_of(c),
                           c->color_range == AVCOL_RANGE_JPEG, 0, 1 << 16, 1 << 16);
  return CR_OK;
}

static void set_quality(AVCodecContext *c, int crf, bool lossless, bool live,
                        AVDictionary **options) {
  if (c->codec_id == AV_CODEC_ID_FFV1) {
    c->level = 3;
    c->gop_size = 1;
    c->slices = 4;
    av_dict_set(options, "slicecrc", "1", 0);
    return;
  }
  if (lossless) return;
  if (crf < 0) crf = QUALITY;
  if (c->codec->priv_class &&
      av_opt_find((void *)&c->codec->priv_class, "crf", NULL, 0, AV_OPT_SEARCH_FAKE_OBJ)) {
    av_dict_set_int(options, "crf", crf, 0);
    if (strcmp(c->codec->name, "libx264") == 0 && !live)
      av_dict_set_int(options, "rc-lookahead", LOOKAHEAD, 0);
    if (strcmp(c->codec->name, "libx264") == 0 && live) {
      av_dict_set(options, "preset", "veryfast", 0);
      av_dict_set(options, "tune", "zerolatency", 0);
    }
    c->bit_rate = 0;
    if (c->codec_id == AV_CODEC_ID_VP9) av_dict_set(options, "row-mt", "1", 0);
    if (c->codec_id == AV_CODEC_ID_HEVC) av_dict_set(options, "x265-params", "log-level=none", 0);
  } else { /* the quantizer of older codecs, from 2 (best) to 31 */
    int q = 2 + crf / 6;
    c->flags |= AV_CODEC_FLAG_QSCALE;
    c->global_quality = FF_QP2LAMBDA * q;
  }
}

int media__output_open_video(media_output *o) {
  const cr_writer_options *p = &o->options;
  const AVCodec *codec = NULL;
  int rc = find_video_encoder(o, &codec);
  if (rc < 0 || !codec) return rc;
  AVCodecContext *c = o->video = avcodec_alloc_context3(codec);
  if (!c) return media__output_no_memory(o);
  CR_TRY(choose_format(o, codec));
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->pix_fmt);
  int across = 1 << d->log2_chroma_w, down = 1 << d->log2_chroma_h;
  c->width = (p->width + across - 1) / across * across;
  c->height = (p->height + down - 1) / down * down;
  /* swscale's vector code reads a little past the last pixel. */
  size_t bytes = (size_t)c->width * (size_t)c->height * 3;
  o->picture = av_mallocz(bytes + AV_INPUT_BUFFER_PADDING_SIZE);
  if (!o->picture) return media__output_no_memory(o);
  CR_TRY(media__check_size(o->path, c->width, c->height));
  c->time_base = av_inv_q(o->rate);
  if (p->timed) {
    c->time_base = (AVRational){1, codec->id == AV_CODEC_ID_MPEG4 ? MPEG4_TICKS : TICKS};
    c->max_b_frames =
        0; /* with B-frames, containers give a film with uneven times too short a duration */
  }
  c->framerate = o->rate;
  if (p->live) {
    c->max_b_frames = 0;
    c->gop_size = FFMAX(1, (int)lrint(p->fps * KEY_SECONDS)); /* players may start at key frames */
  }
  c->thread_count = media__encoder_threads();
  if (p->aspect_num > 0 && p->aspect_den > 0)
    c->sample_aspect_ratio = (AVRational){p->aspect_num, p->aspect_den};
  if (o->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  set_colors(c, p);
  if (strcmp(codec->name, "libsvtav1") == 0)
    setenv("SVT_LOG", "0", 0); /* it prints to stderr by default */
  AVDictionary *options = NULL;
  set_quality(c, p->crf, p->lossless, p->live != 0, &options);
  rc = avcodec_open2(c, codec, &options);
  av_dict_free(&options);
  if (rc < 0) return media__output_refused(o, codec, rc);
  AVStream *s = o->video_stream = avformat_new_stream(o->format, NULL);
  if (!s) return media__output_no_memory(o);
  s->time_base = c->time_base;
  s->avg_frame_rate = o->rate;
  s->sample_aspect_ratio = c->sample_aspect_ratio;
  if (avcodec_parameters_from_context(s->codecpar, c) < 0) return media__output_no_memory(o);
  CR_TRY(set_hdr(o));
  set_planes(o);
  return open_scaler(o);
}
