/* The zip reader. PKWARE's APPNOTE.TXT describes the format. */
#include "weights/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/internal.h"

enum { END_BYTES = 22, END64_BYTES = 56, LOCATOR_BYTES = 20, CENTRAL_BYTES = 46, LOCAL_BYTES = 30 };
enum {
  MAX_COMMENT = 65535,
  MAX_BEHIND = 1 << 24, /* most bytes behind an archive that are ignored */
  MAX_INFLATION = 1032  /* most bytes that deflate can make of one byte */
};
static const uint32_t CENTRAL_SIGNATURE = 0x02014b50, LOCAL_SIGNATURE = 0x04034b50,
                      END_SIGNATURE = 0x06054b50, END64_SIGNATURE = 0x06064b50,
                      LOCATOR_SIGNATURE = 0x07064b50;

static bool within(const cr__zip *zip, uint64_t position, uint64_t bytes) {
  return position <= (uint64_t)zip->size && bytes <= (uint64_t)zip->size - position;
}

static int damaged(const cr__zip *zip, const char *what) {
  return cr__fail(CR_EFORMAT, "%s: damaged zip archive: %s", zip->path, what);
}

/* Whether an end record stands at `at`: its comment fits into the file, and the directory lies
 * before it. */
static bool ends_at(const cr__zip *zip, int64_t at) {
  const uint8_t *end = zip->data + at;
  if (cr__le32(end) != END_SIGNATURE || at + END_BYTES + cr__le16(end + 20) > zip->size)
    return false;
  uint64_t bytes = cr__le32(end + 12), position = cr__le32(end + 16);
  if (cr__le16(end + 10) == 0xffff || bytes == 0xffffffff || position == 0xffffffff)
    return at >= LOCATOR_BYTES && cr__le32(end - LOCATOR_BYTES) == LOCATOR_SIGNATURE;
  return position <= (uint64_t)at && bytes <= (uint64_t)at - position;
}

/* Finds the last end record. Bytes behind it and its comment do not belong to the archive. -1:
 * there is none. */
static int64_t find_end(cr__zip *zip) {
  int64_t at = zip->size - END_BYTES, lowest = at - MAX_COMMENT - MAX_BEHIND;
  if (lowest < 0) lowest = 0;
  while (at >= lowest && !ends_at(zip, at)) at--;
  if (at < lowest) return -1;
  zip->behind = zip->size - at - END_BYTES - cr__le16(zip->data + at + 20);
  return at;
}

/* Finds the directory: its position, bytes and number of members. */
static int find_directory(cr__zip *zip, uint64_t *position, uint64_t *bytes, uint64_t *count) {
  int64_t at = find_end(zip);
  if (at < 0)
    return cr__fail(CR_EFORMAT,
                    "%s: the zip archive's directory is missing at the end: the file "
                    "is truncated",
                    zip->path);
  const uint8_t *end = zip->data + at;
  *count = cr__le16(end + 10);
  *bytes = cr__le32(end + 12);
  *position = cr__le32(end + 16);
  if (*count != 0xffff && *bytes != 0xffffffff && *position != 0xffffffff) return CR_OK;
  uint64_t end64 = cr__le64(end - LOCATOR_BYTES + 8);
  if (!within(zip, end64, END64_BYTES) || cr__le32(zip->data + end64) != END64_SIGNATURE)
    return damaged(zip, "its zip64 record is missing");
  *count = cr__le64(zip->data + end64 + 32);
  *bytes = cr__le64(zip->data + end64 + 40);
  *position = cr__le64(zip->data + end64 + 48);
  return CR_OK;
}

