/* Detects damage that a decoder conceals without an error or a mark on the frame.
 *
 * Some decoders report it only in a line of their log. Such a line is attributed to the packet that
 * is being decoded, whose number every context of the decoder's threads carries. Others do not
 * notice it, since their streams have no checksum. A Matroska cluster may have one (FFmpeg writes
 * it, and so do programs that use FFmpeg), but FFmpeg does not compare it; this file does. Damage
 * to a stream without any checksum (VP8 in WebM, H.264 in MP4) is noticed only by chance.
 *
 * Invariant: log lines arrive on any thread; everything else is called on the reader's thread. */
#include <fcntl.h>
#include <libavutil/avstring.h>
#include <libavutil/crc.h>
#include <libavutil/intreadwrite.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "media/media.h"

/* A decoder has fewer frames in work: those of its threads, and those that wait to be output. */
enum { IN_WORK = 256 };

struct media_damage {
  /* Packet numbers, each at its remainder by IN_WORK: packets of which the decoder reported damage,
   * and packets in a cluster with a wrong checksum. */
  CR_ATOMIC(int64_t) reported[IN_WORK];
  int64_t bad_checksum[IN_WORK];
  bool photo;       /* the file is a single image */
  int file;         /* descriptor of a Matroska file, else -1 */
  int64_t from, to; /* the Matroska element that was read last */
  bool wrong;       /* its checksum is wrong */
};

media_damage *media__damage_new(const char *path, const AVFormatContext *format) {
  media_damage *d = calloc(1, sizeof *d);
  if (!d) return NULL;
  const char *name = format->iformat->name;
  d->photo = av_match_name("image2", name) || strstr(name, "_pipe");
  bool matroska = av_match_name("matroska", name);
  d->file = matroska ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  return d;
}

void media__damage_free(media_damage *d) {
  if (!d) return;
  if (d->file >= 0) close(d->file);
  free(d);
}

/* ---- log lines of decoders ---- */

/* The beginnings of log formats that report damage. H.264 and MPEG-4 also mark frames, but with
 * several threads the mark comes too late for some of them. */
static bool tells_damage(const char *format) {
  static const char *const beginnings[] = {
      "concealing",         /* H.264, MPEG-1 to 4, H.263 and their relatives */
      "slice CRC mismatch", /* FFV1 */
      "mismatching check",  /* HEVC, if the encoder added a hash */
      "error dc",           /* JPEG, as the next two; its other lines are about harmless things */
      "error count",        "error y", "LZW decode failed", /* GIF */
      "Coefficient index",                                  /* Theora */
      "CRC error",                                          /* FLAC, WavPack */
      "frame CRC mismatch"                                  /* AC-3 */
  };
  for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
    if (av_strstart(format, beginnings[i], NULL)) return true;
  return false;
}

void media__damage_line(void *context, const char *format) {
  if (!context || *(const AVClass **)context != avcodec_get_class()) return;
  const AVCodecContext *codec = context;
  media_damage *d = codec->opaque;
  int64_t n = codec->reordered_opaque;
  if (!d || n < 1) return;
  /* JPEG: the frames of cameras' Motion JPEG may end a little early, but a photo that does is
   * truncated. */
  if (tells_damage(format) || (d->photo && av_strstart(format, "overread", NULL)))
    d->reported[n % IN_WORK] = n;
}

/* ---- Matroska's checksums ---- */

/* Reads an EBML number: the leading zeros of the first byte tell how many bytes follow it. Returns
 * how many bytes it has; 0: it is invalid. All ones stand for an unknown size, which becomes -1. */
static int number(const uint8_t *bytes, int there, int64_t *out) {
  int length = there > 0 && bytes[0] ? 8 - av_log2(bytes[0]) : 0;
  if (length > there) return 0;
  uint64_t value = length ? bytes[0] & (0xFFu >> length) : 0;
  for (int i = 1; i < length; i++) value = value << 8 | bytes[i];
  bool ones = length && value == (UINT64_C(1) << (7 * length)) - 1;
  *out = ones ? -1 : (int64_t)value;
  return length;
}

static int at(const media_damage *d, int64_t offset, uint8_t *bytes, int64_t count) {
  return (int)pread(d->file, bytes, (size_t)count, offset);
}

/* Whether the cluster from `start` to d->to begins with a checksum, and that is wrong for the
 * rest. */
static bool is_wrong(const media_damage *d, int64_t start) {
  enum { CHECKSUM = 0xBF, BYTES = 0x84, HEAD = 6 };
  const AVCRC *table = av_crc_get_table(AV_CRC_32_IEEE_LE);
  uint8_t buffer[16384];
  uint32_t sum = UINT32_MAX;
  if (at(d, start, buffer, HEAD) < HEAD || buffer[0] != CHECKSUM || buffer[1] != BYTES)
    return false;
  uint32_t expected = AV_RL32(buffer + 2);
  for (int64_t p = start + HEAD; p < d->to;) {
    int got = at(d, p, buffer, FFMIN((int64_t)sizeof buffer, d->to - p));
    if (got <= 0) return false; /* truncated, which is reported elsewhere */
    sum = av_crc(table, sum, buffer, (size_t)got);
    p += got;
  }
  return (sum ^ UINT32_MAX) != expected;
}

/* Moves on to the element at d->to. Returns false if its end is unknown. */
static bool next_element(media_damage *d) {
  enum { SEGMENT = 0x08538067, CLUSTER = 0x0F43B675 }; /* without the length marker bit */
  uint8_t head[12];
  int64_t id, size;
  int there = at(d, d->to, head, sizeof head), n = number(head, there, &id);
  int m = n ? number(head + n, there - n, &size) : 0;
  if (!m || (size < 0 && id != SEGMENT)) return false;
  int64_t start = d->to + n + m;
  d->from = d->to;
  d->to = id == SEGMENT ? start : start + size;
  d->wrong = id == CLUSTER && is_wrong(d, start);
  return true;
}

void media__damage_packet(media_damage *d, int64_t n, int64_t offset) {
  if (d->file < 0 || offset < 0) return;
  if (offset < d->from) d->from = d->to = 0;
  while (offset >= d->to)
    if (!next_element(d)) {
      close(d->file);
      d->file = -1;
      return;
    }
  if (d->wrong) d->bad_checksum[n % IN_WORK] = n;
}

/* ---- the verdict on a frame ---- */

enum media_fault media__damage_of(const media_damage *d, const AVFrame *frame) {
  int64_t n = frame->reordered_opaque;
  if (n < 1) return MEDIA_INTACT;
  if (d->bad_checksum[n % IN_WORK] == n) return MEDIA_BAD_CHECKSUM;
  return d->reported[n % IN_WORK] == n ? MEDIA_DAMAGED : MEDIA_INTACT;
}
