/* Video frames at a constant rate, forward and from any frame on. In this file a picture is a frame
 * of the output, at the constant rate, and a frame is one of the file.
 *
 * While reading, the reader notes the key frames: their timestamp, a checksum, and the state of the
 * frame choice before them. To seek back, it seeks to such a frame, verifies by timestamp and
 * checksum that it is the same one, restores the state and goes on. So the pictures and their
 * numbers are those of a run from the start. If a file cannot be seeked, it is decoded from its
 * beginning again: slower, with the same result.
 *
 * Invariants: a reader runs at most one job at a time, and only that job uses its decoder. Memory
 * holds only one job's pictures, the decoder's frames and the notes (at most one key frame per
 * NOTE_SPACING pictures). */
#include <libavutil/adler32.h>
#include <libavutil/imgutils.h>
#include <libavutil/pixdesc.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"

enum { MOST_PICTURES = 256, NOTE_SPACING = 12, SEEK_TRIES = 3 };

typedef struct key_note {
  int64_t timestamp; /* the file's own, in the stream's time base */
  int64_t first;     /* first picture that needs no frame before this one */
  int64_t offset;    /* of the clock, as media_source.offset */
  int64_t duration;  /* as libav gave it then: some demuxers learn it while reading */
  media_rate rate;   /* state before this frame */
  uint32_t checksum;
} key_note;

typedef struct picture {
  cr_storage *storage;
  double seconds;
  bool planes; /* the layout is `yuv`; else RGB */
  cr_yuv yuv;
} picture;

struct cr_video {
  media_source source;
  media_converter converter;
  media_rate rate;
  AVRational frame_rate; /* the file's nominal rate */
  bool duration_capped;

  AVFrame *last, *current; /* current: the frame that is being output */
  int64_t before, count;   /* pictures still to output: of last, then of current */
  int64_t position;        /* index of the next picture */
  bool finished;

  key_note *notes;
  int64_t note_count, note_room;

  bool keep_planes;
  picture pictures[MOST_PICTURES];
  int32_t picture_count;

  int64_t argument; /* of the job: the number of pictures to read, or the index to seek to */
  media_job_slot slot;
};

/* ---- notes on key frames ---- */

static uint32_t checksum(const AVFrame *frame) {
  const AVPixFmtDescriptor *format = av_pix_fmt_desc_get(frame->format);
  uint32_t sum = 1;
  for (int p = 0; p < AV_NUM_DATA_POINTERS && frame->data[p]; p++) {
    bool chroma = format && (p == 1 || p == 2);
    int rows = chroma ? AV_CEIL_RSHIFT(frame->height, format->log2_chroma_h) : frame->height;
    int bytes = av_image_get_linesize(frame->format, frame->width, p);
    if (bytes <= 0) continue;
    for (int y = 0; y < rows; y++)
      sum = av_adler32_update(sum, frame->data[p] + (ptrdiff_t)y * frame->linesize[p],
                              (unsigned)bytes);
  }
  return sum;
}

