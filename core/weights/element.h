/* The element types of files, with their names in each format and the dtypes of the tensors that
 * they become.
 *
 * Most have the same bytes in a file and in memory and are mapped. The others are decoded: 8-bit
 * floats, unsigned integers, big-endian numbers, and numbers that PyTorch stores with the opposite
 * sign. */
#ifndef CR_ELEMENT_H
#define CR_ELEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How an element of a file becomes one of a tensor. */
enum cr__coding {
  CR__PLAIN,
  CR__UNSIGNED, /* widened to the next signed type; 64 bits stay 64 */
  CR__E4M3,     /* 8-bit floats without infinities, which become f16 */
  CR__E5M2      /* the upper byte of an f16 */
};

enum cr__format { CR__SAFETENSORS, CR__TORCH_STORAGE, CR__TORCH_DTYPE, CR__NPY, CR__FORMATS };

typedef struct cr__element {
  int32_t dtype; /* of the tensor; < 0: not supported */
  int32_t bits;  /* in the file */
  enum cr__coding coding;
  const char *names[CR__FORMATS]; /* NULL: the format does not have this type */
} cr__element;

/* Returns NULL if the format has no element type with this name. */
const cr__element *cr__element_named(enum cr__format format, const char *name, size_t bytes);
/* Returns the element type that is stored like a tensor's dtype. */
const cr__element *cr__element_of(int32_t dtype);
/* Returns the name for messages. */
const char *cr__element_name(const cr__element *element);
/* Decodes n elements. swapped: they are big-endian; negated: their sign is inverted. Returns false
 * if a value does not fit into the tensor's dtype. The addresses may be unaligned. */
bool cr__element_decode(const cr__element *element, bool swapped, bool negated, const uint8_t *data,
                        int64_t n, void *out);

#endif
