/* A file mapped into memory, shared by everything that looks into it.
 *
 * Invariants: the mapping is private and copy on write, so the file is never changed through it;
 * it goes away with the last reference, whichever thread drops that. */
#ifndef CR_MAPPED_FILE_H
#define CR_MAPPED_FILE_H

#include <stdint.h>

typedef struct cr__mapped {
  _Atomic int32_t refs;
  uint8_t *data; /* NULL for an empty file */
  int64_t size;
} cr__mapped;

/* Maps a regular file; nothing is read yet. */
int cr__mapped_open(cr__mapped **out, const char *path);
void cr__mapped_retain(cr__mapped *map);
/* Takes a cr__mapped *; of void type so that a storage can call it. */
void cr__mapped_release(void *map);

#endif