static int64_t file_time(const cr_video *v, int64_t pts) {
  return pts - av_rescale_q_rnd(v->source.offset, AV_TIME_BASE_Q, v->source.stream->time_base,
                                AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
}

/* Notes the key frame v->current, whose choice was made from `rate` and gave `before`. */
static int note(cr_video *v, const media_rate *rate, int64_t before) {
  const AVFrame *f = v->current;
  if (!f->key_frame || f->pts == AV_NOPTS_VALUE || (f->flags & AV_FRAME_FLAG_CORRUPT)) return CR_OK;
  int64_t first = rate->written + before;
  if (v->note_count && first < v->notes[v->note_count - 1].first + NOTE_SPACING) return CR_OK;
  if (v->note_count == v->note_room) {
    int64_t room = v->note_room ? 2 * v->note_room : 64;
    key_note *grown = realloc(v->notes, (size_t)room * sizeof *grown);
    if (!grown) return cr__fail(CR_ENOMEM, "%s: out of memory", v->source.path);
    v->notes = grown;
    v->note_room = room;
  }
  v->notes[v->note_count++] = (key_note){file_time(v, f->pts), first, v->source.offset,
                                         f->pkt_duration,      *rate, checksum(f)};
  return CR_OK;
}

/* ---- the sequence of pictures ---- */

/* Chooses how often v->current, which was just decoded, is output. */
static int choose(cr_video *v) {
  media_rate earlier = v->rate;
  const AVFrame *f = v->current;
  media__rate_step(&v->rate, f->pts, f->pkt_duration, v->source.stream->time_base, v->frame_rate,
                   v->duration_capped, &v->before, &v->count);
  if (!v->last->buf[0]) { /* nothing precedes the first frame, so it fills its own gap */
    v->count += v->before;
    v->before = 0;
  }
  return note(v, &earlier, v->before);
}

/* Makes sure that a picture is available; 0 at the end. */
static int advance(cr_video *v) {
  while (v->before + v->count == 0) {
    if (v->finished) return 0;
    if (v->current->buf[0]) {
      av_frame_unref(v->last);
      av_frame_move_ref(v->last, v->current);
    }
    int rc = media__source_next(&v->source);
    if (rc < 0) return rc;
    if (rc == 0) {
      v->finished = true;
      if (v->rate.written == 0 && !v->last->buf[0])
        return cr__fail(CR_EFORMAT, "%s: no frame of its video stream could be decoded",
                        v->source.path);
      v->before = media__rate_finish(&v->rate);
      continue;
    }
    av_frame_move_ref(v->current, v->source.frame);
    CR_TRY(choose(v));
  }
  return 1;
}

static void pass(cr_video *v) {
  if (v->before > 0)
    v->before--;
  else
    v->count--;
  v->position++;
}

static void forget_pictures(cr_video *v) {
  for (int32_t i = 0; i < v->picture_count; i++)
    if (v->pictures[i].storage) cr__release(v->pictures[i].storage);
  v->picture_count = 0;
}

static int read_pictures(cr_video *v) {
  while (v->picture_count < v->argument) {
    int rc = advance(v);
    if (rc < 0) return rc;
    if (rc == 0) break;
    const AVFrame *f = v->before > 0 ? v->last : v->current;
    picture *p = &v->pictures[v->picture_count];
    p->storage = NULL;
    CR_TRY(media__source_check(&v->source, f));
    rc = 0;
    if (v->converter.out_format) {
      CR_TRY(media__deep(&v->converter, f, v->source.stream, &p->storage, &p->yuv));
      rc = 1;
    } else if (v->keep_planes) {
      rc = media__planes(&v->converter, f, v->source.stream, &p->storage, &p->yuv);
    }
    if (rc < 0) return rc;
    p->planes = rc;
    if (!rc) CR_TRY(media__convert(&v->converter, f, v->source.stream, &p->storage));
    p->seconds = f->pts == AV_NOPTS_VALUE
                     ? (double)v->position / (v->rate.fps > 0 ? v->rate.fps : 25)
                     : (double)f->pts * av_q2d(v->source.stream->time_base);
    v->picture_count++;
    pass(v);
  }
  return v->picture_count;
}

/* ---- seeking ---- */

static void forget_position(cr_video *v) {
  av_frame_unref(v->last);
  av_frame_unref(v->current);
  v->before = v->count = 0;
  v->finished = false;
}

static int from_the_start(cr_video *v) {
  CR_TRY(media__source_restart(&v->source));
  forget_position(v);
  media_rate r = {
      .fps = v->rate.fps, .rate = v->rate.rate, .skip_first_gap = v->rate.skip_first_gap};
  v->rate = r;
  v->position = 0;
  return CR_OK;
}

/* Goes on from a noted key frame. Returns 1; 0: seeking did not reach that frame. */
static int from_note(cr_video *v, const key_note *n) {
  AVRational tb = v->source.stream->time_base;
  for (int attempt = 0; attempt < SEEK_TRIES; attempt++) {
    int64_t earlier = attempt == 0 ? 0 : av_rescale_q(attempt == 1 ? 1 : 6, (AVRational){1, 1}, tb);
    if (media__source_seek(&v->source, n->timestamp - earlier) < 0) return 0;
    v->source.offset = n->offset;
    forget_position(v);
    for (;;) {
      int rc = media__source_next(&v->source);
      if (rc < 0) return rc == CR_EFORMAT ? 0 : rc;
      if (rc == 0) break;
      const AVFrame *f = v->source.frame;
      int64_t t = f->pts == AV_NOPTS_VALUE ? INT64_MIN : file_time(v, f->pts);
      if (v->source.offset != n->offset || t > n->timestamp) break;
      if (t < n->timestamp) continue;
      if (f->pkt_duration != n->duration || checksum(f) != n->checksum) break;
      av_frame_move_ref(v->current, v->source.frame);
      v->rate = n->rate;
      int64_t written = v->rate.written;
      media__rate_step(&v->rate, v->current->pts, v->current->pkt_duration, tb, v->frame_rate,
                       v->duration_capped, &v->before, &v->count);
      v->position = written + v->before;
      if (v->position != n->first) { /* the very first frame also fills the gap before it */
        v->count += v->before;
        v->position = written;
      }
      v->before = 0;
      return 1;
    }
  }
  return 0;
}

static int move(cr_video *v) {
  int64_t target = v->argument;
  const key_note *best = NULL;
  int64_t low = 0, high = v->note_count;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (v->notes[middle].first <= target)
      low = middle + 1;
    else
      high = middle;
  }
  if (low > 0) best = &v->notes[low - 1];
  bool behind = target < v->position;
  if (behind || (best && best->first > v->position)) {
    int rc = best && best->first > 0 ? from_note(v, best) : 0;
    if (rc < 0) return rc;
    if (rc == 0) CR_TRY(from_the_start(v));
  }
  while (v->position < target) {
    int rc = advance(v);
    if (rc < 0) return rc;
    if (rc == 0)
      return cr__fail(CR_EINVAL, "%s: there is no frame %lld: the video has %lld", v->source.path,
                      (long long)target, (long long)v->position);
    pass(v);
  }
  return CR_OK;
}

