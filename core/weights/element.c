/* The table of element types in files, and their decoding. */
#include "weights/element.h"

#include <math.h>
#include <string.h>

#include "base/internal.h"

/* The names in each row: safetensors, PyTorch's storages, PyTorch's dtypes, NumPy (without the byte
 * order). */
static const cr__element elements[] = {
    {CR_F32, 32, CR__PLAIN, {"F32", "FloatStorage", "float32", "f4"}},
    {CR_F16, 16, CR__PLAIN, {"F16", "HalfStorage", "float16", "f2"}},
    {CR_BF16, 16, CR__PLAIN, {"BF16", "BFloat16Storage", "bfloat16", NULL}},
    {CR_F64, 64, CR__PLAIN, {"F64", "DoubleStorage", "float64", "f8"}},
    {CR_U8, 8, CR__PLAIN, {"U8", "ByteStorage", "uint8", "u1"}},
    {CR_I8, 8, CR__PLAIN, {"I8", "CharStorage", "int8", "i1"}},
    {CR_I16, 16, CR__PLAIN, {"I16", "ShortStorage", "int16", "i2"}},
    {CR_I32, 32, CR__PLAIN, {"I32", "IntStorage", "int32", "i4"}},
    {CR_I64, 64, CR__PLAIN, {"I64", "LongStorage", "int64", "i8"}},
    {CR_BOOL, 8, CR__PLAIN, {"BOOL", "BoolStorage", "bool", "b1"}},
    {CR_I32, 16, CR__UNSIGNED, {"U16", NULL, "uint16", "u2"}},
    {CR_I64, 32, CR__UNSIGNED, {"U32", NULL, "uint32", "u4"}},
    {CR_I64, 64, CR__UNSIGNED, {"U64", NULL, "uint64", "u8"}},
    {CR_F16, 8, CR__E4M3, {"F8_E4M3", NULL, "float8_e4m3fn", NULL}},
    {CR_F16, 8, CR__E5M2, {"F8_E5M2", NULL, "float8_e5m2", NULL}},
    {-1, 8, CR__PLAIN, {"F8_E8M0", NULL, "float8_e8m0fnu", NULL}},
    {-1, 8, CR__PLAIN, {"F8_E4M3FNUZ", NULL, "float8_e4m3fnuz", NULL}},
    {-1, 8, CR__PLAIN, {"F8_E5M2FNUZ", NULL, "float8_e5m2fnuz", NULL}},
    {-1, 6, CR__PLAIN, {"F6_E2M3", NULL, NULL, NULL}},
    {-1, 6, CR__PLAIN, {"F6_E3M2", NULL, NULL, NULL}},
    {-1, 4, CR__PLAIN, {"F4", NULL, NULL, NULL}},
    {-1, 8, CR__PLAIN, {NULL, NULL, "float4_e2m1fn_x2", NULL}},
    {-1, 32, CR__PLAIN, {NULL, NULL, "complex32", NULL}},
    {-1, 64, CR__PLAIN, {"C64", "ComplexFloatStorage", "complex64", "c8"}},
    {-1, 128, CR__PLAIN, {NULL, "ComplexDoubleStorage", "complex128", "c16"}},
    {-1, 8, CR__PLAIN, {NULL, "QUInt8Storage", "quint8", NULL}},
    {-1, 8, CR__PLAIN, {NULL, "QInt8Storage", "qint8", NULL}},
    {-1, 32, CR__PLAIN, {NULL, "QInt32Storage", "qint32", NULL}},
    {-1, 8, CR__PLAIN, {NULL, "QUInt4x2Storage", "quint4x2", NULL}},
    {-1, 8, CR__PLAIN, {NULL, "QUInt2x4Storage", "quint2x4", NULL}},
};
enum { ELEMENTS = sizeof elements / sizeof *elements };

const cr__element *cr__element_named(enum cr__format format, const char *name, size_t bytes) {
  for (int i = 0; i < ELEMENTS; i++) {
    const char *known = elements[i].names[format];
    if (known && strlen(known) == bytes && memcmp(known, name, bytes) == 0) return &elements[i];
  }
  return NULL;
}

const cr__element *cr__element_of(int32_t dtype) {
  const cr__element *e = elements;
  while (e->dtype != dtype || e->coding != CR__PLAIN) e++;
  return e;
}

const char *cr__element_name(const cr__element *element) {
  const char *const *names = element->names;
  return names[CR__TORCH_DTYPE] ? names[CR__TORCH_DTYPE] : names[CR__SAFETENSORS];
}

/* float16 represents every value of E4M3 exactly: the smallest, 2^-9, is a normal number there. */
static uint16_t e4m3_to_half(uint8_t code) {
  uint16_t sign = (uint16_t)(code & 0x80) << 8, exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return sign | 0x7e00;
  if (exponent) return (uint16_t)(sign | (exponent + 8) << 10 | mantissa << 7);
  return sign | cr__float_to_half(ldexpf(mantissa, -9));
}

static uint64_t take(const uint8_t *p, int bytes, bool swapped) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)p[swapped ? bytes - 1 - i : i] << 8 * i;
  return value;
}

/* Returns the bits of the negated value: floats flip their sign bit, integers wrap around. */
static uint64_t opposite(uint64_t bits, int32_t dtype, int bytes) {
  return cr__is_float(dtype) ? bits ^ (uint64_t)1 << (8 * bytes - 1) : 0 - bits;
}

static uint64_t decoded(const cr__element *element, uint64_t bits, bool negated, int bytes) {
  if (element->coding == CR__E4M3) bits = e4m3_to_half((uint8_t)bits);
  if (element->coding == CR__E5M2) bits <<= 8;
  return negated ? opposite(bits, element->dtype, bytes) : bits;
}

/* Checkpoints of 8-bit floats are large, but have only 256 different values, so a table decodes
 * them. */
static void decode_bytes(const cr__element *element, bool negated, const uint8_t *data, int64_t n,
                         uint8_t *out) {
  uint16_t table[256];
  for (int i = 0; i < 256; i++) table[i] = (uint16_t)decoded(element, (uint64_t)i, negated, 2);
  for (int64_t i = 0; i < n; i++) memcpy(out + 2 * i, &table[data[i]], 2);
}

bool cr__element_decode(const cr__element *element, bool swapped, bool negated, const uint8_t *data,
                        int64_t n, void *out) {
  int from = element->bits / 8, to = cr_dtype_size(element->dtype);
  uint8_t *put = out;
  if (from == 1 && to == 2) {
    decode_bytes(element, negated, data, n, put);
    return true;
  }
  for (int64_t i = 0; i < n; i++, data += from, put += to) {
    uint64_t bits = take(data, from, swapped);
    if (element->coding == CR__UNSIGNED && bits > INT64_MAX) return false;
    bits = decoded(element, bits, negated, to);
    for (int k = 0; k < to; k++) put[k] = (uint8_t)(bits >> 8 * k);
  }
  return true;
}
