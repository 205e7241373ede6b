/* Reads zip archives: the directory at the end (also zip64), stored and deflated members.
 *
 * Invariants: every member's packed bytes lie within the file; a deflated member does not claim
 * more bytes than deflate can give; names are unique. */
#ifndef CR_ZIP_H
#define CR_ZIP_H

#include "base/buffer.h"

typedef struct cr__zip_member {
  const char *name;
  int64_t position; /* of the packed bytes */
  int64_t packed, bytes;
  uint32_t crc;
  bool deflated;
} cr__zip_member;

typedef struct cr__zip {
  const char *path; /* for messages */
  const uint8_t *data;
  int64_t size;
  int64_t behind;          /* bytes behind the archive */
  cr__zip_member *members; /* sorted by name */
  int64_t count;
  cr__arena arena;
} cr__zip;

int cr__zip_read(cr__zip *zip, const char *path, const uint8_t *data, int64_t size);
const cr__zip_member *cr__zip_find(const cr__zip *zip, const char *name);
void cr__zip_free(cr__zip *zip);

/* Unpacks `packed` bytes to exactly `bytes` bytes and checks their CRC-32. */
int cr__inflate(const char *path, const uint8_t *data, int64_t packed, void *out, int64_t bytes,
                uint32_t crc);

/* Unpacks the first bytes of a member, at most `bytes`. Returns how many there were. It does not
 * check the CRC-32. */
int64_t cr__inflate_start(const char *path, const uint8_t *data, int64_t packed, void *out,
                          int64_t bytes);

#endif
