/* Reads Protocol Buffers' wire format field by field, without copying.
 *
 * Invariants: a field's bytes lie within its message, and nothing is read past the message's end.
 * The caller knows what the fields mean, and skips unknown ones. */
#ifndef CR_PROTOBUF_H
#define CR_PROTOBUF_H

#include <stdbool.h>
#include <stdint.h>

/* How a field's value is encoded. Groups (3 and 4) are obsolete and count as damage. */
enum cr__proto_wire {
  CR__PROTO_VARINT = 0,
  CR__PROTO_64 = 1,
  CR__PROTO_BYTES = 2,
  CR__PROTO_32 = 5
};

typedef struct cr__proto {
  const uint8_t *p, *end;
} cr__proto;

typedef struct cr__proto_field {
  uint32_t number;
  enum cr__proto_wire wire;
  uint64_t value; /* of a varint, or the bits of a fixed-width number */
  cr__proto body; /* of length-delimited bytes: a string, a message or packed numbers */
} cr__proto_field;

/* Reads a varint. Returns false if it is truncated or longer than 64 bits. */
bool cr__proto_varint(cr__proto *m, uint64_t *out);
/* Reads the next field. Returns 1; 0 at the end of the message; -1 if it is damaged at m->p. */
int cr__proto_next(cr__proto *m, cr__proto_field *field);
/* Returns the number of bytes of a string or message. */
static inline int64_t cr__proto_size(const cr__proto *m) { return m->end - m->p; }

#endif
