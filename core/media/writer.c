/* cr_writer: a thread that encodes queued items in order, in parallel with the computation.
 *
 * Invariants: only the thread uses `output`. Each queued item holds its own storage and ends with
 * exactly one completion. After a failure nothing more is written, the file is deleted at once, and
 * every later item fails with the same message. */
#include <stdlib.h>
#include <string.h>

#include "media/output.h"

typedef struct item {
  struct item *next;
  int64_t job;
  cr_tensor frames; /* or sound, if `sound` is set; storage NULL: the end of the file */
  bool sound;
  double seconds; /* when the frames are shown; < 0: after what was written */
} item;

struct cr_writer {
  media_output output;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t news;
  item *first, **end;
  bool ending;   /* the end has been queued */
  bool closing;  /* the thread must stop */
  bool draining; /* the thread must stop when the queue is empty */
  bool finished; /* the file has its final name */
  int failed;    /* CR_E* of the first failure, with its message */
  char reason[500];
  atomic_int stop;
};

static int write_frames(cr_writer *w, const cr_tensor *frames, double seconds) {
  bool planes = frames->rank == 1;
  int64_t count = frames->rank == 4 ? frames->shape[0] : 1;
  int64_t bytes = (int64_t)w->output.options.width * w->output.options.height * 3;
  const uint8_t *data = cr__ptr(frames);
  for (int64_t i = 0; i < count; i++)
    CR_TRY(media__output_frame(&w->output, data + i * bytes, planes, i ? -1 : seconds));
  return w->output.frames > INT32_MAX ? INT32_MAX : (int)w->output.frames;
}

static int write_sound(cr_writer *w, const cr_tensor *sound) {
  const cr_writer_options *o = &w->output.options;
  return media__sound_push(w->output.sounds, cr__ptr(sound), sound->shape[0], AV_SAMPLE_FMT_FLT,
                           o->sound_rate, o->sound_channels);
}

static int handle(cr_writer *w, item *it) {
  if (w->failed) return cr__fail(w->failed, "%s", w->reason);
  media__quiet();
  int rc = !it->frames.storage ? media__output_finish(&w->output)
           : it->sound         ? write_sound(w, &it->frames)
                               : write_frames(w, &it->frames, it->seconds);
  if (rc >= 0) {
    if (!it->frames.storage) w->finished = true;
    return rc;
  }
  w->failed = rc;
  memcpy(w->reason, cr_last_error(), strnlen(cr_last_error(), sizeof w->reason - 1));
  media__output_close(&w->output);
  return rc;
}

static void *work(void *argument) {
  cr_writer *w = argument;
  for (;;) {
    pthread_mutex_lock(&w->lock);
    while (!w->first && !w->closing && !w->draining) pthread_cond_wait(&w->news, &w->lock);
    item *it = w->first;
    if (it) {
      w->first = it->next;
      if (!w->first) w->end = &w->first;
    }
    bool dropped = w->closing;
    pthread_mutex_unlock(&w->lock);
    if (!it) return NULL;
    int rc = dropped ? cr__fail(CR_ECLOSED, "writer: closed before everything was written")
                     : handle(w, it);
    cr_free(&it->frames);
    cr__job_finish(it->job, rc, rc < 0 ? cr_last_error() : "");
    free(it);
  }
}

/* ---- public functions ---- */

static void free_writer(cr_writer *w) {
  media__output_close(&w->output);
  pthread_cond_destroy(&w->news);
  pthread_mutex_destroy(&w->lock);
  free(w);
}

CR_EXPORT int cr_writer_open(cr_writer **out, const char *path, const cr_writer_options *options) {
  *out = NULL;
  cr_writer *w = calloc(1, sizeof *w);
  if (!w) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  int rc = media__output_open(&w->output, path, options, &w->stop);
  if (rc < 0) {
    free(w);
    return rc;
  }
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->news, NULL);
  w->end = &w->first;
  if (pthread_create(&w->thread, NULL, work, w) != 0) {
    free_writer(w);
    return cr__fail(CR_ENOMEM, "%s: out of memory or threads", path);
  }
  *out = w;
  return CR_OK;
}

static int64_t queue(cr_writer *w, const cr_tensor *frames, double seconds, bool sound) {
  item *it = calloc(1, sizeof *it);
  if (!it) return cr__fail(CR_ENOMEM, "writer: out of memory");
  if (frames && cr_share(&it->frames, frames) < 0) {
    free(it);
    return CR_EINVAL;
  }
  int64_t job = cr__job_new();
  if (job < 0) {
    cr_free(&it->frames);
    free(it);
    return job;
  }
  it->job = job;
  it->seconds = seconds;
  it->sound = sound;
  pthread_mutex_lock(&w->lock);
  *w->end = it;
  w->end = &it->next;
  pthread_cond_signal(&w->news);
  pthread_mutex_unlock(&w->lock);
  return job;
}