/* Reads numbers that need more than 32 bits from the zip64 extra field. */
static int read_zip64_extra(const cr__zip *zip, const uint8_t *extra, size_t n, uint64_t *bytes,
                            uint64_t *packed, uint64_t *position) {
  uint64_t *wanted[3] = {bytes, packed, position};
  while (n >= 4) {
    uint16_t id = cr__le16(extra), length = cr__le16(extra + 2);
    if (length > n - 4) break;
    if (id == 1) {
      const uint8_t *p = extra + 4;
      for (int i = 0; i < 3; i++) {
        if (*wanted[i] != 0xffffffff) continue;
        if (length < 8) return damaged(zip, "a zip64 field is too short");
        *wanted[i] = cr__le64(p);
        p += 8;
        length -= 8;
      }
      return CR_OK;
    }
    extra += 4 + length;
    n -= 4u + length;
  }
  return damaged(zip, "a zip64 field is missing");
}

static int read_member(cr__zip *zip, const uint8_t **cursor, const uint8_t *stop,
                       cr__zip_member *member) {
  const uint8_t *p = *cursor;
  if (stop - p < CENTRAL_BYTES || cr__le32(p) != CENTRAL_SIGNATURE)
    return damaged(zip, "its directory is truncated");
  uint16_t flags = cr__le16(p + 8), method = cr__le16(p + 10);
  uint16_t name_bytes = cr__le16(p + 28), extra_bytes = cr__le16(p + 30);
  uint64_t packed = cr__le32(p + 20), bytes = cr__le32(p + 24), position = cr__le32(p + 42);
  int64_t length = CENTRAL_BYTES + (int64_t)name_bytes + extra_bytes + cr__le16(p + 32);
  if (stop - p < length) return damaged(zip, "its directory is truncated");
  const char *name = (const char *)p + CENTRAL_BYTES;
  const char *shown = cr_printable(name, name_bytes);
  if (memchr(name, 0, name_bytes)) return damaged(zip, "a member's name holds a zero byte");
  if (packed == 0xffffffff || bytes == 0xffffffff || position == 0xffffffff)
    CR_TRY(read_zip64_extra(zip, p + CENTRAL_BYTES + name_bytes, extra_bytes, &bytes, &packed,
                            &position));
  if (flags & 1) return cr__fail(CR_EUNSUPPORTED, "%s: %s is encrypted", zip->path, shown);
  if (method != 0 && method != 8)
    return cr__fail(
        CR_EUNSUPPORTED,
        "%s: %s is compressed by method %d; only stored and deflated members are supported",
        zip->path, shown, method);
  if (!within(zip, position, LOCAL_BYTES) || cr__le32(zip->data + position) != LOCAL_SIGNATURE)
    return cr__fail(CR_EFORMAT, "%s: damaged zip archive: %s is not where the directory says it is",
                    zip->path, shown);
  /* The local header repeats the name, but its extra field may have another length. */
  uint64_t first = position + LOCAL_BYTES + cr__le16(zip->data + position + 26) +
                   cr__le16(zip->data + position + 28);
  if (!within(zip, first, packed))
    return cr__fail(CR_EFORMAT, "%s: %s claims %llu bytes, but the file ends before that",
                    zip->path, shown, (unsigned long long)packed);
  if (method == 0 ? bytes != packed : bytes / MAX_INFLATION > packed)
    return cr__fail(CR_EFORMAT, "%s: %s cannot hold the %llu bytes that it claims", zip->path,
                    shown, (unsigned long long)bytes);
  member->name = cr__arena_string(&zip->arena, name, name_bytes);
  if (!member->name) return CR_ENOMEM;
  member->position = (int64_t)first;
  member->packed = (int64_t)packed;
  member->bytes = (int64_t)bytes;
  member->crc = cr__le32(p + 16);
  member->deflated = method == 8;
  *cursor = p + length;
  return CR_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const cr__zip_member *)a)->name, ((const cr__zip_member *)b)->name);
}

