/* A file mapped into memory, shared by all tensors that view it.
 *
 * Invariants: the mapping is private and copy-on-write, so the file is never changed through it. It
 * is unmapped when the last reference is dropped, on whichever thread.
 *
 * If the file was truncated or its disk failed, reading a lost page raises SIGBUS. The handler
 * prints a message with the file's name, deletes the files of cr_cleanup_add() and ends the process
 * with status 1. cr_weights_changed() reports a file that was changed in place. */
#ifndef CR_MAPPED_FILE_H
#define CR_MAPPED_FILE_H

#include <stdint.h>
#include <sys/stat.h>

typedef struct cr__mapped {
  _Atomic int32_t refs;
  uint8_t *data; /* NULL for an empty file */
  int64_t size;
  char *path;     /* for messages */
  char *absolute; /* resolved, since the process may change its folder */
  struct stat at_open;
} cr__mapped;

/* Maps a regular file without reading it yet. */
int cr__mapped_open(cr__mapped **out, const char *path);
void cr__mapped_retain(cr__mapped *map);
/* Takes a cr__mapped *. The parameter is a void *, so that a storage can call the function. */
void cr__mapped_release(void *map);

#endif