CR_EXPORT int cr_writer_planes(const cr_writer *w, cr_yuv *format) {
  *format = w->output.planes;
  return format->width > 0;
}

/* Fails unless the writer accepts `frames`; the message says what it accepts. */
static int check_frames(const cr_writer *w, const cr_tensor *frames) {
  int32_t r = frames->rank;
  const cr_writer_options *o = &w->output.options;
  const cr_yuv *f = &w->output.planes;
  bool cpu = frames->device == CR_CPU;
  if (cpu && frames->dtype == (f->bits ? CR_I16 : CR_U8) && r == 1 && f->width &&
      frames->shape[0] == media__values(f))
    return CR_OK;
  if (cpu && frames->dtype == CR_U8 && (r == 3 || r == 4) && frames->shape[r - 1] == 3 &&
      frames->shape[r - 2] == o->width && frames->shape[r - 3] == o->height)
    return CR_OK;
  return cr__fail(CR_EINVAL, "writer write: u8 [%d %d 3] on the CPU is needed, not %s %s",
                  o->height, o->width, cr_dtype_name(frames->dtype), cr__shape(frames));
}

CR_EXPORT int64_t cr_writer_write_start(cr_writer *w, const cr_tensor *frames, double seconds) {
  CR_TRY(cr__alive("writer write", frames));
  if (w->ending) return cr__fail(CR_ECLOSED, "writer write: the file is being finished");
  CR_TRY(check_frames(w, frames));
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(frames, frames->dtype, &temp);
  if (!dense) return CR_ENOMEM;
  int64_t job = queue(w, dense, seconds, false);
  cr_free(&temp);
  return job;
}

CR_EXPORT int64_t cr_writer_sound_start(cr_writer *w, const cr_tensor *sound) {
  CR_TRY(cr__alive("writer sound", sound));
  if (w->ending) return cr__fail(CR_ECLOSED, "writer sound: the file is being finished");
  int32_t channels = w->output.options.sound_channels;
  if (w->output.options.sound_rate <= 0)
    return cr__fail(CR_EINVAL, "writer sound: the writer was opened without a sound_rate");
  if (sound->device != CR_CPU || sound->dtype != CR_F32 || sound->rank != 2 ||
      sound->shape[1] != channels)
    return cr__fail(CR_EINVAL, "writer sound: f32 [n %d] on the CPU is needed, not %s %s", channels,
                    cr_dtype_name(sound->dtype), cr__shape(sound));
  cr_tensor temp = {0};
  const cr_tensor *dense = cr__dense(sound, CR_F32, &temp);
  if (!dense) return CR_ENOMEM;
  int64_t job = queue(w, dense, -1, true);
  cr_free(&temp);
  return job;
}

CR_EXPORT double cr_writer_sound_lag(const cr_writer *w) {
  const media_output *o = &w->output;
  if (!o->audio) return 0;
  double lag = (double)o->end * av_q2d(o->video->time_base) -
               (double)o->sound_end * av_q2d(o->audio->time_base);
  return lag > 0 ? lag : 0;
}

CR_EXPORT int cr_writer_take(cr_writer *w, cr_tensor *out) {
  if (out->storage) return cr__fail(CR_EINVAL, "writer take: out is not empty");
  return media__output_live_take(&w->output, out);
}

CR_EXPORT int64_t cr_writer_finish_start(cr_writer *w) {
  if (w->ending) return cr__fail(CR_ECLOSED, "writer finish: the file is being finished already");
  int64_t job = queue(w, NULL, -1, false);
  if (job > 0) w->ending = true;
  return job;
}

/* Sets *how, a field of w, and waits for the thread to stop. */
static void stop(cr_writer *w, bool *how) {
  pthread_mutex_lock(&w->lock);
  *how = true;
  pthread_cond_signal(&w->news);
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL);
}

CR_EXPORT int cr_writer_end(cr_writer *w) {
  stop(w, &w->draining);
  media__quiet();
  int rc = CR_OK;
  if (w->failed)
    rc = cr__fail(w->failed, "%s", w->reason);
  else if (!w->finished)
    rc = media__output_finish(&w->output);
  free_writer(w);
  return rc;
}

CR_EXPORT void cr_writer_close(cr_writer *w) {
  if (!w) return;
  w->stop = 1;
  stop(w, &w->closing);
  free_writer(w);
}