static int read_directory(cr__zip *zip) {
  if (zip->size < END_BYTES) return damaged(zip, "it is too short");
  uint64_t position = 0, bytes = 0, count = 0;
  CR_TRY(find_directory(zip, &position, &bytes, &count));
  if (!within(zip, position, bytes))
    return damaged(zip, "its directory lies past the end of the file");
  if (count > bytes / CENTRAL_BYTES) return damaged(zip, "its directory is too short");
  zip->members = calloc(count ? count : 1, sizeof *zip->members);
  if (!zip->members) return cr__fail(CR_ENOMEM, "%s: out of memory", zip->path);
  const uint8_t *cursor = zip->data + position, *stop = cursor + bytes;
  for (zip->count = 0; zip->count < (int64_t)count; zip->count++)
    CR_TRY(read_member(zip, &cursor, stop, &zip->members[zip->count]));
  qsort(zip->members, (size_t)zip->count, sizeof *zip->members, by_name);
  for (int64_t i = 1; i < zip->count; i++)
    if (by_name(&zip->members[i - 1], &zip->members[i]) == 0)
      return damaged(zip, "two members have the same name");
  return CR_OK;
}

int cr__zip_read(cr__zip *zip, const char *path, const uint8_t *data, int64_t size) {
  memset(zip, 0, sizeof *zip);
  zip->path = path;
  zip->data = data;
  zip->size = size;
  int rc = read_directory(zip);
  if (rc < 0) cr__zip_free(zip);
  return rc;
}

const cr__zip_member *cr__zip_find(const cr__zip *zip, const char *name) {
  cr__zip_member key = {.name = name};
  if (!zip->count) return NULL;
  return bsearch(&key, zip->members, (size_t)zip->count, sizeof key, by_name);
}

void cr__zip_free(cr__zip *zip) {
  free(zip->members);
  cr__arena_free(&zip->arena);
  memset(zip, 0, sizeof *zip);
}

int cr__inflate(const char *path, const uint8_t *data, int64_t packed, void *out, int64_t bytes,
                uint32_t crc) {
  z_stream stream = {0};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return cr__fail(CR_ENOMEM, "%s: out of memory for unpacking", path);
  const int64_t most = 1 << 30; /* zlib counts in 32 bits */
  uint8_t nothing[1];
  uint32_t sum = (uint32_t)crc32(0, NULL, 0);
  int64_t taken = 0, made = 0;
  int status = Z_OK;
  while (status == Z_OK) {
    if (!stream.avail_in) {
      stream.next_in = (uint8_t *)data + taken;
      stream.avail_in = (uInt)(packed - taken < most ? packed - taken : most);
      taken += stream.avail_in;
    }
    int64_t room = bytes - made < most ? bytes - made : most;
    uint8_t *to = room ? (uint8_t *)out + made : nothing;
    stream.next_out = to;
    stream.avail_out = (uInt)(room ? room : 1);
    status = inflate(&stream, Z_NO_FLUSH);
    int64_t step = stream.next_out - to;
    if (!room && step) {
      status = Z_DATA_ERROR; /* it has more bytes than it claimed */
      break;
    }
    sum = (uint32_t)crc32(sum, to, (uInt)step);
    made += step;
  }
  inflateEnd(&stream);
  if (status != Z_STREAM_END || made != bytes)
    return cr__fail(CR_EFORMAT, "%s: a compressed member is damaged", path);
  if (sum != crc) return cr__fail(CR_EFORMAT, "%s: a compressed member's checksum is wrong", path);
  return CR_OK;
}

int64_t cr__inflate_start(const char *path, const uint8_t *data, int64_t packed, void *out,
                          int64_t bytes) {
  z_stream stream = {0};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return cr__fail(CR_ENOMEM, "%s: out of memory for unpacking", path);
  const int64_t most = 1 << 30;
  stream.next_in = (uint8_t *)data;
  stream.avail_in = (uInt)(packed < most ? packed : most);
  stream.next_out = out;
  stream.avail_out = (uInt)bytes;
  int status = inflate(&stream, Z_SYNC_FLUSH);
  int64_t made = bytes - stream.avail_out;
  inflateEnd(&stream);
  if (status != Z_OK && status != Z_STREAM_END)
    return cr__fail(CR_EFORMAT, "%s: a compressed member is damaged", path);
  return made;
}
