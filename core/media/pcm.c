/* cr_pcm: pushed pieces of sound, converted to one rate. */
#include <libavutil/audio_fifo.h>
#include <stdlib.h>

#include "media/media.h"

enum { MOST_SAMPLES = 1 << 24, MOST_RATE = 1000000, MOST_CHANNELS = 64 };

struct cr_pcm {
  media_sound sound; /* f32 */
};

static int check(int32_t rate, int32_t channels) {
  if (rate >= 1 && rate <= MOST_RATE && channels >= 1 && channels <= MOST_CHANNELS) return CR_OK;
  return cr__fail(CR_EINVAL, "pcm: sound of %d Hz with %d channels is not supported", rate,
                  channels);
}

CR_EXPORT int cr_pcm_open(cr_pcm **out, int32_t rate, int32_t channels) {
  *out = NULL;
  CR_TRY(check(rate, channels));
  cr_pcm *p = calloc(1, sizeof *p);
  if (!p) return cr__fail(CR_ENOMEM, "pcm: out of memory");
  int rc = media__sound_open_pushed(&p->sound, rate, channels, AV_SAMPLE_FMT_FLT);
  if (rc < 0) {
    cr_pcm_close(p);
    return rc;
  }
  *out = p;
  return CR_OK;
}

CR_EXPORT void cr_pcm_close(cr_pcm *p) {
  if (!p) return;
  media__sound_close(&p->sound);
  free(p);
}

CR_EXPORT int cr_pcm_push(cr_pcm *p, const void *samples, int64_t n, int32_t dtype, int32_t rate,
                          int32_t channels) {
  if (dtype != CR_I16 && dtype != CR_F32)
    return cr__fail(CR_EINVAL, "pcm push: samples must be i16 or f32, not %s",
                    cr_dtype_name(dtype));
  if (n < 0 || n > MOST_SAMPLES)
    return cr__fail(CR_EINVAL, "pcm push: 0 to %d samples at a time, not %lld", MOST_SAMPLES,
                    (long long)n);
  CR_TRY(check(rate, channels));
  media__quiet();
  return media__sound_push(&p->sound, samples, (int)n,
                           dtype == CR_I16 ? AV_SAMPLE_FMT_S16 : AV_SAMPLE_FMT_FLT, rate, channels);
}

CR_EXPORT int cr_pcm_take(cr_pcm *p, cr_tensor *out) {
  if (out->storage) return cr__fail(CR_EINVAL, "pcm take: out is not empty");
  int32_t shape[2] = {av_audio_fifo_size(p->sound.queue), p->sound.layout.nb_channels};
  int64_t stride[2] = {shape[1], 1};
  int64_t bytes = (int64_t)shape[0] * shape[1] * (int64_t)sizeof(float);
  cr_storage *result = cr__storage_new(bytes, CR_CPU);
  if (!result) return CR_ENOMEM;
  void *planes[1] = {result->data};
  int rc = CR_OK;
  if (shape[0] > 0 && av_audio_fifo_read(p->sound.queue, planes, shape[0]) < shape[0])
    rc = cr__fail(CR_ENOMEM, "pcm: out of memory");
  else
    cr__tensor_set(out, result, CR_F32, 2, shape, stride, 0);
  cr__release(result);
  return rc;
}
