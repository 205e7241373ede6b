/* A file mapped into memory, shared by everything that looks into it.
 *
 * Invariants: the mapping is private and copy on write, so the file is never changed through it;
 * it goes away with the last reference, whichever thread drops that.
 *
 * A page that is gone when it is touched, because the file was cut short or its disk failed, is a
 * SIGBUS. Its handler says so with the file's name, deletes the files of cr_cleanup_add() and ends
 * the process with status 1. What was changed in place is seen by cr_weights_changed(). */
#ifndef CR_MAPPED_FILE_H
#define CR_MAPPED_FILE_H

#include <stdint.h>
#include <sys/stat.h>

typedef struct cr__mapped {
  _Atomic int32_t refs;
  uint8_t *data; /* NULL for an empty file */
  int64_t size;
  char *path;     /* for messages */
  char *absolute; /* the process may change its folder */
  struct stat at_open;
} cr__mapped;

/* Maps a regular file; nothing is read yet. */
int cr__mapped_open(cr__mapped **out, const char *path);
void cr__mapped_retain(cr__mapped *map);
/* Takes a cr__mapped *; of void type so that a storage can call it. */
void cr__mapped_release(void *map);

#endif
