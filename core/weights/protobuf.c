/* A reader of Protocol Buffers' wire format. */
#include "weights/protobuf.h"

#include "base/buffer.h"

bool cr__proto_varint(cr__proto *m, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 64 && m->p < m->end; shift += 7) {
    uint8_t byte = *m->p++;
    *out |= (uint64_t)(byte & 0x7f) << shift;
    if (byte < 0x80) return shift < 63 || byte <= 1;
  }
  return false;
}

/* Reads a fixed-width number. */
static bool fixed(cr__proto *m, int bytes, uint64_t *out) {
  if (m->end - m->p < bytes) return false;
  *out = bytes == 8 ? cr__le64(m->p) : cr__le32(m->p);
  m->p += bytes;
  return true;
}

int cr__proto_next(cr__proto *m, cr__proto_field *field) {
  if (m->p == m->end) return 0;
  uint64_t tag = 0, length = 0;
  if (!cr__proto_varint(m, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX) return -1;
  field->number = (uint32_t)(tag >> 3);
  field->wire = (enum cr__proto_wire)(tag & 7);
  field->value = 0;
  field->body = (cr__proto){m->p, m->p};
  switch (field->wire) {
  case CR__PROTO_VARINT:
    return cr__proto_varint(m, &field->value) ? 1 : -1;
  case CR__PROTO_64:
    return fixed(m, 8, &field->value) ? 1 : -1;
  case CR__PROTO_32:
    return fixed(m, 4, &field->value) ? 1 : -1;
  case CR__PROTO_BYTES:
    if (!cr__proto_varint(m, &length) || length > (uint64_t)(m->end - m->p)) return -1;
    field->body = (cr__proto){m->p, m->p + length};
    m->p += length;
    return 1;
  default:
    return -1;
  }
}
