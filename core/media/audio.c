/* cr_audio: the sound of a file as tensors, read on another thread.
 *
 * Invariants: a reader runs at most one job at a time, and only that job uses its decoder. */
#include <libavutil/audio_fifo.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"

enum { MOST_SAMPLES = 1 << 24 };

struct cr_audio {
  media_sound sound;
  cr_storage *result; /* f32 [count channels], the last read */
  int count;
  int wanted;
  media_job_slot slot;
};

static int open_audio(cr_audio **out, const char *path, const char *live, int32_t rate,
                      int32_t channels, int32_t s16) {
  *out = NULL;
  if (rate < 0 || rate > 1000000 || channels < 0 || channels > 64)
    return cr__fail(CR_EINVAL, "audio: cannot make %d Hz with %d channels", rate, channels);
  cr_audio *a = calloc(1, sizeof *a);
  if (!a) return cr__fail(CR_ENOMEM, "%s: out of memory", path);
  int rc = media__sound_open(&a->sound, path, live, rate, channels,
                             s16 ? AV_SAMPLE_FMT_S16 : AV_SAMPLE_FMT_FLT, &a->slot.stop);
  if (rc < 0) {
    free(a);
    return rc;
  }
  media__job_slot_init(&a->slot);
  *out = a;
  return CR_OK;
}

CR_EXPORT int cr_audio_open(cr_audio **out, const char *path, int32_t rate, int32_t channels,
                            int32_t s16) {
  return open_audio(out, path, NULL, rate, channels, s16);
}

CR_EXPORT int cr_audio_open_live(cr_audio **out, const char *url, const char *format, int32_t rate,
                                 int32_t channels) {
  return open_audio(out, url, format, rate, channels, 0);
}

static void forget(cr_audio *a) {
  if (a->result) cr__release(a->result);
  a->result = NULL;
  a->count = 0;
}

CR_EXPORT void cr_audio_close(cr_audio *a) {
  if (!a) return;
  media__job_slot_close(&a->slot);
  forget(a);
  media__sound_close(&a->sound);
  free(a);
}

CR_EXPORT int32_t cr_audio_rate(const cr_audio *a) { return a->sound.rate; }

CR_EXPORT int32_t cr_audio_channels(const cr_audio *a) { return a->sound.layout.nb_channels; }

static int read_samples(cr_audio *a) {
  int n = media__sound_fill(&a->sound, a->wanted);
  if (n < 0) return n;
  int64_t values = (int64_t)n * a->sound.layout.nb_channels;
  a->result = cr__storage_new(values * (int64_t)sizeof(float), CR_CPU);
  if (!a->result) return CR_ENOMEM;
  float *to = a->result->data;
  void *planes[1] = {to};
  if (n > 0 && av_audio_fifo_read(a->sound.queue, planes, n) < n)
    return cr__fail(CR_ENOMEM, "%s: out of memory", a->sound.source.path);
  if (a->sound.format ==
      AV_SAMPLE_FMT_S16) { /* 16-bit samples are widened in place, from the end */
    const int16_t *from = (const int16_t *)to;
    for (int64_t i = values - 1; i >= 0; i--) {
      int16_t sample;
      memcpy(&sample, from + i, sizeof sample);
      to[i] = (float)sample / 32768.0f;
    }
  }
  a->count = n;
  return n;
}

static int read_job(void *argument) {
  cr_audio *a = argument;
  media__quiet();
  int rc = read_samples(a);
  if (rc < 0) forget(a);
  media__job_slot_release(&a->slot);
  return rc;
}

CR_EXPORT int64_t cr_audio_read_start(cr_audio *a, int64_t n) {
  if (n < 1 || n > MOST_SAMPLES)
    return cr__fail(CR_EINVAL, "audio read: 1 to %d samples at a time, not %lld", MOST_SAMPLES,
                    (long long)n);
  if (!media__job_slot_take(&a->slot))
    return cr__fail(CR_EINVAL, "audio read: %s: the last job is still running",
                    a->sound.source.path);
  forget(a);
  a->wanted = (int)n;
  return media__job_slot_run(&a->slot, read_job, a);
}

CR_EXPORT int cr_audio_take(cr_audio *a, cr_tensor *out) {
  if (media__job_slot_held(&a->slot))
    return cr__fail(CR_EINVAL, "audio take: the read has not finished");
  if (!a->result) return cr__fail(CR_EINVAL, "audio take: nothing has been read");
  if (out->storage) return cr__fail(CR_EINVAL, "audio take: out is not empty");
  int32_t shape[2] = {a->count, a->sound.layout.nb_channels};
  int64_t stride[2] = {shape[1], 1};
  cr__tensor_set(out, a->result, CR_F32, 2, shape, stride, 0);
  forget(a);
  return CR_OK;
}