/* ---- jobs ---- */

static int finish(cr_video *v, int (*work)(cr_video *)) {
  media__quiet();
  int rc = work(v);
  media__job_slot_release(&v->slot);
  return rc;
}

static int read_job(void *v) { return finish(v, read_pictures); }
static int move_job(void *v) { return finish(v, move); }

static int64_t start(cr_video *v, const char *what, int64_t argument, int (*job)(void *)) {
  if (!media__job_slot_take(&v->slot))
    return cr__fail(CR_EINVAL, "%s: %s: the last job is still running", what, v->source.path);
  forget_pictures(v);
  v->argument = argument;
  return media__job_slot_run(&v->slot, job, v);
}

/* ---- public functions ---- */

CR_EXPORT int cr_video_open(cr_video **out, const char *path, double fps) {
  *out = NULL;
  if (!(fps >= 0 && fps <= 1000))
    return cr__fail(CR_EINVAL, "video: the rate must be 0 to 1000 frames a second, not %g", fps);
  cr_video *v = calloc(1, sizeof *v);
  if (!v) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  int rc = media__source_open(&v->source, path, AVMEDIA_TYPE_VIDEO, &v->slot.stop);
  if (rc < 0) {
    free(v);
    return rc;
  }
  media__job_slot_init(&v->slot);
  v->last = av_frame_alloc();
  v->current = av_frame_alloc();
  if (!v->last || !v->current) {
    cr_video_close(v);
    return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  }
  v->rate.fps = fps;
  v->rate.rate = fps > 0 ? av_d2q(fps, 1001000) : (AVRational){0, 1};
  v->rate.skip_first_gap = v->source.format->nb_streams == 1;
  v->frame_rate = av_guess_frame_rate(v->source.format, v->source.stream, NULL);
  v->duration_capped = v->source.stream->start_time != AV_NOPTS_VALUE;
  *out = v;
  return CR_OK;
}

