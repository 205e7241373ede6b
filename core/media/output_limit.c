/* Explains why an encoder refuses a size: finds the largest side that it accepts by trying. */
#include "media/output.h"

enum { SMALL = 64 }; /* pixels: a side that every encoder accepts */

static bool opens(const AVCodecContext *like, const AVCodec *codec, int width, int height) {
  AVCodecContext *c = avcodec_alloc_context3(codec);
  if (!c) return false;
  c->width = width;
  c->height = height;
  c->pix_fmt = like->pix_fmt;
  c->time_base = like->time_base;
  c->framerate = like->framerate;
  c->color_range = like->color_range;
  c->thread_count = 1;
  bool fine = avcodec_open2(c, codec, NULL) >= 0;
  avcodec_free_context(&c);
  return fine;
}

/* Returns the largest even side up to `side` with which the encoder opens (chroma needs even
 * sides). */
static int largest(const AVCodecContext *like, const AVCodec *codec, int side, bool across) {
  if (side <= SMALL) return side;
  int low = SMALL / 2, high = side / 2 + 1;
  while (high - low > 1) {
    int middle = low + (high - low) / 2;
    if (opens(like, codec, across ? 2 * middle : SMALL, across ? SMALL : 2 * middle))
      low = middle;
    else
      high = middle;
  }
  return 2 * low;
}

int media__output_refused(const media_output *o, const AVCodec *codec, int averror) {
  const AVCodecContext *c = o->video;
  int rc = media__fail(averror, "%s: the encoder %s cannot be opened at %dx%d", o->path,
                       codec->name, c->width, c->height);
  if (rc == CR_ENOMEM || !opens(c, codec, SMALL, SMALL)) return rc; /* the size is not the reason */
  int width = largest(c, codec, c->width, true), height = largest(c, codec, c->height, false);
  bool wide = width < c->width - 1, tall = height < c->height - 1;
  if (!wide && !tall) return rc;
  return cr__fail(
      CR_EINVAL,
      "%s: the encoder %s takes at most %d pixels a side, but frames of %dx%d are larger", o->path,
      codec->name, wide ? width : height, c->width, c->height);
}
