/* A video file being written: what writer.c's thread and the files output*.c share. */
#ifndef CR_MEDIA_OUTPUT_H
#define CR_MEDIA_OUTPUT_H

#include "base/output.h"
#include "media/media.h"

/* What a writer to memory has written and nobody has taken. The encoder's thread adds, Lua's takes.
 */
typedef struct media_bytes media_bytes;

typedef struct media_output {
  char *path;
  cr__output file; /* libav opens its temporary name once more, to write to it */
  cr_writer_options options;
  AVRational rate;
  AVFormatContext *format;
  AVCodecContext *video, *audio;
  AVStream *video_stream, *audio_stream;
  struct SwsContext *scaler;
  cr_yuv planes;    /* how the encoder's pictures lie; width 0: pictures come as RGB only */
  uint8_t *picture; /* the one being encoded, RGB at the encoder's size */
  AVPacket *packet;
  int64_t frames;      /* pictures sent to the encoder */
  int64_t last, end;   /* when the last of them is shown and ends, in its time base */
  media_sound *sounds; /* several are mixed: their rate and layout are the first one's */
  int sound_count;
  int64_t samples, skip, limit; /* sent; to leave out first; of the sound at most (-1: all) */
  int64_t sound_end;            /* of the packets written, in the sound encoder's time base */
  atomic_int *stop;
  int64_t failures;   /* FFmpeg's failed allocations before it was opened */
  bool in_order;      /* packets are written as the encoders give them, none waits for another */
  media_bytes *bytes; /* what is written to memory; NULL: to a file or URL */
} media_output;

int media__output_open(media_output *o, const char *path, const cr_writer_options *options,
                       atomic_int *stop);
/* One picture, u8 [height width 3] dense, or planes as o->planes says, and the sound up to its end;
 * shown at `seconds`, or, if these are below 0 or the file is not timed, when the last one ends. */
int media__output_frame(media_output *o, const uint8_t *picture, bool planes, double seconds);
/* The rest of the sound, the trailer, the final name. */
int media__output_finish(media_output *o);
/* Frees everything; a file that was not finished is deleted. Twice is fine. */
void media__output_close(media_output *o);

/* ---- for the files output*.c ---- */

int media__output_no_memory(const media_output *o);
int media__output_open_video(media_output *o);
/* How long a picture lasts if no other follows, in the video's time base. */
int64_t media__output_length(const media_output *o);
/* Fails with the reason why o->video could not be opened by the codec: the largest side, if it is
 * the size. */
int media__output_refused(const media_output *o, const AVCodec *codec, int averror);
int media__output_open_audio(media_output *o);
/* Opens the files of the options. One gives samples of the encoder's format, several floats. */
int media__output_open_sounds(media_output *o, enum AVSampleFormat format);
void media__output_close_sounds(media_output *o);
/* Gives all of them the usual layout of so many channels; before the first sample. */
int media__output_mix_sounds(media_output *o, int channels);
/* Takes up to n samples of the sound (n > 0) into a frame of the encoder's format, or, without one,
 * leaves them out. Returns how many there were, less than n only at the end. */
int media__output_read_sound(media_output *o, AVFrame *frame, int n);
/* The sound up to the end of the pictures sent; whole encoder frames only, unless `all`. */
int media__output_follow_with_sound(media_output *o, bool all);
/* Moves a packet of sound to where the container wants it; false: it is not to be written. */
bool media__output_place_sound(const media_output *o, AVPacket *packet);
/* Sends a frame (NULL: the end) to an encoder and its packets to the file. */
int media__output_encode(media_output *o, AVCodecContext *c, AVStream *s, AVFrame *frame);

/* ---- sinks that are no files: a URL, a pipe, memory (output_live.c) ---- */

/* The kind of container. */
int media__output_live_kind(const media_output *o, const AVOutputFormat **kind);
/* Opens the sink and writes the header. */
int media__output_live_open(media_output *o);
/* Hands on all that was written so far. */
int media__output_live_push(media_output *o);
/* The trailer, and the end of the sink. */
int media__output_live_finish(media_output *o);
void media__output_live_close(media_output *o);
/* What was written to memory since the last call, as u8 [n]; n may be 0. Any thread. */
int media__output_live_take(media_output *o, cr_tensor *out);

#endif
