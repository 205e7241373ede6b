/* Chooses frames for a constant rate by the rule of `ffmpeg -r` (FFmpeg 5.1, "constant rate" and
 * its variant for files of a single stream), so that the output has the same frames as in
 * LatentSync's own pipeline. It is arithmetic on timestamps; nothing is decoded here.
 *
 * The rule, in output ticks (1 / fps): a frame starts at `start` ticks after output frame number
 * `next` is due, and ends at `end`. If it ends more than 1.1 ticks before `next`, it is dropped. If
 * it ends more than 1.1 ticks after it, it is output round(end) times; if it also starts more than
 * 1.1 ticks late, the first round(start - 0.6) of these still show the previous frame. Any other
 * frame is output once. At the end the last frame is repeated as often as the median of the last
 * three gaps. */
#include <libavutil/common.h>
#include <libavutil/mathematics.h>
#include <math.h>

#include "media/media.h"

/* More repetitions than this (30 hours) mean a broken timestamp. */
#define MOST_REPEATS ((int64_t)3600 * 30 * 30)

static void remember(media_rate *r, int64_t repeats) {
  r->repeats[2] = r->repeats[1];
  r->repeats[1] = r->repeats[0];
  r->repeats[0] = repeats;
}

void media__rate_step(media_rate *r, int64_t pts, int64_t duration, AVRational time_base,
                      AVRational frame_rate, bool duration_capped, int64_t *before,
                      int64_t *count) {
  *before = 0;
  *count = 1;
  if (r->fps <= 0) {
    r->next++;
    r->written++;
    return;
  }
  AVRational tick = av_inv_q(r->rate);
  double tick_seconds = av_q2d(tick);

  double length = 0;
  if (frame_rate.num > 0 && frame_rate.den > 0) length = 1 / (av_q2d(frame_rate) * tick_seconds);
  if (duration_capped && length > 1) length = 1;
  long whole = lrintf((float)(duration * av_q2d(time_base) / tick_seconds));
  if (whole > 0) length = (double)whole;

  double start = 0; /* in ticks after the next output frame is due */
  if (pts != AV_NOPTS_VALUE) {
    /* A fixed-point fraction of a tick, moved off the exact middle between two ticks, so that every
     * machine rounds the same way. */
    int bits = av_clip(29 - av_log2((unsigned)tick.den), 0, 16);
    AVRational fine = {tick.num, tick.den << bits};
    double at = (double)av_rescale_q(pts, time_base, fine) / (1 << bits);
    at += (at > 0 ? 1.0 : at < 0 ? -1.0 : 0.0) / (1 << 17);
    start = at - (double)r->next;
    double end = start + length;
    if (start < 0 && end > 0) {
      at = (double)r->next;
      length += start;
      start = 0;
    }
    if (r->skip_first_gap && r->written == 0 && start >= 0.5) {
      end = length;
      start = 0;
      r->next = llrint(at);
    }
    if (end < -1.1) {
      *count = 0;
    } else if (end > 1.1) {
      *count = llrintf((float)end);
      if (start > 1.1) *before = llrintf((float)(start - 0.6));
    }
  }
  if (*before > *count) *before = *count;
  remember(r, *before);
  if (*count > MOST_REPEATS) {
    *before = *count = 0;
    return;
  }
  r->next += *count;
  r->written += *count;
  *count -= *before;
}

int64_t media__rate_finish(media_rate *r) {
  if (r->fps <= 0) return 0;
  int64_t a = r->repeats[0], b = r->repeats[1], c = r->repeats[2];
  int64_t middle = FFMAX(FFMIN(a, b), FFMIN(FFMAX(a, b), c));
  remember(r, middle);
  r->next += middle;
  r->written += middle;
  return middle;
}
