/* Single images: reads any file whose first frame libav decodes, and writes PNG.
 *
 * Invariant: an image appears under its name only when it is complete. */
#include <libavutil/pixdesc.h>
#include <string.h>

#include "media/media.h"

/* ---- reading --------------------------------------------------------------------------------- */

/* The packed pixel format for 1 to 4 channels of 8 or 16 bits, in native byte order. */
static enum AVPixelFormat packed(int channels, bool deep) {
  static const enum AVPixelFormat formats[2][4] = {
      {AV_PIX_FMT_GRAY8, AV_PIX_FMT_YA8, AV_PIX_FMT_RGB24, AV_PIX_FMT_RGBA},
      {AV_PIX_FMT_GRAY16, AV_PIX_FMT_YA16, AV_PIX_FMT_RGB48, AV_PIX_FMT_RGBA64}};
  return formats[deep][channels - 1];
}

/* Returns the number of channels, and whether samples have more than 8 bits. */
static int channels_of(int format, bool *deep) {
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(format);
  *deep = d && d->comp[0].depth > 8;
  if (!d || (d->flags & AV_PIX_FMT_FLAG_BAYER)) return 3;
  bool alpha = (d->flags & (AV_PIX_FMT_FLAG_ALPHA | AV_PIX_FMT_FLAG_PAL)) != 0;
  bool grey = d->nb_components < 3 && !(d->flags & AV_PIX_FMT_FLAG_PAL);
  return (grey ? 1 : 3) + alpha;
}

static bool is_opaque(const cr_storage *rgba, int64_t pixels) {
  const uint8_t *p = rgba->data;
  for (int64_t i = 0; i < pixels; i++)
    if (p[4 * i + 3] != 255) return false;
  return true;
}

/* Converts the image to `channels` and `deep`. *channels 4 becomes 3 if a palette has no
 * transparent colour. */
static int convert(media_converter *c, const media_source *s, int *channels, bool deep,
                   cr_storage **out) {
  c->out_format = packed(*channels, deep);
  CR_TRY(media__convert(c, s->frame, s->stream, out));
  bool palette = s->frame->format == AV_PIX_FMT_PAL8 && *channels == 4;
  if (!palette || !is_opaque(*out, (int64_t)c->out_width * c->out_height)) return CR_OK;
  cr__release(*out);
  *out = NULL;
  media__converter_close(c);
  *channels = 3;
  return convert(c, s, channels, deep, out);
}

/* Planes of luma and chroma are not converted, since libswscale's 16-bit RGB is too dark by
 * 1/256. */
static int read_deep(cr_tensor *out, media_converter *c, const media_source *s, cr_yuv *format) {
  cr_storage *storage = NULL;
  CR_TRY(media__deep(c, s->frame, s->stream, &storage, format));
  int32_t size = (int32_t)media__values(format);
  int64_t one = 1;
  cr__tensor_set(out, storage, CR_I16, 1, &size, &one, 0);
  cr__release(storage);
  return 1;
}

static int read_packed(cr_tensor *out, media_converter *c, const media_source *s, int channels,
                       bool deep) {
  cr_storage *storage = NULL;
  CR_TRY(convert(c, s, &channels, deep, &storage));
  int32_t shape[3] = {c->out_height, c->out_width, channels};
  int64_t stride[3] = {(int64_t)shape[1] * channels, channels, 1};
  cr__tensor_set(out, storage, deep ? CR_I16 : CR_U8, 3, shape, stride, 0);
  cr__release(storage);
  return CR_OK;
}

/* format NULL: converts to u8 RGB. */
static int read_picture(cr_tensor *out, const char *path, cr_yuv *format) {
  media_source source;
  media_converter converter = {0};
  int channels = 3;
  bool deep = false;
  if (out->storage) return cr__fail(CR_EINVAL, "picture read: out is not empty");
  CR_TRY(media__source_open(&source, path, AVMEDIA_TYPE_VIDEO, NULL));
  int rc = media__source_next(&source);
  if (rc == 0) rc = cr__fail(CR_EFORMAT, "%s: no image could be decoded", path);
  if (rc > 0) rc = media__source_check(&source, source.frame) < 0 ? CR_EFORMAT : 1;
  if (rc > 0) {
    if (format) channels = channels_of(source.frame->format, &deep);
    enum AVPixelFormat planes =
        deep && channels == 3 ? media__deep_format(source.frame->format) : 0;
    converter.out_format = planes;
    bool yuv = planes && !media__deep_planes(planes).full_range;
    rc = yuv ? read_deep(out, &converter, &source, format)
             : read_packed(out, &converter, &source, channels, deep);
  }
  media__converter_close(&converter);
  media__source_close(&source);
  return rc;
}

