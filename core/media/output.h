/* A video file being written: what writer.c's thread and the files output*.c share. */
#ifndef CR_MEDIA_OUTPUT_H
#define CR_MEDIA_OUTPUT_H

#include "base/output.h"
#include "media/media.h"

/* Written bytes that were not taken yet. The encoder's thread adds them, Lua's takes them. */
typedef struct media_bytes media_bytes;

typedef struct media_output {
  char *path;
  cr__output file; /* libav opens its temporary name a second time for writing */
  cr_writer_options options;
  AVRational rate;
  AVFormatContext *format;
  AVCodecContext *video, *audio;
  AVStream *video_stream, *audio_stream;
  struct SwsContext *scaler;
  cr_yuv planes;    /* layout of the encoder's frames; width 0: the writer accepts RGB only */
  uint8_t *picture; /* the frame being encoded, RGB at the encoder's size */
  AVPacket *packet;
  int64_t frames;      /* frames sent to the encoder */
  int64_t last, end;   /* start and end of the last frame, in the encoder's time base */
  media_sound *sounds; /* several are mixed, with the rate and layout of the first */
  int sound_count;
  int64_t samples;   /* of the sound, sent to the encoder */
  int64_t skip;      /* samples to skip at the start of the sound */
  int64_t limit;     /* most samples of the sound; -1: no limit */
  int64_t sound_end; /* end of the written packets, in the sound encoder's time base */
  atomic_int *stop;
  int64_t failures;   /* number of FFmpeg's failed allocations before it was opened */
  bool in_order;      /* packets are written in the encoders' order, without interleaving */
  media_bytes *bytes; /* written to memory; NULL: to a file or URL */
} media_output;

int media__output_open(media_output *o, const char *path, const cr_writer_options *options,
                       atomic_int *stop);
/* Writes one frame, u8 [height width 3] dense, or planes laid out as o->planes, and the sound up to
 * its end. It is shown at `seconds`; if these are negative or the file is not timed, when the
 * previous frame ends. */
int media__output_frame(media_output *o, const uint8_t *picture, bool planes, double seconds);
/* Writes the rest of the sound and the trailer, and renames the file. */
int media__output_finish(media_output *o);
/* Frees everything, and deletes an unfinished file. A second call does nothing. */
void media__output_close(media_output *o);

/* ---- for the files output*.c ---- */

int media__output_no_memory(const media_output *o);
int media__output_open_video(media_output *o);
/* Returns the duration of a frame without a successor, in the video's time base. */
int64_t media__output_length(const media_output *o);
/* Fails with the reason why the codec could not open o->video. If it is the size, the message has
 * the largest side. */
int media__output_refused(const media_output *o, const AVCodec *codec, int averror);
int media__output_open_audio(media_output *o);
/* Opens the sound files of the options. A single one gives samples in the encoder's format, several
 * give floats. */
int media__output_open_sounds(media_output *o, enum AVSampleFormat format);
void media__output_close_sounds(media_output *o);
/* Sets all sounds to the default layout of so many channels. It must be called before the first
 * sample. */
int media__output_mix_sounds(media_output *o, int channels);
/* Takes up to n samples of the sound (n > 0) into a frame of the encoder's format, or drops them if
 * frame is NULL. Returns how many there were: less than n only at the end. */
int media__output_read_sound(media_output *o, AVFrame *frame, int n);
/* Writes the sound up to the end of the frames that were sent, in whole encoder frames unless
 * `all`. */
int media__output_follow_with_sound(media_output *o, bool all);
/* Moves a packet of sound to where the container expects it. Returns false if it must not be
 * written. */
bool media__output_place_sound(const media_output *o, AVPacket *packet);
/* Sends a frame (NULL: the end) to an encoder, and writes its packets to the file. */
int media__output_encode(media_output *o, AVCodecContext *c, AVStream *s, AVFrame *frame);

/* ---- live sinks: a URL, a pipe, memory (output_live.c) ---- */

/* Chooses the container. */
int media__output_live_kind(const media_output *o, const AVOutputFormat **kind);
/* Opens the sink and writes the header. */
int media__output_live_open(media_output *o);
/* Flushes everything written so far. */
int media__output_live_push(media_output *o);
/* Writes the trailer and closes the sink. */
int media__output_live_finish(media_output *o);
void media__output_live_close(media_output *o);
/* Takes what was written to memory since the last call, as u8 [n]; n may be 0. Any thread. */
int media__output_live_take(media_output *o, cr_tensor *out);

#endif
