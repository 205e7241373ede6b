/* Messages of libav. They are never printed, but each thread keeps the last error line, which often
 * says more than the error code ("moov atom not found"). Warnings of this folder are kept until Lua
 * prints them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "media/media.h"

static _Thread_local char line[160];

static void keep_line(void *context, int level, const char *format, va_list args) {
  if (level <= AV_LOG_INFO) media__damage_line(context, format);
  if (level > AV_LOG_ERROR) return;
  char text[sizeof line];
  vsnprintf(text, sizeof text, format, args);
  size_t n = strcspn(text, "\r\n");
  while (n > 0 && strchr(" .:", text[n - 1])) n--;
  text[n] = 0;
  if (n > 0) memcpy(line, text, sizeof line);
}

static void install(void) { av_log_set_callback(keep_line); }

void media__quiet(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, install);
  line[0] = 0;
  errno = 0;
}

static int code_of(int averror) {
  switch (averror) {
  case AVERROR_EXIT:
    return CR_EINTERRUPT;
  case AVERROR_DECODER_NOT_FOUND:
  case AVERROR_ENCODER_NOT_FOUND:
  case AVERROR_MUXER_NOT_FOUND:
  case AVERROR_PATCHWELCOME:
  case AVERROR(ENOSYS):
    return CR_EUNSUPPORTED;
  case AVERROR_INVALIDDATA:
  case AVERROR_EOF:
    return CR_EFORMAT;
  case AVERROR(EINVAL):
    return CR_EINVAL;
  default:
    return CR_EIO;
  }
}

/* Whether libav ran out of memory, or a library that libav called and that reports only
 * "failed". */
static bool lacks_memory(int averror, int number) {
  return averror == AVERROR(ENOMEM) ||
         (number == ENOMEM && (averror == AVERROR_EXTERNAL || averror == AVERROR_UNKNOWN));
}

int media__fail(int averror, const char *format, ...) {
  int number = errno;
  char what[700], reason[AV_ERROR_MAX_STRING_SIZE] = "";
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  if (averror == AVERROR_EXIT) return cr__fail(CR_EINTERRUPT, "%s: interrupted", what);
  if (lacks_memory(averror, number)) return cr__fail(CR_ENOMEM, "%s: out of memory", what);
  if (averror == AVERROR(EAGAIN)) return cr__fail(CR_ENOMEM, "%s: out of memory or threads", what);
  av_strerror(averror, reason, sizeof reason);
  if (line[0] && (averror == AVERROR_INVALIDDATA || averror == AVERROR_EXTERNAL ||
                  averror == AVERROR(EINVAL) || averror == AVERROR_UNKNOWN))
    return cr__fail(code_of(averror), "%s: %s (%s)", what, line, reason);
  return cr__fail(code_of(averror), "%s: %s", what, reason);
}

/* ---- warnings ---- */

enum { MOST_WARNINGS = 8, WARNING_BYTES = 500 };

static pthread_mutex_t warning_lock = PTHREAD_MUTEX_INITIALIZER;
static char warnings[MOST_WARNINGS][WARNING_BYTES];
static int warning_count;

void media__warn(const char *format, ...) {
  char text[WARNING_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  pthread_mutex_lock(&warning_lock);
  bool known = warning_count == MOST_WARNINGS;
  for (int i = 0; i < warning_count; i++) known = known || strcmp(warnings[i], text) == 0;
  if (!known) memcpy(warnings[warning_count++], text, sizeof text);
  pthread_mutex_unlock(&warning_lock);
}

CR_EXPORT int cr_media_warning(char *out, int32_t bytes) {
  pthread_mutex_lock(&warning_lock);
  int there = warning_count;
  if (there > 0) {
    snprintf(out, (size_t)bytes, "%s", warnings[0]);
    memmove(warnings[0], warnings[1], sizeof warnings - sizeof warnings[0]);
    warning_count--;
  }
  pthread_mutex_unlock(&warning_lock);
  return there;
}

/* ---- threads ---- */

static int threads_up_to(int most) {
  int n = cr_threads();
  return n < 1 ? 1 : n > most ? most : n;
}

int media__codec_threads(void) { return threads_up_to(8); }
int media__encoder_threads(void) { return threads_up_to(16); }
