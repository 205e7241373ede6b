/* What the files of core/media/ share: errors with libav's reason, one decoded stream of a file
 * (media_source), what decoders do not say of damage (media_damage), the choice of frames for a
 * constant rate (media_rate), pictures as RGB (media_converter).
 *
 * Invariants: libav prints nothing (its last error line is kept per thread for our sentence); every
 * object here belongs to one thread at a time; whole files are never held. */
#ifndef CR_MEDIA_H
#define CR_MEDIA_H

#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavformat/avformat.h>
#include <libavutil/channel_layout.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/internal.h"

/* ---- errors (log.c) ---- */

/* "WHAT: libav's line (libav's reason)"; `averror` is a negative AVERROR, mapped to a CR_E* code.
 * AVERROR_EXIT (our interrupt callback said stop) becomes CR_EINTERRUPT; where memory or threads
 * are used up, "WHAT: out of memory", whatever libav calls it. */
int media__fail(int averror, const char *format, ...) CR_PRINTF(2, 3);
/* Silences libav and forgets the line kept for this thread. Every entry point calls it first. */
void media__quiet(void);
/* Keeps a sentence for cr_media_warning: something that is no error but that a user should know. */
void media__warn(const char *format, ...) CR_PRINTF(1, 2);
/* Threads for a codec: enough to keep up, few enough that a large machine's memory is not spent on
 * frames in flight. */
int media__codec_threads(void);
/* The same for the encoder of pictures: when a film ends it is all that runs. */
int media__encoder_threads(void);

/* ---- one job at a time (turn.c) ---- */

/* A reader's jobs run on other threads, one after another: a job touches the decoder only while the
 * turn is taken. `stop` ends what a job waits for. */
typedef struct media_turn {
  pthread_mutex_t lock;
  pthread_cond_t idle;
  bool busy;
  atomic_int stop;
} media_turn;

void media__turn_init(media_turn *t);
/* False: a job is running. */
bool media__turn_take(media_turn *t);
bool media__turn_taken(media_turn *t);
/* The last that a job does: the reader may be gone from here on. */
void media__turn_end(media_turn *t);
/* Starts a job that ends the turn taken; the job's number, or CR_E* with the turn ended. */
int64_t media__turn_run(media_turn *t, int (*job)(void *), void *reader);
/* Tells a running job to stop and waits for it. */
void media__turn_close(media_turn *t);

/* ---- whether a file is whole (file.c) ---- */

/* Before it is opened; fills *info. */
int media__file_check(const char *path, struct stat *info);
/* Once its headers are read. */
int media__file_check_index(const char *path, const AVFormatContext *format,
                            const struct stat *info);
/* At its end: fails if it is shorter than it was. */
int media__file_check_size(const char *path, const struct stat *before);

/* Fails for pictures to be encoded that are larger than libavcodec takes. */
int media__check_size(const char *path, int64_t width, int64_t height);

/* ---- damage that decoders go on after (damage.c) ---- */

/* Nothing; the frame is damaged; the part of the file that holds it does not fit its checksum. */
enum media_fault { MEDIA_SOUND, MEDIA_TOLD, MEDIA_UNFIT };

/* A decoder's context bears it as `opaque`, and the number of the packet in work (from 1 on) as
 * `reordered_opaque`. NULL: out of memory. */
typedef struct media_damage media_damage;
media_damage *media__damage_new(const char *path, const AVFormatContext *format);
void media__damage_free(media_damage *d);
/* Takes note of a line of libav's log by its format, on any thread. */
void media__damage_line(void *context, const char *format);
/* Of packet n, which lies at that byte of the file. */
void media__damage_packet(media_damage *d, int64_t n, int64_t offset);
enum media_fault media__damage_of(const media_damage *d, const AVFrame *frame);

/* ---- one stream of a file, decoded (source.c) ---- */

