/* Converts decoded frames to RGB: rotated upright, by the frame's own matrix and range, at full
 * chroma resolution.
 *
 * libavfilter's transpose and scale do the work, with the flags FLAGS: bicubic chroma at every
 * pixel, and rounding without the bias of the fast paths. `ffmpeg -sws_flags FLAGS -pix_fmt rgb24`
 * gives the same bytes. As in ffmpeg, a stream that does not name its matrix is read as BT.601. */
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavutil/display.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"

#define FLAGS "bicubic+accurate_rnd+full_chroma_int"

static double rotation(const int32_t *matrix) {
  double theta = matrix ? -round(av_display_rotation_get(matrix)) : 0;
  if (isnan(theta)) return 0;
  return theta - 360 * floor(theta / 360 + 0.9 / 360);
}

int media__rotation(const int32_t *matrix) { return (int)lround(rotation(matrix)) % 360; }

const int32_t *media__stream_matrix(const AVStream *stream) {
  size_t bytes = 0;
  const uint8_t *data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &bytes);
  return data && bytes >= 9 * sizeof(int32_t) ? (const int32_t *)data : NULL;
}

/* Writes the filters that rotate a frame upright, and unmirror a mirrored one. */
static void upright(const int32_t *m, char *text, size_t size) {
  text[0] = 0;
  if (!m) return;
  double theta = rotation(m);
  if (fabs(theta - 90) < 1)
    snprintf(text, size, "transpose=%s,", m[3] > 0 ? "cclock_flip" : "clock");
  else if (fabs(theta - 180) < 1)
    snprintf(text, size, "%s%s", m[0] < 0 ? "hflip," : "", m[4] < 0 ? "vflip," : "");
  else if (fabs(theta - 270) < 1)
    snprintf(text, size, "transpose=%s,", m[3] < 0 ? "clock_flip" : "cclock");
  else if (fabs(theta) > 1)
    snprintf(text, size, "rotate=%f*PI/180,", theta);
  else if (m[4] < 0)
    snprintf(text, size, "vflip,");
}

void media__converter_close(media_converter *c) {
  avfilter_graph_free(&c->graph);
  av_frame_free(&c->result);
  c->source = c->sink = NULL;
}

static int build(media_converter *c, const AVFrame *frame, const AVStream *stream,
                 const int32_t *matrix) {
  media__converter_close(c);
  c->width = frame->width;
  c->height = frame->height;
  c->format = frame->format;
  c->has_matrix = matrix != NULL;
  if (matrix) memcpy(c->matrix, matrix, sizeof c->matrix);
  c->graph = avfilter_graph_alloc();
  c->result = av_frame_alloc();
  if (!c->graph || !c->result) return AVERROR(ENOMEM);
  c->graph->nb_threads = media__codec_threads();
  /* libavfilter inserts the conversion where its filters need it, since transpose does not accept
   * every format. */
  int rc = av_opt_set(c->graph, "scale_sws_opts", "flags=" FLAGS, 0);
  if (rc < 0) return rc;

  char source[200], chain[300], turned[80], size[120] = "";
  AVRational aspect = frame->sample_aspect_ratio;
  snprintf(source, sizeof source, "video_size=%dx%d:pix_fmt=%d:time_base=%d/%d:pixel_aspect=%d/%d",
           frame->width, frame->height, frame->format, stream->time_base.num, stream->time_base.den,
           aspect.num, aspect.den ? aspect.den : 1);
  upright(matrix, turned, sizeof turned);
  if (c->out_width)
    snprintf(size, sizeof size, "scale=%d:%d:flags=" FLAGS ",", c->out_width, c->out_height);
  snprintf(chain, sizeof chain, "%s%sformat=%s", turned, size,
           av_get_pix_fmt_name(c->out_format ? c->out_format : AV_PIX_FMT_RGB24));

  rc = avfilter_graph_create_filter(&c->source, avfilter_get_by_name("buffer"), "in", source, NULL,
                                    c->graph);
  if (rc >= 0)
    rc = avfilter_graph_create_filter(&c->sink, avfilter_get_by_name("buffersink"), "out", NULL,
                                      NULL, c->graph);
  if (rc < 0) return rc;
  AVFilterInOut *outputs = avfilter_inout_alloc(), *inputs = avfilter_inout_alloc();
  if (outputs && inputs) {
    *outputs = (AVFilterInOut){av_strdup("in"), c->source, 0, NULL};
    *inputs = (AVFilterInOut){av_strdup("out"), c->sink, 0, NULL};
    rc = avfilter_graph_parse_ptr(c->graph, chain, &inputs, &outputs, NULL);
  } else {
    rc = AVERROR(ENOMEM);
  }
  avfilter_inout_free(&outputs);
  avfilter_inout_free(&inputs);
  return rc < 0 ? rc : avfilter_graph_config(c->graph, NULL);
}

/* EXIF's orientations 2 to 8 as display matrices, so that a photo is rotated as ffmpeg rotates
 * it. */
