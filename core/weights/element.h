/* The kinds of numbers that files hold, by the name that each format has for them, and the tensors'
 * types that they become.
 *
 * Most lie in a file as they lie in memory and are mapped. The others, 8-bit floats, unsigned
 * integers, numbers of another byte order and those stored with the opposite sign, are decoded. */
#ifndef CR_ELEMENT_H
#define CR_ELEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a number in a file becomes one of a tensor. */
enum cr__coding {
  CR__PLAIN,
  CR__UNSIGNED, /* to the next wider signed type; 64 bits stay 64 */
  CR__E4M3,     /* 8-bit floats without infinities, to float16 */
  CR__E5M2      /* the upper half of a float16 */
};

enum cr__format { CR__SAFETENSORS, CR__TORCH_STORAGE, CR__TORCH_DTYPE, CR__NPY, CR__FORMATS };

typedef struct cr__element {
  int32_t dtype; /* of the tensor; < 0: Crescent has none */
  int32_t bits;  /* in the file */
  enum cr__coding coding;
  const char *names[CR__FORMATS]; /* NULL: this format has no such numbers */
} cr__element;

/* NULL if the format has no numbers of this name. */
const cr__element *cr__element_named(enum cr__format format, const char *name, size_t bytes);
/* The numbers that lie in a file as in a tensor of this dtype. */
const cr__element *cr__element_of(int32_t dtype);
/* For messages. */
const char *cr__element_name(const cr__element *element);
/* Decodes n numbers: swapped are big-endian; negated get the opposite sign. False: one does not fit
 * the tensor's type. The places may be unaligned. */
bool cr__element_decode(const cr__element *element, bool swapped, bool negated, const uint8_t *data,
                        int64_t n, void *out);

#endif
