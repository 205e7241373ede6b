/* Files that appear whole or not at all. */
#ifndef CR_OUTPUT_H
#define CR_OUTPUT_H

#include "base/internal.h"

/* A file being written under a temporary name. Finish renames it, abandon deletes it; the path must
 * live until then. After a failed write the file is abandoned already. */
typedef struct cr__output {
  const char *path;
  char *temp;
  int fd;
} cr__output;
int cr__output_open(cr__output *output, const char *path);
int cr__output_write(cr__output *output, const void *data, size_t bytes);
/* A tensor's elements in row-major order; of any device. */
int cr__output_tensor(cr__output *output, const cr_tensor *t);
int cr__output_finish(cr__output *output);
void cr__output_abandon(cr__output *output);

#endif
