/* A video file being written: pictures to the encoder's format, the sound beside them, the
 * container.
 *
 * Invariants: the file has a temporary dot name (known to cr_cleanup_add) until it is complete; the
 * sound is decoded in step with the pictures and ends exactly with them; the matrix used for RGB to
 * YUV is the one that the file's tags name. */
#include <errno.h>
#include <libavutil/audio_fifo.h>
#include <libavutil/avstring.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "media/media.h"

/* LOOKAHEAD: frames by which libx264 looks ahead, and which are still to be encoded when a film
 * ends. 20 give an SSIM of 0.9928 instead of 0.9921 in a file larger by 10 % (1080p, crf 18). */
enum { QUALITY = 18, LOOKAHEAD = 10, SOUND_BITS_A_CHANNEL = 96000, FREE_FRAME = 1024 };

static int no_memory(const media_output *o) {
  return cr__fail(CR_ENOMEM, "%s: out of memory", o->path ? o->path : "writer");
}

/* ---- the video encoder ---- */

static int find_video_encoder(const media_output *o, const AVCodec **out) {
  const AVOutputFormat *container = o->format->oformat;
  const char *name = o->options.codec;
  const AVCodec *codec = NULL;
  if (o->options.lossless) {
    if (name[0] && strcmp(name, "ffv1") != 0)
      return cr__fail(CR_EINVAL, "%s: lossless is FFV1, so the codec %s cannot be asked for too",
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
      return cr__fail(CR_EINVAL, "%s: a %s file cannot hold video: use .mp4, .mov, .mkv or .webm",
                      o->path, container->name);
  }
  *out = codec;
  return CR_OK;
}

static enum AVPixelFormat pixel_format(const AVCodec *codec, bool lossless) {
  enum AVPixelFormat wanted = lossless ? AV_PIX_FMT_BGR0 : AV_PIX_FMT_YUV420P;
  if (codec->id == AV_CODEC_ID_MJPEG) wanted = AV_PIX_FMT_YUVJ420P; /* it refuses the other range */
  if (!codec->pix_fmts) return wanted;
  for (const enum AVPixelFormat *f = codec->pix_fmts; *f != AV_PIX_FMT_NONE; f++)
    if (*f == wanted) return wanted;
  return avcodec_find_best_pix_fmt_of_list(codec->pix_fmts, AV_PIX_FMT_RGB24, 0, NULL);
}

/* Tags as the source's; RGB sources get the matrix that players assume for the size. */
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

/* Pictures that cr_rgb_to_yuv made need no scaler, where it makes what the scaler would. */
static void set_planes(media_output *o, const int *table) {
  const AVCodecContext *c = o->video;
  bool full = c->color_range == AVCOL_RANGE_JPEG;
  if (c->pix_fmt != AV_PIX_FMT_YUV420P && c->pix_fmt != AV_PIX_FMT_YUVJ420P) return;
  if (c->width < 12 || c->height < 12) return;
  o->planes = (cr_yuv){.width = c->width, .height = c->height, .shift_x = 1, .shift_y = 1};
  o->planes.full_range = full;
  for (int i = 0; i < 4; i++) o->planes.matrix[i] = table[i];
}

static int open_scaler(media_output *o) {
  const AVCodecContext *c = o->video;
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->pix_fmt);
  o->scaler = sws_alloc_context();
  if (!o->scaler) return no_memory(o);
  av_opt_set_int(o->scaler, "srcw", c->width, 0);
  av_opt_set_int(o->scaler, "srch", c->height, 0);
  av_opt_set_int(o->scaler, "src_format", AV_PIX_FMT_RGB24, 0);
  av_opt_set_int(o->scaler, "dstw", c->width, 0);
  av_opt_set_int(o->scaler, "dsth", c->height, 0);
  av_opt_set_int(o->scaler, "dst_format", c->pix_fmt, 0);
  av_opt_set_int(o->scaler, "sws_flags",
                 SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_FULL_CHR_H_INT, 0);
  /* The vertical place of the chroma samples that the reading side assumes too. */
  if (d && d->log2_chroma_h == 1) av_opt_set_int(o->scaler, "dst_v_chr_pos", 128, 0);
  int space = c->colorspace == AVCOL_SPC_RGB ? SWS_CS_DEFAULT : (int)c->colorspace;
  const int *table = sws_getCoefficients(space);
  if (sws_init_context(o->scaler, NULL, NULL) < 0)
    return cr__fail(CR_EUNSUPPORTED, "%s: RGB cannot be converted to %s", o->path,
                    d ? d->name : "the codec's format");
  set_planes(o, table);
  sws_setColorspaceDetails(o->scaler, sws_getCoefficients(SWS_CS_DEFAULT), 1, table,
                           c->color_range == AVCOL_RANGE_JPEG, 0, 1 << 16, 1 << 16);
  return CR_OK;
}

