/* Checks that a file is complete, before it is read and when its end is reached.
 *
 * Invariant: a file is refused if its index or header claims bytes that it does not have. The
 * exceptions are headers that are known to be guesses, and sound of which less than a second is
 * missing. */
#include <errno.h>
#include <libavutil/avstring.h>
#include <libavutil/intreadwrite.h>
#include <stdio.h>
#include <string.h>

#include "media/media.h"

/* Programs that cannot seek back write 0, or a size near 2 * 10^9, 2^31 or 2^32. */
#define PLACEHOLDER 1900000000u

static int truncated(const char *path, const char *part, uint64_t claimed, uint64_t there) {
  return cr__fail(
      CR_EFORMAT,
      "%s: the file is truncated: its '%s' part should have %llu bytes, but %llu are there", path,
      part, (unsigned long long)claimed, (unsigned long long)there);
}

/* WAV: compares the size in the data chunk's header with the file's. */
static int check_wav(const char *path, FILE *file, uint64_t size) {
  uint64_t at = 12, a_second = 0;
  uint8_t head[20];
  for (int chunks = 0; chunks < 1000 && at + 8 <= size; chunks++) {
    if (fseeko(file, (off_t)at, SEEK_SET) != 0) break;
    size_t got = fread(head, 1, sizeof head, file);
    if (got < 8) break;
    uint64_t bytes = AV_RL32(head + 4);
    if (memcmp(head, "fmt ", 4) == 0 && got == sizeof head) a_second = AV_RL32(head + 16);
    if (memcmp(head, "data", 4) == 0) {
      uint64_t there = size - at - 8;
      if (bytes <= there || bytes >= PLACEHOLDER) break;
      if (bytes - there >= a_second) return truncated(path, "data", bytes, there);
      media__warn("%s: the last %.4f s of the sound that its header claims are missing", path,
                  (double)(bytes - there) / (double)a_second);
      break;
    }
    at += 8 + bytes + (bytes & 1);
  }
  return CR_OK;
}

/* MP4 and QuickTime: finds top-level boxes that claim more bytes than the file has. Anything may
 * follow the index and the data, since cameras append to their files. A fragmented file is meant to
 * be readable wherever it ends. */
static int check_mp4(const char *path, FILE *file, uint64_t size) {
  uint64_t at = 0;
  uint8_t head[16];
  bool index = false, data = false;
  for (int boxes = 0; boxes < 100000 && at + 8 <= size && !(index && data); boxes++) {
    if (fseeko(file, (off_t)at, SEEK_SET) != 0) break;
    size_t got = fread(head, 1, 16, file);
    if (got < 8) break;
    uint64_t bytes = AV_RB32(head);
    if (bytes == 0) break; /* extends to the end of the file */
    if (bytes == 1) bytes = got == 16 ? AV_RB64(head + 8) : 0;
    if (bytes < 8 || memcmp(head + 4, "moof", 4) == 0) break;
    if (bytes > size - at) {
      char name[5] = {0};
      for (int i = 0; i < 4; i++)
        name[i] = (char)(head[4 + i] >= ' ' && head[4 + i] < 127 ? head[4 + i] : '?');
      return truncated(path, name, bytes, size - at);
    }
    index = index || memcmp(head + 4, "moov", 4) == 0;
    data = data || memcmp(head + 4, "mdat", 4) == 0;
    at += bytes;
  }
  return CR_OK;
}

/* Reads an EBML number, whose first byte tells its length by leading zeros. Returns 0 if it is
 * invalid or unknown. */
static uint64_t ebml_number(const uint8_t *p, size_t room, size_t *length) {
  size_t n = 1;
  while (n <= 8 && !(p[0] & (0x80 >> (n - 1)))) n++;
  if (n > 8 || n > room) return *length = 0;
  uint64_t value = p[0] & (0xff >> n), unknown = (UINT64_C(1) << (7 * n)) - 1;
  for (size_t i = 1; i < n; i++) value = value << 8 | p[i];
  *length = n;
  return value == unknown ? 0 : value;
}

