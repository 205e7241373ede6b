/* Protocol Buffers' wire format, read field by field without copying.
 *
 * Invariants: a field's bytes lie within the message it was read from; nothing is read past the
 * message's end. What a field means is the caller's business, unknown ones are passed over. */
#ifndef CR_PROTOBUF_H
#define CR_PROTOBUF_H

#include <stdbool.h>
#include <stdint.h>

/* How a field's value is written. Groups (3 and 4) are not used any more and count as damage. */
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
  uint64_t value; /* of a varint, or the bits of a fixed number */
  cr__proto body; /* of bytes: a string, a message or packed numbers */
} cr__proto_field;

/* A varint; false: it is cut off or longer than 64 bits. */
bool cr__proto_varint(cr__proto *m, uint64_t *out);
/* The next field: 1; 0 at the message's end; -1: damaged, and m->p is where. */
int cr__proto_next(cr__proto *m, cr__proto_field *field);
/* The bytes of a string or message. */
static inline int64_t cr__proto_size(const cr__proto *m) { return m->end - m->p; }

#endif
