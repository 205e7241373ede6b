/* The one way to write a file. */
#ifndef CR_OUTPUT_H
#define CR_OUTPUT_H

#include "base/internal.h"

/* A file that appears whole or not at all. It is written under a temporary name and renamed by
 * finish; abandon deletes it. What is no regular file (a device, a pipe, /dev/stdout) gets the
 * bytes at the end. The path must live until then. After a failed write the file is abandoned
 * already. */
typedef struct cr__output {
  const char *path; /* as it was named */
  char *target;     /* the same with its links followed; NULL: `through` gets the bytes */
  char *temp;       /* NULL: finished or abandoned */
  int fd;           /* of temp; holds a lock, which tells that its process lives */
  int through;      /* or -1 */
} cr__output;
int cr__output_open(cr__output *output, const char *path);
int cr__output_write(cr__output *output, const void *data, size_t bytes);
/* A tensor's elements in row-major order; of any device. */
int cr__output_tensor(cr__output *output, const cr_tensor *t);
int cr__output_finish(cr__output *output);
/* Twice is fine. */
void cr__output_abandon(cr__output *output);

/* Deletes the temporary files that dead processes left beside `path` (output_sweep.c). */
void cr__output_sweep(const char *path);
/* What follows the name in a temporary file's: ".tmp-PID-N". */
#define CR__TEMP_MARK ".tmp-"

#endif