/* Returns the bytes that a Matroska or WebM file should have by the header of its segment; 0:
 * unknown. */
static uint64_t matroska_size(const uint8_t *head, size_t got) {
  size_t n = 0, at = 4 + (size_t)ebml_number(head + 4, got - 4, &n);
  at += n;
  if (n == 0 || at + 12 > got || AV_RB32(head + at) != 0x18538067) return 0;
  uint64_t bytes = ebml_number(head + at + 4, got - at - 4, &n);
  return bytes ? at + 4 + n + bytes : 0;
}

/* AVI, Matroska and WebM are readable wherever they end, so a truncated one gives only a
 * warning. */
static void warn_of_end(const char *path, const uint8_t *head, size_t got, uint64_t size) {
  uint64_t claimed = 0;
  if (memcmp(head, "RIFF", 4) == 0 && memcmp(head + 8, "AVI ", 4) == 0)
    claimed = AV_RL32(head + 4) < PLACEHOLDER ? AV_RL32(head + 4) : 0;
  else if (AV_RB32(head) == 0x1a45dfa3)
    claimed = matroska_size(head, got);
  if (claimed > size)
    media__warn("%s: the file is truncated: its header claims %llu bytes, but %llu are there", path,
                (unsigned long long)claimed, (unsigned long long)size);
}

int media__file_check(const char *path, struct stat *info) {
  bool there = stat(path, info) == 0;
  if (there ? !S_ISREG(info->st_mode) && !S_ISDIR(info->st_mode) : strcmp(path, "-") == 0)
    return cr__fail(CR_EIO, "%s: a pipe or device cannot be read twice: save it to a file first",
                    path);
  if (!there) return cr__fail_errno(CR_EIO, "%s", path);
  if (S_ISDIR(info->st_mode)) return cr__fail(CR_EIO, "%s: is a folder, not a file", path);
  if (info->st_size == 0) return cr__fail(CR_EFORMAT, "%s: the file is empty", path);
  FILE *file = fopen(path, "rb");
  if (!file) return cr__fail_errno(CR_EIO, "%s", path);
  uint8_t head[80];
  int rc = CR_OK;
  size_t got = fread(head, 1, sizeof head, file);
  if (got >= 12) {
    warn_of_end(path, head, got, (uint64_t)info->st_size);
    if (memcmp(head, "RIFF", 4) == 0 && memcmp(head + 8, "WAVE", 4) == 0)
      rc = check_wav(path, file, (uint64_t)info->st_size);
    else if (memcmp(head + 4, "ftyp", 4) == 0)
      rc = check_mp4(path, file, (uint64_t)info->st_size);
  }
  fclose(file);
  return rc;
}

/* Checks MP4 and QuickTime, which keep their index apart from the data. */
int media__file_check_index(const char *path, const AVFormatContext *format,
                            const struct stat *info) {
  if (!av_match_name("mp4", format->iformat->name)) return CR_OK;
  for (unsigned i = 0; i < format->nb_streams; i++) {
    AVStream *s = format->streams[i];
    int entries = avformat_index_get_entries_count(s);
    for (int k = 0; k < entries; k++) {
      const AVIndexEntry *e = avformat_index_get_entry(s, k);
      if (e->pos + e->size > info->st_size)
        return cr__fail(
            CR_EFORMAT,
            "%s: the file is truncated: its index refers to byte %lld, but the file has %lld bytes",
            path, (long long)e->pos + e->size, (long long)info->st_size);
    }
  }
  return CR_OK;
}

int media__file_check_size(const char *path, const struct stat *before) {
  struct stat now;
  if (stat(path, &now) != 0 || now.st_dev != before->st_dev || now.st_ino != before->st_ino)
    return CR_OK; /* deleted or replaced; the opened file is still complete */
  if (now.st_size >= before->st_size) return CR_OK;
  return cr__fail(CR_EIO, "%s: the file was truncated while it was read", path);
}
