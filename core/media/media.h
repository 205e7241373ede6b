/* What the files of core/media/ share: errors with libav's reason, a decoded stream of a file
 * (media_source), damage that decoders conceal (media_damage), the choice of frames at a constant
 * rate (media_rate), and the conversion to RGB (media_converter).
 *
 * Invariants: libav prints nothing; its last error line is kept per thread for messages. Every
 * object here belongs to one thread at a time. A whole file is never held in memory. */
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

/* Fails with "WHAT: libav's line (libav's reason)". `averror` is a negative AVERROR, which is
 * mapped to a CR_E* code. AVERROR_EXIT (the interrupt callback requested it) becomes CR_EINTERRUPT.
 * If memory or threads ran out, the message is "WHAT: out of memory", whatever libav calls it. */
int media__fail(int averror, const char *format, ...) CR_PRINTF(2, 3);
/* Silences libav and clears the line kept for this thread. Every entry point calls it first. */
void media__quiet(void);
/* Keeps a warning for cr_media_warning. */
void media__warn(const char *format, ...) CR_PRINTF(1, 2);
/* Returns the number of threads for a decoder: enough to keep up, but few enough that frames in
 * flight do not fill the memory of a machine with many cores. */
int media__codec_threads(void);
/* The same for the video encoder, which runs alone when a film ends. */
int media__encoder_threads(void);

/* ---- one job at a time (job_slot.c) ---- */

/* A reader's jobs run on other threads, one after another: a job uses the decoder only while it
 * holds the slot. `stop` ends what a job waits for. */
typedef struct media_job_slot {
  pthread_mutex_t lock;
  pthread_cond_t idle;
  bool busy;
  atomic_int stop;
} media_job_slot;

void media__job_slot_init(media_job_slot *t);
/* Returns false if a job is running. */
bool media__job_slot_take(media_job_slot *t);
bool media__job_slot_held(media_job_slot *t);
/* The last call of a job: the reader may be freed from here on. */
void media__job_slot_release(media_job_slot *t);
/* Starts a job that releases the slot at its end. Returns its number, or CR_E* with the slot
 * released. */
int64_t media__job_slot_run(media_job_slot *t, int (*job)(void *), void *reader);
/* Tells a running job to stop, and waits for it. */
void media__job_slot_close(media_job_slot *t);

/* ---- checks that a file is complete (file.c) ---- */

/* To be called before the file is opened; fills *info. */
int media__file_check(const char *path, struct stat *info);
/* To be called once the headers are read. */
int media__file_check_index(const char *path, const AVFormatContext *format,
                            const struct stat *info);
/* To be called at the file's end: fails if it became shorter. */
int media__file_check_size(const char *path, const struct stat *before);

/* Fails if frames are larger than libavcodec's encoders accept. */
int media__check_size(const char *path, int64_t width, int64_t height);

/* ---- damage that decoders conceal (damage.c) ---- */

/* INTACT: no damage is known. DAMAGED: the decoder reported damage of the frame. BAD_CHECKSUM: the
 * checksum of the part of the file that has the frame is wrong. */
enum media_fault { MEDIA_INTACT, MEDIA_DAMAGED, MEDIA_BAD_CHECKSUM };

/* A decoder's context has it as `opaque`, and the number of the packet that is being decoded (from
 * 1 on) as `reordered_opaque`. NULL: out of memory. */
typedef struct media_damage media_damage;
media_damage *media__damage_new(const char *path, const AVFormatContext *format);
void media__damage_free(media_damage *d);
/* Looks at a line of libav's log, by its format. Any thread. */
void media__damage_line(void *context, const char *format);
/* Looks at packet n, which lies at this byte of the file. */
void media__damage_packet(media_damage *d, int64_t n, int64_t offset);
enum media_fault media__damage_of(const media_damage *d, const AVFrame *frame);

/* ---- a decoded stream of a file (source.c) ---- */

