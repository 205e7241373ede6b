/* Deep colour, that is, more than 8 bits per sample: the planar pixel formats that hold it, and
 * frames in these formats. */
#include <libavutil/imgutils.h>
#include <libavutil/pixdesc.h>
#include <string.h>

#include "media/media.h"

/* Three planes with 16 bits per sample in native byte order. */
static bool is_plain(const AVPixFmtDescriptor *d) {
  const uint64_t other =
      AV_PIX_FMT_FLAG_BE | AV_PIX_FMT_FLAG_ALPHA | AV_PIX_FMT_FLAG_FLOAT | AV_PIX_FMT_FLAG_HWACCEL;
  if (!(d->flags & AV_PIX_FMT_FLAG_PLANAR) || (d->flags & other) || d->nb_components != 3)
    return false;
  if (d->log2_chroma_w > 1 || d->log2_chroma_h > 1) return false;
  bool rgb = (d->flags & AV_PIX_FMT_FLAG_RGB) != 0;
  for (int i = 0; i < 3; i++) {
    const AVComponentDescriptor *c = &d->comp[i];
    if (c->depth <= 8 || c->depth > 16 || c->step != 2 || c->shift != 0) return false;
    if (c->plane != (rgb ? (i + 2) % 3 : i)) return false;
  }
  return true;
}

static bool is_luma_and_chroma(const AVPixFmtDescriptor *d) {
  uint64_t other = AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_BAYER | AV_PIX_FMT_FLAG_PAL;
  return !(d->flags & other) && d->nb_components >= 3 && strncmp(d->name, "xyz", 3) != 0;
}

enum AVPixelFormat media__deep_format(int format) {
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(format), *e = NULL;
  if (!d || d->comp[0].depth <= 8 || (d->flags & AV_PIX_FMT_FLAG_HWACCEL)) return 0;
  bool yuv = is_luma_and_chroma(d);
  int bits = d->comp[0].depth < 16 ? d->comp[0].depth : 16;
  while ((e = av_pix_fmt_desc_next(e)) != NULL)
    if (is_plain(e) && e->comp[0].depth == bits && yuv == !(e->flags & AV_PIX_FMT_FLAG_RGB) &&
        (!yuv || (e->log2_chroma_w == d->log2_chroma_w && e->log2_chroma_h == d->log2_chroma_h)))
      return av_pix_fmt_desc_get_id(e);
  return yuv ? AV_PIX_FMT_YUV444P16 : AV_PIX_FMT_GBRP16;
}

cr_yuv media__deep_planes(enum AVPixelFormat format) {
  const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(format);
  if (!d || !is_plain(d)) return (cr_yuv){0};
  return (cr_yuv){.shift_x = d->log2_chroma_w,
                  .shift_y = d->log2_chroma_h,
                  .full_range = (d->flags & AV_PIX_FMT_FLAG_RGB) != 0,
                  .bits = d->comp[0].depth};
}

int64_t media__values(const cr_yuv *f) {
  int64_t w = (f->width + f->shift_x) >> f->shift_x, h = (f->height + f->shift_y) >> f->shift_y;
  return (int64_t)f->width * f->height + 2 * w * h;
}

int media__deep(media_converter *c, const AVFrame *frame, const AVStream *stream, cr_storage **out,
                cr_yuv *format) {
  if (!media__is_output(c, frame, stream)) {
    CR_TRY(media__convert(c, frame, stream, out));
  } else {
    c->out_width = frame->width;
    c->out_height = frame->height;
    int bytes = av_image_get_buffer_size(c->out_format, frame->width, frame->height, 1);
    *out = bytes > 0 ? cr__storage_new(bytes, CR_CPU) : NULL;
    if (!*out) return CR_ENOMEM;
    av_image_copy_to_buffer((*out)->data, bytes, (const uint8_t *const *)frame->data,
                            frame->linesize, c->out_format, frame->width, frame->height, 1);
  }
  *format = media__deep_planes(c->out_format);
  format->width = c->out_width;
  format->height = c->out_height;
  if (format->full_range) return CR_OK; /* RGB has no matrix */
  format->full_range = frame->color_range == AVCOL_RANGE_JPEG;
  media__matrix(format->matrix, (int)frame->colorspace);
  return CR_OK;
}
