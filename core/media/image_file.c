/* Single pictures: any file whose first frame libav decodes, and PNG out.
 *
 * Invariant: a picture appears under its name only when it is complete. */
#include <string.h>

#include "media/media.h"

CR_EXPORT int cr_picture_read(cr_tensor *out, const char *path) {
  media_source source;
  media_converter converter = {0};
  cr_storage *storage = NULL;
  if (out->storage) return cr__fail(CR_EINVAL, "picture read: out is not empty");
  CR_TRY(media__source_open(&source, path, AVMEDIA_TYPE_VIDEO, NULL));
  int rc = media__source_next(&source);
  if (rc == 0) rc = cr__fail(CR_EFORMAT, "%s: no picture could be decoded", path);
  if (rc > 0) rc = media__source_check(&source, source.frame) < 0 ? CR_EFORMAT : 1;
  if (rc > 0) rc = media__convert(&converter, source.frame, source.stream, &storage);
  if (rc >= 0) {
    int32_t shape[3] = {converter.out_height, converter.out_width, 3};
    int64_t stride[3] = {(int64_t)shape[1] * 3, 3, 1};
    cr__tensor_set(out, storage, CR_U8, 3, shape, stride, 0);
    cr__release(storage);
    rc = CR_OK;
  }
  media__converter_close(&converter);
  media__source_close(&source);
  return rc;
}

/* The PNG of a dense picture, in *packet. */
static int encode_png(const cr_tensor *x, const char *path, AVPacket *packet) {
  const AVCodec *codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
  if (!codec) return cr__fail(CR_EUNSUPPORTED, "%s: FFmpeg here has no PNG encoder", path);
  AVCodecContext *c = avcodec_alloc_context3(codec);
  AVFrame *frame = av_frame_alloc();
  int rc = c && frame ? 0 : AVERROR(ENOMEM);
  if (rc >= 0) {
    c->width = frame->width = x->shape[1];
    c->height = frame->height = x->shape[0];
    c->pix_fmt = x->shape[2] == 1 ? AV_PIX_FMT_GRAY8 : AV_PIX_FMT_RGB24;
    frame->format = c->pix_fmt;
    c->time_base = (AVRational){1, 25};
    rc = avcodec_open2(c, codec, NULL);
  }
  if (rc >= 0) rc = av_frame_get_buffer(frame, 0);
  if (rc >= 0) {
    size_t row = (size_t)x->shape[1] * (size_t)x->shape[2];
    for (int y = 0; y < x->shape[0]; y++)
      memcpy(frame->data[0] + (ptrdiff_t)y * frame->linesize[0],
             (const uint8_t *)cr__ptr(x) + (size_t)y * row, row);
    rc = avcodec_send_frame(c, frame);
  }
  if (rc >= 0) rc = avcodec_send_frame(c, NULL);
  if (rc >= 0) rc = avcodec_receive_packet(c, packet);
  av_frame_free(&frame);
  avcodec_free_context(&c);
  return rc < 0 ? media__fail(rc, "%s: PNG of %dx%d", path, x->shape[1], x->shape[0]) : CR_OK;
}

CR_EXPORT int cr_picture_write(const cr_tensor *x, const char *path) {
  media__quiet();
  CR_TRY(cr__alive("picture write", x));
  if (x->dtype != CR_U8 || x->device != CR_CPU || x->rank != 3 || x->shape[0] < 1 ||
      x->shape[1] < 1 || (x->shape[2] != 1 && x->shape[2] != 3))
    return cr__fail(CR_EINVAL, "picture write: u8 [H W 3] or [H W 1] on the cpu, not %s %s",
                    cr_dtype_name(x->dtype), cr__shape(x));
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(x, CR_U8, &temp);
  if (!dense) return CR_ENOMEM;
  AVPacket *packet = av_packet_alloc();
  int rc =
      packet ? encode_png(dense, path, packet) : cr__fail(CR_ENOMEM, "%s: out of memory", path);
  if (packet && rc >= 0) rc = cr_file_write(path, packet->data, packet->size);
  av_packet_free(&packet);
  cr_free(&temp);
  return rc;
}