typedef struct media_source {
  char *path;
  struct stat file; /* as it was when opened */
  bool live;        /* a live input, which is not a file */
  AVFormatContext *format;
  AVStream *stream;
  AVCodecContext *decoder;
  AVPacket *packet;
  AVFrame *frame; /* the last decoded one */
  atomic_int *stop;
  int64_t failures; /* number of FFmpeg's failed allocations before it was opened */
  bool draining;    /* the demuxer has no more packets, */
  bool drained;     /* the decoder has been told so, */
  bool ended;       /* and it has no more frames */
  bool begun;       /* a key frame has been decoded (any frame begins a sound) */
  bool headless;    /* something before it could not be decoded */
  bool waiting;     /* `packet` is read, but not sent yet */
  /* Of the last packet sent to the decoder. */
  bool lacks_bytes;      /* the container marks it as incomplete */
  bool may_be_truncated; /* the file may end within it */
  int64_t packet_position, packet_pts;
  bool warned_of_gap, warned_of_end;
  int since_gap; /* packets since an incomplete one, which was at gap_pts; 0: there was none */
  int64_t gap_pts;
  media_damage *damage;
  int64_t sent;     /* number of packets sent to the decoder */
  int64_t lost_pts; /* of a lost frame: frames from there to the next key frame are damaged */
  bool in_damage;   /* a frame was damaged, and so are those up to the next key frame */
  int64_t last_pts; /* of a frame; lost_pts and last_pts are INT64_MIN if there is none */
  /* Output timestamps have the file's start at 0. The times below are in microseconds. */
  int64_t offset; /* added to the file's timestamps */
  /* The expected next times, by which jumps in transport streams are found. */
  int64_t next_dts, dts, pts;
  int64_t last_dts;
} media_source;

/* Opens a file before decoding, for cr_media_probe and the readers: checks that it is complete, and
 * reads the streams' headers. `stop` (or NULL) ends waiting reads when it becomes nonzero. */
int media__format_open(AVFormatContext **out, const char *path, atomic_int *stop);
/* The same for a live input (a URL, a pipe or a device) with FFmpeg's input format ("": FFmpeg
 * detects it). Nothing is checked. (live.c) */
int media__format_open_live(AVFormatContext **out, const char *url, const char *format,
                            atomic_int *stop);
/* Returns the stream that ffmpeg would choose: the largest frame size, the most channels, no cover
 * art. NULL if there is none. */
AVStream *media__best_stream(AVFormatContext *format, enum AVMediaType type);

int media__source_open(media_source *s, const char *path, enum AVMediaType type, atomic_int *stop);
/* `format` is as in media__format_open_live. Such a source cannot be restarted. */
int media__source_open_live(media_source *s, const char *url, const char *format,
                            enum AVMediaType type, atomic_int *stop);
void media__source_close(media_source *s);
/* Decodes the next frame. Returns 1 with the frame in s->frame, whose pts is in the stream's time
 * base with s->offset applied (or AV_NOPTS_VALUE); 0 at the end; negative on error. A damaged
 * frame, or one after a lost frame, has AV_FRAME_FLAG_CORRUPT. */
int media__source_next(media_source *s);
/* Returns CR_EFORMAT with the file and the time if this frame of `s` is damaged. */
int media__source_check(const media_source *s, const AVFrame *frame);
/* Seeks to the key frame at or before `timestamp`, which is the file's own in the stream's time
 * base. Returns a negative AVERROR without a message if the format cannot seek. */
int media__source_seek(media_source *s, int64_t timestamp);
/* Starts again at the file's beginning. */
int media__source_restart(media_source *s);

/* ---- frames at a constant rate (rate.c) ---- */

/* The state of the choice between two frames. It is small, so an index of key frames can hold
 * copies. */
typedef struct media_rate {
  double fps;          /* 0: every frame once */
  AVRational rate;     /* the same as a fraction */
  bool skip_first_gap; /* a file of one stream starts at its first frame */
  bool last_taken;     /* the last frame was output at least once, or will be repeated */
  int64_t next;        /* index of the next output frame in libav's count, which starts at time 0 */
  int64_t written;     /* number of output frames so far */
  int64_t repeats[3];  /* repetitions of the previous frame at the last three frames */
} media_rate;

/* For the frame at `pts`: how many times the previous frame is output again (*before), and then
 * this one (*count). */
void media__rate_step(media_rate *r, int64_t pts, int64_t duration, AVRational time_base,
                      AVRational frame_rate, bool duration_capped, int64_t *before, int64_t *count);
/* At the end: returns how many times the last frame is output again. */
int64_t media__rate_finish(media_rate *r);

/* ---- frames as RGB (convert.c) ---- */