static void set_quality(AVCodecContext *c, int crf, bool lossless, AVDictionary **options) {
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
    if (strcmp(c->codec->name, "libx264") == 0)
      av_dict_set_int(options, "rc-lookahead", LOOKAHEAD, 0);
    c->bit_rate = 0;
    if (c->codec_id == AV_CODEC_ID_VP9) av_dict_set(options, "row-mt", "1", 0);
    if (c->codec_id == AV_CODEC_ID_HEVC) av_dict_set(options, "x265-params", "log-level=none", 0);
  } else { /* the older codecs' quantizer, 2 best to 31 */
    int q = 2 + crf / 6;
    c->flags |= AV_CODEC_FLAG_QSCALE;
    c->global_quality = FF_QP2LAMBDA * q;
  }
}

static int open_video(media_output *o) {
  const cr_writer_options *p = &o->options;
  const AVCodec *codec = NULL;
  int rc = find_video_encoder(o, &codec);
  if (rc < 0 || !codec) return rc;
  AVCodecContext *c = o->video = avcodec_alloc_context3(codec);
  if (!c) return no_memory(o);
  c->pix_fmt = pixel_format(codec, p->lossless);
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(c->pix_fmt);
  if (!d) return cr__fail(CR_EUNSUPPORTED, "%s: %s takes no picture format", o->path, codec->name);
  int across = 1 << d->log2_chroma_w, down = 1 << d->log2_chroma_h;
  c->width = (p->width + across - 1) / across * across;
  c->height = (p->height + down - 1) / down * down;
  /* swscale's vector code reads a little past the last pixel. */
  size_t bytes = (size_t)c->width * (size_t)c->height * 3;
  o->picture = av_mallocz(bytes + AV_INPUT_BUFFER_PADDING_SIZE);
  if (!o->picture) return no_memory(o);
  c->time_base = av_inv_q(o->rate);
  c->framerate = o->rate;
  c->thread_count = media__encoder_threads();
  if (p->aspect_num > 0 && p->aspect_den > 0)
    c->sample_aspect_ratio = (AVRational){p->aspect_num, p->aspect_den};
  if (o->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  set_colors(c, p);
  if (strcmp(codec->name, "libsvtav1") == 0) setenv("SVT_LOG", "0", 0); /* it prints by itself */
  AVDictionary *options = NULL;
  set_quality(c, p->crf, p->lossless, &options);
  rc = avcodec_open2(c, codec, &options);
  av_dict_free(&options);
  if (rc < 0)
    return media__fail(rc, "%s: the encoder %s at %dx%d", o->path, codec->name, c->width,
                       c->height);
  AVStream *s = o->video_stream = avformat_new_stream(o->format, NULL);
  if (!s) return no_memory(o);
  s->time_base = c->time_base;
  s->avg_frame_rate = o->rate;
  s->sample_aspect_ratio = c->sample_aspect_ratio;
  if (avcodec_parameters_from_context(s->codecpar, c) < 0) return no_memory(o);
  return open_scaler(o);
}

/* ---- the sound ---- */

static int nearest_rate(const AVCodec *codec, int rate) {
  if (!codec->supported_samplerates) return rate;
  int above = 0, highest = 0;
  for (const int *r = codec->supported_samplerates; *r; r++) {
    if (*r >= rate && (!above || *r < above)) above = *r;
    if (*r > highest) highest = *r;
  }
  return above ? above : highest;
}

/* AAC where the container takes it; beside lossless pictures FLAC, which also starts and ends at
 * the very sample. */
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
  c->sample_fmt = o->sound.format;
  c->sample_rate = o->sound.rate;
  c->time_base = (AVRational){1, c->sample_rate};
  int rc = av_channel_layout_copy(&c->ch_layout, &o->sound.layout);
  if (rc < 0) return rc;
  c->bit_rate = (int64_t)SOUND_BITS_A_CHANNEL * c->ch_layout.nb_channels;
  if (o->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  return avcodec_open2(c, codec, NULL);
}

static int open_audio(media_output *o) {
  const AVCodec *codec = find_audio_encoder(o);
  if (!codec)
    return cr__fail(CR_EINVAL, "%s: a %s file cannot hold sound", o->path,
                    o->format->oformat->name);
  CR_TRY(media__sound_open(&o->sound, o->options.audio_path, 0, 0, codec->sample_fmts[0], o->stop));
  o->has_sound = true;
  o->sound.rate = nearest_rate(codec, o->sound.rate); /* before its first sample is asked for */
  int rate = o->sound.rate, channels = o->sound.layout.nb_channels;
  /* An encoder may not take this very layout: then the usual one of as many channels, then two. */
  int rc = open_audio_encoder(o, codec);
  for (int attempt = 0; rc < 0 && rc != AVERROR(ENOMEM) && attempt < 2; attempt++) {
    avcodec_free_context(&o->audio);
    CR_TRY(media__sound_mix(&o->sound, attempt == 0 ? channels : 2));
    rc = open_audio_encoder(o, codec);
  }
  if (rc < 0)
    return media__fail(rc, "%s: the encoder %s at %d Hz with %d channels", o->path, codec->name,
                       rate, channels);
  AVStream *s = o->audio_stream = avformat_new_stream(o->format, NULL);
  if (!s) return no_memory(o);
  s->time_base = o->audio->time_base;
  if (avcodec_parameters_from_context(s->codecpar, o->audio) < 0) return no_memory(o);
  double start = o->options.audio_start, end = o->options.audio_end;
  o->skip = start > 0 ? llrint(start * rate) : 0;
  o->limit = end > 0 ? llrint(end * rate) - o->skip : -1;
  if (end > 0 && o->limit < 0) o->limit = 0;
  return CR_OK;
}

/* ---- opening ---- */

static int open_file(media_output *o) {
  o->temp = cr__temp_name(o->path);
  if (!o->temp) return no_memory(o);
  o->format->url = av_asprintf("file:%s", o->temp);
  if (!o->format->url) return no_memory(o);
  int rc = avio_open(&o->format->pb, o->format->url, AVIO_FLAG_WRITE);
  if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  cr_cleanup_add(o->temp);
  AVDictionary *options = NULL;
  const AVClass *class = o->format->oformat->priv_class;
  if (class && av_opt_find((void *)&class, "movflags", NULL, 0, AV_OPT_SEARCH_FAKE_OBJ))
    av_dict_set(&options, "movflags", "+faststart", 0);
  if (o->options.comment[0]) av_dict_set(&o->format->metadata, "comment", o->options.comment, 0);
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
  if (p->crf > 63) return cr__fail(CR_EINVAL, "%s: crf is 0 to 63, not %d", o->path, p->crf);
  o->rate = av_d2q(p->fps, 1001000);
  const AVOutputFormat *kind = av_guess_format(NULL, o->path, NULL);
  if (!kind || (kind->flags & AVFMT_NOFILE))
    return cr__fail(CR_EINVAL,
                    "%s: the ending does not name a kind of video file: use .mp4, .mov, .mkv or "
                    ".webm",
                    o->path);
  if (avformat_alloc_output_context2(&o->format, kind, NULL, NULL) < 0) return no_memory(o);
  o->packet = av_packet_alloc();
  if (!o->packet) return no_memory(o);
  CR_TRY(open_video(o));
  if (p->audio_path[0]) CR_TRY(open_audio(o));
  return open_file(o);
}

int media__output_open(media_output *o, const char *path, const cr_writer_options *options,
                       atomic_int *stop) {
  memset(o, 0, sizeof *o);
  media__quiet();
  o->options = *options;
  o->stop = stop;
  o->path = strdup(path);
  int rc = o->path ? open_all(o) : no_memory(o);
  if (rc < 0) media__output_close(o);
  return rc;
}

void media__output_close(media_output *o) {
  if (o->format && o->format->pb) avio_closep(&o->format->pb);
  if (o->temp) {
    unlink(o->temp);
    cr_cleanup_remove(o->temp);
  }
  avcodec_free_context(&o->video);
  avcodec_free_context(&o->audio);
  if (o->has_sound) media__sound_close(&o->sound);
  o->has_sound = false;
  avformat_free_context(o->format);
  o->format = NULL;
  sws_freeContext(o->scaler);
  o->scaler = NULL;
  av_freep(&o->picture);
  av_packet_free(&o->packet);
  free(o->temp);
  free(o->path);
  o->temp = o->path = NULL;
}

/* ---- writing ---- */

/* Matroska has no edit list to hide the encoder's first samples, and shifting everything by them
 * would start the pictures late. Opus counts its packets from 0 and names the samples to drop; of
 * the others the packet before the time 0 is left out. False: not to be written. */
static bool place_sound(const media_output *o, AVPacket *packet) {
  const char *container = o->format->oformat->name;
  if (strcmp(container, "matroska") != 0 && strcmp(container, "webm") != 0) return true;
  if (o->audio->codec_id == AV_CODEC_ID_OPUS) {
    packet->pts += o->audio->initial_padding;
    packet->dts += o->audio->initial_padding;
    return true;
  }
  return packet->pts >= 0;
}

/* Sends a frame (NULL: the end) to an encoder and its packets to the file. */
static int encode(media_output *o, AVCodecContext *c, AVStream *s, AVFrame *frame) {
  int rc = avcodec_send_frame(c, frame);
  if (rc < 0) return media__fail(rc, "%s: the encoder %s", o->path, c->codec->name);
  for (;;) {
    rc = avcodec_receive_packet(c, o->packet);
    if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return CR_OK;
    if (rc < 0) return media__fail(rc, "%s: the encoder %s", o->path, c->codec->name);
    o->packet->stream_index = s->index;
    if (s == o->video_stream && o->packet->duration <= 0) o->packet->duration = 1;
    if (s == o->audio_stream && !place_sound(o, o->packet)) {
      av_packet_unref(o->packet);
      continue;
    }
    av_packet_rescale_ts(o->packet, c->time_base, s->time_base);
    rc = av_interleaved_write_frame(o->format, o->packet);
    if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  }
}

/* Takes n samples of the sound into frame, silence where it has ended. */
static int take_sound(media_output *o, AVFrame *frame, int n) {
  while (o->skip > 0) {
    int part = o->skip < 16384 ? (int)o->skip : 16384;
    int there = media__sound_fill(&o->sound, part);
    if (there < 0) return there;
    av_audio_fifo_drain(o->sound.queue, there);
    o->skip = there < part ? 0 : o->skip - there;
  }
  int wanted = n;
  if (o->limit >= 0 && o->limit - o->samples < wanted)
    wanted = o->limit > o->samples ? (int)(o->limit - o->samples) : 0;
  int there = wanted > 0 ? media__sound_fill(&o->sound, wanted) : 0;
  if (there < 0) return there;
  if (there > 0 && av_audio_fifo_read(o->sound.queue, (void **)frame->extended_data, there) < there)
    return no_memory(o);
  if (there < n)
    av_samples_set_silence(frame->extended_data, there, n - there, frame->ch_layout.nb_channels,
                           frame->format);
  return CR_OK;
}

static int write_sound(media_output *o, int n) {
  AVFrame *frame = av_frame_alloc();
  if (!frame) return no_memory(o);
  frame->nb_samples = n;
  frame->format = o->audio->sample_fmt;
  frame->sample_rate = o->audio->sample_rate;
  int rc = CR_OK;
  if (av_channel_layout_copy(&frame->ch_layout, &o->audio->ch_layout) < 0 ||
      av_frame_get_buffer(frame, 0) < 0)
    rc = no_memory(o);
  if (rc >= 0) rc = take_sound(o, frame, n);
  frame->pts = o->samples;
  if (rc >= 0) rc = encode(o, o->audio, o->audio_stream, frame);
  o->samples += n;
  av_frame_free(&frame);
  return rc;
}

/* The sound up to the end of the pictures sent; whole encoder frames only, unless `all`. */
static int follow_with_sound(media_output *o, bool all) {
  if (!o->audio) return CR_OK;
  int size = o->audio->frame_size > 0 ? o->audio->frame_size : FREE_FRAME;
  int64_t end = av_rescale_q(o->frames, av_inv_q(o->rate), (AVRational){1, o->audio->sample_rate});
  while (o->samples + size <= end) CR_TRY(write_sound(o, size));
  if (all && o->samples < end) CR_TRY(write_sound(o, (int)(end - o->samples)));
  return CR_OK;
}

/* Copies the picture, its last column and row repeated up to the encoder's size. */
static void fill_picture(media_output *o, const uint8_t *rgb) {
  int w = o->options.width, h = o->options.height, full = o->video->width;
  for (int y = 0; y < o->video->height; y++) {
    uint8_t *to = o->picture + (size_t)y * (size_t)full * 3;
    memcpy(to, rgb + (size_t)(y < h ? y : h - 1) * (size_t)w * 3, (size_t)w * 3);
    for (int x = w; x < full; x++) memcpy(to + (size_t)x * 3, to + (size_t)(w - 1) * 3, 3);
  }
}

/* Fills the encoder's frame from RGB. */
static void convert(media_output *o, AVFrame *frame, const uint8_t *rgb) {
  fill_picture(o, rgb);
  const uint8_t *rows[4] = {o->picture};
  int strides[4] = {o->video->width * 3};
  sws_scale(o->scaler, rows, strides, 0, o->video->height, frame->data, frame->linesize);
}

/* The same from planes that are what it wants. */
static void copy_planes(const media_output *o, AVFrame *frame, const uint8_t *from) {
  const cr_yuv *f = &o->planes;
  for (int p = 0; p < 3; p++) {
    int width = p ? f->width >> f->shift_x : f->width,
        rows = p ? f->height >> f->shift_y : f->height;
    av_image_copy_plane(frame->data[p], frame->linesize[p], from, width, width, rows);
    from += (ptrdiff_t)width * rows;
  }
}

int media__output_frame(media_output *o, const uint8_t *picture, bool planes) {
  if (cr_interrupted() || (o->stop && *o->stop))
    return cr__fail(CR_EINTERRUPT, "%s: interrupted", o->path);
  AVFrame *frame = av_frame_alloc();
  if (!frame) return no_memory(o);
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
  frame->pts = o->frames;
  int rc = av_frame_get_buffer(frame, 0) < 0 ? no_memory(o) : CR_OK;
  if (rc >= 0) {
    if (planes)
      copy_planes(o, frame, picture);
    else
      convert(o, frame, picture);
    rc = encode(o, o->video, o->video_stream, frame);
  }
  av_frame_free(&frame);
  if (rc < 0) return rc;
  o->frames++;
  return follow_with_sound(o, false);
}

int media__output_finish(media_output *o) {
  if (o->frames == 0) return cr__fail(CR_EINVAL, "%s: no frame was written", o->path);
  CR_TRY(follow_with_sound(o, true));
  CR_TRY(encode(o, o->video, o->video_stream, NULL));
  if (o->audio) CR_TRY(encode(o, o->audio, o->audio_stream, NULL));
  int rc = av_write_trailer(o->format);
  if (rc >= 0 && o->format->pb->error < 0) rc = o->format->pb->error;
  int closed = avio_closep(&o->format->pb);
  if (rc >= 0) rc = closed;
  if (rc < 0) return media__fail(rc, "%s: cannot be written", o->path);
  if (rename(o->temp, o->path) != 0)
    return cr__fail_errno(CR_EIO, "%s: cannot be put in its place", o->path);
  cr_cleanup_remove(o->temp);
  free(o->temp);
  o->temp = NULL;
  return CR_OK;
}