CR_EXPORT void cr_video_close(cr_video *v) {
  if (!v) return;
  media__job_slot_close(&v->slot);
  forget_pictures(v);
  media__converter_close(&v->converter);
  av_frame_free(&v->last);
  av_frame_free(&v->current);
  media__source_close(&v->source);
  free(v->notes);
  free(v);
}

CR_EXPORT int64_t cr_video_read_start(cr_video *v, int32_t n) {
  if (n < 1 || n > MOST_PICTURES)
    return cr__fail(CR_EINVAL, "video read: 1 to %d frames at a time, not %d", MOST_PICTURES, n);
  return start(v, "video read", n, read_job);
}

CR_EXPORT int64_t cr_video_seek_start(cr_video *v, int64_t index) {
  if (index < 0)
    return cr__fail(CR_EINVAL, "video seek: frames count from 0, not %lld", (long long)index);
  return start(v, "video seek", index, move_job);
}

CR_EXPORT int cr_video_planes(cr_video *v, int32_t on) {
  if (media__job_slot_held(&v->slot)) return cr__fail(CR_EINVAL, "video planes: a read is running");
  v->keep_planes = on != 0;
  return CR_OK;
}

CR_EXPORT int cr_video_deep(cr_video *v) {
  if (v->position > 0 || media__job_slot_held(&v->slot))
    return cr__fail(CR_EINVAL, "video: reading has begun, so the bit depth cannot be changed");
  v->converter.out_format = media__deep_format(v->source.stream->codecpar->format);
  return v->converter.out_format ? media__deep_planes(v->converter.out_format).bits : 8;
}

/* Returns the picture if it can be taken, else NULL. */
static picture *takeable(cr_video *v, int32_t i, const cr_tensor *out) {
  if (media__job_slot_held(&v->slot))
    cr__fail(CR_EINVAL, "video take: the read has not finished");
  else if (i < 0 || i >= v->picture_count || !v->pictures[i].storage)
    cr__fail(CR_EINVAL, "video take: the last read has no frame %d to take", i);
  else if (out->storage)
    cr__fail(CR_EINVAL, "video take: out is not empty");
  else
    return &v->pictures[i];
  return NULL;
}

CR_EXPORT int cr_video_take_planes(cr_video *v, int32_t i, cr_tensor *out, cr_yuv *format,
                                   double *pts_seconds) {
  picture *p = takeable(v, i, out);
  if (!p) return CR_EINVAL;
  if (p->planes) {
    int64_t values = media__values(&p->yuv), one = 1;
    int32_t size = (int32_t)values;
    if (values > INT32_MAX)
      return cr__fail(CR_EUNSUPPORTED, "video take: a frame of %lld samples is too large",
                      (long long)values);
    cr__tensor_set(out, p->storage, p->yuv.bits ? CR_I16 : CR_U8, 1, &size, &one, 0);
    *format = p->yuv;
  } else {
    int32_t shape[3] = {v->converter.out_height, v->converter.out_width, 3};
    int64_t stride[3] = {(int64_t)shape[1] * 3, 3, 1};
    cr__tensor_set(out, p->storage, CR_U8, 3, shape, stride, 0);
  }
  cr__release(p->storage);
  p->storage = NULL;
  if (pts_seconds) *pts_seconds = p->seconds;
  return p->planes;
}

CR_EXPORT int cr_video_take(cr_video *v, int32_t i, cr_tensor *out, double *pts_seconds) {
  picture *p = takeable(v, i, out);
  if (!p) return CR_EINVAL;
  if (p->planes)
    return cr__fail(CR_EINVAL, "video take: frame %d has planes: use cr_video_take_planes", i);
  cr_yuv unused;
  return cr_video_take_planes(v, i, out, &unused, pts_seconds);
}