typedef struct media_converter {
  AVFilterGraph *graph;
  AVFilterContext *source, *sink;
  AVFrame *result;
  int width, height, format; /* of the input, for which the graph was made */
  int32_t matrix[9];         /* the display matrix for which the graph was made */
  bool has_matrix;
  int out_width, out_height;     /* size of the first frame; later ones are scaled to it */
  enum AVPixelFormat out_format; /* the output pixel format; 0: RGB of 8 bits */
} media_converter;

/* Converts a frame to a new storage of u8 [height width 3], or of out_format, dense, rotated
 * upright by the display matrix of the frame or its stream. */
int media__convert(media_converter *c, const AVFrame *frame, const AVStream *stream,
                   cr_storage **out);
/* Copies the planes of a frame whose layout cr_yuv can describe: returns 1, a new storage and
 * *format. Returns 0 if the frame must be converted. */
int media__planes(media_converter *c, const AVFrame *frame, const AVStream *stream,
                  cr_storage **out, cr_yuv *format);
/* Gives a frame as planes of out_format, which media__deep_format chose, and their layout. */
int media__deep(media_converter *c, const AVFrame *frame, const AVStream *stream, cr_storage **out,
                cr_yuv *format);
/* Whether the frame is upright and has the size and format of the output. */
bool media__is_output(const media_converter *c, const AVFrame *frame, const AVStream *stream);
/* libswscale's coefficients for a colour space, as in cr_yuv. */
void media__matrix(int32_t *out, int space);
void media__converter_close(media_converter *c);
/* Returns the clockwise rotation in degrees, 0..359, of a display matrix or NULL. */
int media__rotation(const int32_t *matrix);
const int32_t *media__stream_matrix(const AVStream *stream);
/* Returns the display matrix of a frame: its own (H.264's SEI), a photo's (EXIF), else its
 * stream's. */
const int32_t *media__display_matrix(const AVFrame *frame, const AVStream *stream);

/* ---- deep colour: more than 8 bits per sample (deep.c) ---- */

/* Returns the planar 16-bit pixel format that holds everything of a format with more than 8 bits
 * per sample, except alpha; 0: it has 8 bits or fewer. */
enum AVPixelFormat media__deep_format(int format);
/* Returns the layout of such planes, without size and matrix. */
cr_yuv media__deep_planes(enum AVPixelFormat format);
/* Returns the number of samples in all planes of a frame. */
int64_t media__values(const cr_yuv *format);

/* ---- sound (sound.c) ---- */

/* The best sound of a file, or pushed pieces of sound, resampled and mixed as ffmpeg's command line
 * does. */
typedef struct media_sound {
  media_source source; /* empty if sound is pushed */
  bool pushed;
  struct SwrContext *resampler;
  struct AVAudioFifo *queue; /* resampled samples that were not taken yet */
  uint8_t **buffer;          /* room for one resampled frame */
  int buffer_room;
  int rate; /* of the output, as the next two */
  AVChannelLayout layout;
  enum AVSampleFormat format;
  int in_rate; /* for which the resampler was made */
  AVChannelLayout in_layout;
  int in_format;
  int64_t produced;    /* samples queued since the start */
  double at;           /* in seconds: when the next frame is due */
  double clock;        /* added to timestamps after a clock was reset */
  bool held;           /* the source's frame must still be output */
  int64_t silence;     /* samples of silence that precede it, in its own rate */
  int cut;             /* samples to cut from its start */
  bool ended, damaged; /* damaged: a warning was given */
} media_sound;

/* rate and channels: 0 for the file's own. live: NULL for a file, else the input format of
 * media__format_open_live. */
int media__sound_open(media_sound *s, const char *path, const char *live, int rate, int channels,
                      enum AVSampleFormat format, atomic_int *stop);
/* Opens a sound without a source: it comes through media__sound_push. */
int media__sound_open_pushed(media_sound *s, int rate, int channels, enum AVSampleFormat format);
/* Pushes n samples of each channel, interleaved; rate and channels may change from piece to piece.
 * n = 0 flushes the resampler. */
int media__sound_push(media_sound *s, const void *samples, int n, enum AVSampleFormat format,
                      int rate, int channels);
void media__sound_close(media_sound *s);
/* Sets another number of channels, in their default layout. It must be called before the first
 * fill. */
int media__sound_mix(media_sound *s, int channels);
/* Decodes until n samples are queued or the sound ends. Returns how many of the n are there. It
 * does not wait for pushed sound. */
int media__sound_fill(media_sound *s, int n);

#endif