typedef struct media_source {
  char *path;
  struct stat file; /* as it was when it was opened */
  bool live;        /* it comes from elsewhere: there is no such file */
  AVFormatContext *format;
  AVStream *stream;
  AVCodecContext *decoder;
  AVPacket *packet;
  AVFrame *frame; /* the last one decoded */
  atomic_int *stop;
  int64_t failures;              /* FFmpeg's failed allocations before it was opened */
  bool draining, drained, ended; /* no more packets; the decoder knows; no more frames */
  bool begun;    /* a key frame has been decoded; before it, headless: something could not be */
  bool headless; /* (sound begins with any frame) */
  bool waiting;  /* s->packet is read, but not yet sent */
  bool lacks_bytes, cut_off; /* the last packet sent does, says the container; it may */
  bool told_gap, told_end;   /* warnings said that bytes are missing, or the end */
  int since_gap;             /* packets since one that lacks bytes, at gap_pts; 0: none */
  int64_t gap_pts;
  int64_t tail, tail_pts; /* of the last packet: place in the file, pts */
  media_damage *damage;
  int64_t sent;     /* packets, to the decoder */
  int64_t broken;   /* pts of what was lost: frames from there to a key frame are damaged */
  bool garbled;     /* so are those from a damaged one to the next key frame */
  int64_t last_pts; /* of a frame; both in the stream's time base, INT64_MIN: none */
  /* Timestamps leave here with the file's start at 0. Times below are in microseconds. */
  int64_t offset;             /* added to what the file says */
  int64_t next_dts, dts, pts; /* where the stream should go on: tells jumps of transport streams */
  int64_t last_dts;
} media_source;

/* What cr_media_probe and the readers need of a file before decoding: opens it, checks that it is
 * whole, reads the streams' headers. `stop` (or NULL) ends waiting reads when it becomes nonzero.
 */
int media__format_open(AVFormatContext **out, const char *path, atomic_int *stop);
/* The same of what is read as it comes, a URL, a pipe or a device, by an input format of FFmpeg's
 * ("": as FFmpeg finds out); nothing is checked. (live.c) */
int media__format_open_live(AVFormatContext **out, const char *url, const char *format,
                            atomic_int *stop);
/* The stream ffmpeg would take: largest picture, most channels; no cover pictures. NULL if none. */
AVStream *media__best_stream(AVFormatContext *format, enum AVMediaType type);

int media__source_open(media_source *s, const char *path, enum AVMediaType type, atomic_int *stop);
/* `format` as of media__format_open_live. Such a source cannot be begun again. */
int media__source_open_live(media_source *s, const char *url, const char *format,
                            enum AVMediaType type, atomic_int *stop);
void media__source_close(media_source *s);
/* 1: s->frame is the next frame, with pts in the stream's time base, s->offset applied (or
 * AV_NOPTS_VALUE); 0: end; negative: error. A damaged frame, or one after a lost one, bears
 * AV_FRAME_FLAG_CORRUPT. */
int media__source_next(media_source *s);
/* CR_EFORMAT with the file and the time, if that frame of `s` is damaged. */
int media__source_check(const media_source *s, const AVFrame *frame);
/* Goes to the key frame at or before `timestamp` (the file's own, stream time base) by `flags` of
 * av_seek_frame. Negative AVERROR without a message if the format cannot. */
int media__source_seek(media_source *s, int64_t timestamp);
/* Starts again from the file's beginning. */
int media__source_restart(media_source *s);

/* ---- whole numbers of a constant rate (rate.c) ---- */

/* What has to be known between two frames to go on choosing: small, so that an index of key frames
 * can hold copies. */
typedef struct media_rate {
  double fps;          /* 0: every frame once */
  AVRational rate;     /* the same as a fraction */
  bool skip_first_gap; /* a file of one stream starts at its first frame */
  bool last_taken;     /* the last frame came out at least once, or will as a repetition */
  int64_t next;        /* number of the next picture in libav's count (starts at the time 0) */
  int64_t written;     /* pictures given out so far */
  int64_t repeats[3];  /* of the previous frame, at the last three frames */
} media_rate;

/* Of the frame at `pts`: how many times the previous frame comes out again first (*before) and then
 * this one (*count). */
void media__rate_step(media_rate *r, int64_t pts, int64_t duration, AVRational time_base,
                      AVRational frame_rate, bool duration_capped, int64_t *before, int64_t *count);
/* At the end: how many times the last frame comes out again. */
int64_t media__rate_finish(media_rate *r);

/* ---- pictures as RGB (convert.c) ---- */