static const int32_t *exif_matrix(const AVFrame *frame) {
  enum { ONE = 1 << 16, LAST = 1 << 30 };
  static const int32_t matrices[][9] = {
      {-ONE, 0, 0, 0, ONE, 0, 0, 0, LAST}, {-ONE, 0, 0, 0, -ONE, 0, 0, 0, LAST},
      {ONE, 0, 0, 0, -ONE, 0, 0, 0, LAST}, {0, ONE, 0, ONE, 0, 0, 0, 0, LAST},
      {0, ONE, 0, -ONE, 0, 0, 0, 0, LAST}, {0, -ONE, 0, -ONE, 0, 0, 0, 0, LAST},
      {0, -ONE, 0, ONE, 0, 0, 0, 0, LAST}};
  const AVDictionaryEntry *e = av_dict_get(frame->metadata, "Orientation", NULL, 0);
  int number = e ? atoi(e->value) : 1;
  return number >= 2 && number <= 8 ? matrices[number - 2] : NULL;
}

const int32_t *media__display_matrix(const AVFrame *frame, const AVStream *stream) {
  const AVFrameSideData *side = av_frame_get_side_data(frame, AV_FRAME_DATA_DISPLAYMATRIX);
  if (side && side->size >= 9 * sizeof(int32_t)) return (const int32_t *)side->data;
  const int32_t *photo = exif_matrix(frame);
  return photo ? photo : media__stream_matrix(stream);
}

void media__matrix(int32_t *out, int space) {
  bool known = space >= 1 && space <= 10 && space != AVCOL_SPC_YCGCO;
  const int *matrix = sws_getCoefficients(known ? space : AVCOL_SPC_BT470BG);
  for (int i = 0; i < 4; i++) out[i] = matrix[i];
}

bool media__is_output(const media_converter *c, const AVFrame *frame, const AVStream *stream) {
  char turned[80];
  upright(media__display_matrix(frame, stream), turned, sizeof turned);
  bool same = !c->out_width || (c->out_width == frame->width && c->out_height == frame->height);
  return frame->format == (int)c->out_format && !turned[0] && same;
}

/* Describes the layout and the colours of a frame's planes by libavfilter's rules. */
static bool describe(cr_yuv *f, const AVFrame *frame) {
  *f = (cr_yuv){.width = frame->width, .height = frame->height};
  f->full_range = frame->color_range == AVCOL_RANGE_JPEG;
  switch (frame->format) {
  case AV_PIX_FMT_YUVJ420P:
  case AV_PIX_FMT_YUVJ422P:
  case AV_PIX_FMT_YUVJ444P:
    f->full_range = 1;
    break;
  case AV_PIX_FMT_YUV420P:
  case AV_PIX_FMT_YUV422P:
  case AV_PIX_FMT_YUV444P:
    break;
  default:
    return false;
  }
  const AVPixFmtDescriptor *format = av_pix_fmt_desc_get(frame->format);
  f->shift_x = format->log2_chroma_w;
  f->shift_y = format->log2_chroma_h;
  media__matrix(f->matrix, (int)frame->colorspace);
  return frame->width >= 16 &&
         frame->height >= 16; /* for smaller ones libswscale uses fewer taps */
}

int media__planes(media_converter *c, const AVFrame *frame, const AVStream *stream,
                  cr_storage **out, cr_yuv *format) {
  char turned[80];
  upright(media__display_matrix(frame, stream), turned, sizeof turned);
  if (turned[0] || !describe(format, frame)) return 0;
  if (c->out_width && (c->out_width != frame->width || c->out_height != frame->height)) return 0;
  int64_t w = (frame->width + format->shift_x) >> format->shift_x;
  int64_t h = (frame->height + format->shift_y) >> format->shift_y;
  int64_t luma = (int64_t)frame->width * frame->height;
  *out = cr__storage_new(luma + 2 * w * h, CR_CPU);
  if (!*out) return CR_ENOMEM;
  uint8_t *to = (*out)->data;
  for (int p = 0; p < 3; p++) {
    size_t row = (size_t)(p ? w : frame->width);
    int64_t rows = p ? h : frame->height;
    for (int64_t y = 0; y < rows; y++, to += row)
      memcpy(to, frame->data[p] + y * frame->linesize[p], row);
  }
  c->out_width = frame->width;
  c->out_height = frame->height;
  return 1;
}

int media__convert(media_converter *c, const AVFrame *frame, const AVStream *stream,
                   cr_storage **out) {
  const int32_t *matrix = media__display_matrix(frame, stream);
  bool same = c->graph && c->width == frame->width && c->height == frame->height &&
              c->format == frame->format && c->has_matrix == (matrix != NULL) &&
              (!matrix || memcmp(matrix, c->matrix, sizeof c->matrix) == 0);
  int rc = same ? 0 : build(c, frame, stream, matrix);
  /* The graph takes a reference of its own; the decoder's frame is not consumed. */
  if (rc >= 0)
    rc = av_buffersrc_add_frame_flags(c->source, (AVFrame *)frame, AV_BUFFERSRC_FLAG_KEEP_REF);
  if (rc >= 0) rc = av_buffersink_get_frame(c->sink, c->result);
  if (rc < 0) {
    media__converter_close(c);
    return media__fail(rc, "a frame of %dx%d cannot be converted to RGB", frame->width,
                       frame->height);
  }
  if (!c->out_width) {
    c->out_width = c->result->width;
    c->out_height = c->result->height;
  }
  const AVFrame *r = c->result;
  int bytes = av_image_get_buffer_size(r->format, r->width, r->height, 1);
  *out = bytes > 0 ? cr__storage_new(bytes, CR_CPU) : NULL;
  if (*out)
    av_image_copy_to_buffer((*out)->data, bytes, (const uint8_t *const *)r->data, r->linesize,
                            r->format, r->width, r->height, 1);
  av_frame_unref(c->result);
  return *out ? CR_OK : CR_ENOMEM;
}
