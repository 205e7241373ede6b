/* The one way to write a file. */
#ifndef CR_OUTPUT_H
#define CR_OUTPUT_H

#include "base/internal.h"

/* A file that appears completely or not at all. It is written under a temporary name, which
 * `finish` renames and `abandon` deletes. If the target is not a regular file (a device, a pipe,
 * /dev/stdout), `finish` copies the bytes to it. `path` must live until then. A failed write
 * abandons the file. */
typedef struct cr__output {
  const char *path; /* as the caller named it */
  char *target;     /* `path` with its links followed; NULL: the bytes go to `through` */
  char *temp;       /* NULL: finished or abandoned */
  int fd;           /* of temp; its lock tells other processes that this one lives */
  int through;      /* of a target that is not a regular file, or -1 */
} cr__output;
int cr__output_open(cr__output *output, const char *path);
int cr__output_write(cr__output *output, const void *data, size_t bytes);
/* Writes a tensor's elements in row-major order, from any device. */
int cr__output_tensor(cr__output *output, const cr_tensor *t);
int cr__output_finish(cr__output *output);
/* A second call does nothing. */
void cr__output_abandon(cr__output *output);

/* Deletes the temporary files that dead processes left in the folder of `path` (output_sweep.c). */
void cr__output_sweep(const char *path);
/* Separates the name from PID-N in the name of a temporary file. */
#define CR__TEMP_MARK ".tmp-"

#endif