typedef struct media_converter {
  AVFilterGraph *graph;
  AVFilterContext *source, *sink;
  AVFrame *result;
  int width, height, format; /* what the graph was made for */
  int32_t matrix[9];         /* the display matrix it was made for */
  bool has_matrix;
  int out_width, out_height; /* the first picture's: later ones are scaled to it */
  enum AVPixelFormat own;    /* how pictures come out; 0: RGB of 8 bits */
} media_converter;

/* frame -> a new storage of u8 [height width 3], or of the pixels `own`, dense, turned upright by
 * the frame's or the stream's display matrix. */
int media__convert(media_converter *c, const AVFrame *frame, const AVStream *stream,
                   cr_storage **out);
/* The same frame as it is, where cr_yuv can tell how it lies: 1, a new storage of its planes and
 * *format; 0 if it has to be converted. */
int media__planes(media_converter *c, const AVFrame *frame, const AVStream *stream,
                  cr_storage **out, cr_yuv *format);
/* The frame as planes of the pixels `own`, which media__deep_format gave, and how they lie. */
int media__deep(media_converter *c, const AVFrame *frame, const AVStream *stream, cr_storage **out,
                cr_yuv *format);
/* Whether the frame is upright, and of the size and the pixels in which pictures come out. */
bool media__is_own(const media_converter *c, const AVFrame *frame, const AVStream *stream);
/* libswscale's matrix of a frame's colours: cr_yuv's. */
void media__matrix(int32_t *out, int space);
void media__converter_close(media_converter *c);
/* Degrees clockwise, 0..359, that a display matrix (or NULL) asks for. */
int media__rotation(const int32_t *matrix);
const int32_t *media__stream_matrix(const AVStream *stream);
/* What a picture asks for: itself (H.264's SEI), as a photo (EXIF), else by its stream. */
const int32_t *media__display_matrix(const AVFrame *frame, const AVStream *stream);

/* ---- more than 8 bits a value (deep.c) ---- */

/* The plain planes of 16 bits a value that hold all of a pixel format of more than 8 bits, but for
 * alpha; 0: it has 8 bits or less. */
enum AVPixelFormat media__deep_format(int format);
/* How such planes lie, but for their size and matrix. */
cr_yuv media__deep_planes(enum AVPixelFormat format);
/* Numbers in all planes of a picture. */
int64_t media__values(const cr_yuv *format);

/* ---- sound (sound.c) ---- */

/* The best sound of a file, or pieces that are pushed, resampled and mixed as ffmpeg's command line
 * does, in order. */
typedef struct media_sound {
  media_source source; /* empty if it is pushed */
  bool pushed;
  struct SwrContext *resampler;
  struct AVAudioFifo *queue; /* resampled, not yet taken */
  uint8_t **buffer;          /* for one frame's worth of resampled samples */
  int buffer_room;
  int rate; /* of what comes out, as the next two */
  AVChannelLayout layout;
  enum AVSampleFormat format;
  int in_rate; /* what the resampler was made for */
  AVChannelLayout in_layout;
  int in_format;
  int64_t produced; /* samples queued since the start */
  double at;        /* seconds: where the next frame is due */
  double clock;     /* added to what the timestamps say, where a clock began anew */
  bool held;        /* the source's frame is still to be given out */
  int64_t silence;  /* samples before it, in its own rate; of it, those cut from its start: */
  int cut;
  bool ended, damaged; /* damaged: a warning said so */
} media_sound;

/* rate and channels: 0 for the file's own; `live`: NULL of a file, else the input format of
 * media__format_open_live. */
int media__sound_open(media_sound *s, const char *path, const char *live, int rate, int channels,
                      enum AVSampleFormat format, atomic_int *stop);
/* Without a source: sound comes by media__sound_push. */
int media__sound_open_pushed(media_sound *s, int rate, int channels, enum AVSampleFormat format);
/* n samples (of each channel), interleaved; rate and channels may change from piece to piece. With
 * n = 0 the resampler gives what it still holds. */
int media__sound_push(media_sound *s, const void *samples, int n, enum AVSampleFormat format,
                      int rate, int channels);
void media__sound_close(media_sound *s);
/* Another number of channels, in their usual order; before the first fill only. */
int media__sound_mix(media_sound *s, int channels);
/* Decodes until n samples are queued or the sound ends; returns how many of the n are there. Of
 * what is pushed nothing is waited for. */
int media__sound_fill(media_sound *s, int n);

#endif