CR_EXPORT int cr_picture_read(cr_tensor *out, const char *path) {
  return read_picture(out, path, NULL);
}

CR_EXPORT int cr_picture_read_whole(cr_tensor *out, const char *path, cr_yuv *format) {
  return read_picture(out, path, format);
}

/* ---- writing --------------------------------------------------------------------------------- */

CR_EXPORT int cr_picture_check(const char *path, int64_t height, int64_t width) {
  return media__check_size(path, width, height);
}

/* libavcodec's own limit, which decoders apply too. */
int media__check_size(const char *path, int64_t width, int64_t height) {
  enum { AROUND = 128, MOST = INT32_MAX / 8 };
  if (height >= 1 && width >= 1 && height < MOST && width < MOST &&
      (width + AROUND) * (height + AROUND) < MOST)
    return CR_OK;
  return cr__fail(CR_EINVAL,
                  "%s: FFmpeg encodes at most %d million pixels, but %lld x %lld are more", path,
                  MOST / 1000000, (long long)width, (long long)height);
}

/* Copies a row in PNG's byte order, which is big-endian. */
static void copy_row(uint8_t *to, const uint8_t *from, size_t bytes, bool deep) {
  memcpy(to, from, bytes);
  for (size_t i = 0; deep && i < bytes; i += 2) {
    to[i] = from[i + 1];
    to[i + 1] = from[i];
  }
}

/* Encodes a dense image as PNG into *packet. */
static int encode_png(const cr_tensor *x, const char *path, AVPacket *packet) {
  const AVCodec *codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
  if (!codec) return cr__fail(CR_EUNSUPPORTED, "%s: FFmpeg here has no PNG encoder", path);
  CR_TRY(cr_picture_check(path, x->shape[0], x->shape[1]));
  bool deep = x->dtype == CR_I16;
  AVCodecContext *c = avcodec_alloc_context3(codec);
  AVFrame *frame = av_frame_alloc();
  int rc = c && frame ? 0 : AVERROR(ENOMEM);
  if (rc >= 0) {
    c->width = frame->width = x->shape[1];
    c->height = frame->height = x->shape[0];
    c->pix_fmt = packed(x->shape[2], deep);
    if (deep) c->pix_fmt = av_pix_fmt_swap_endianness(c->pix_fmt); /* PNG is big-endian */
    frame->format = c->pix_fmt;
    c->time_base = (AVRational){1, 25};
    rc = avcodec_open2(c, codec, NULL);
  }
  if (rc >= 0) rc = av_frame_get_buffer(frame, 0);
  if (rc >= 0) {
    size_t row = (size_t)x->shape[1] * (size_t)x->shape[2] * (deep ? 2 : 1);
    for (int y = 0; y < x->shape[0]; y++)
      copy_row(frame->data[0] + (ptrdiff_t)y * frame->linesize[0],
               (const uint8_t *)cr__ptr(x) + (size_t)y * row, row, deep);
    rc = avcodec_send_frame(c, frame);
  }
  if (rc >= 0) rc = avcodec_send_frame(c, NULL);
  if (rc >= 0) rc = avcodec_receive_packet(c, packet);
  av_frame_free(&frame);
  avcodec_free_context(&c);
  return rc < 0 ? media__fail(rc, "%s: a PNG of %dx%d cannot be encoded", path, x->shape[1],
                              x->shape[0])
                : CR_OK;
}

CR_EXPORT int cr_picture_write(const cr_tensor *x, const char *path) {
  media__quiet();
  CR_TRY(cr__alive("picture write", x));
  if ((x->dtype != CR_U8 && x->dtype != CR_I16) || x->device != CR_CPU || x->rank != 3 ||
      x->shape[0] < 1 || x->shape[1] < 1 || x->shape[2] < 1 || x->shape[2] > 4)
    return cr__fail(
        CR_EINVAL,
        "picture write: u8 or i16 [H W C] with 1 to 4 channels on the CPU is needed, not %s %s",
        cr_dtype_name(x->dtype), cr__shape(x));
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(x, x->dtype, &temp);
  if (!dense) return CR_ENOMEM;
  AVPacket *packet = av_packet_alloc();
  int rc =
      packet ? encode_png(dense, path, packet) : cr__fail(CR_ENOMEM, "%s: out of memory", path);
  if (packet && rc >= 0) rc = cr_file_write(path, packet->data, packet->size);
  av_packet_free(&packet);
  cr_free(&temp);
  return rc;
}
