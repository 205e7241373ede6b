/* NumPy's .npy: a magic string, the version, a header that is a Python dictionary, and the data.
 * And .npz, a zip archive of such files.
 *
 * The parser of the header knows only the three keys that a header may have. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "weights/weights.h"
#include "weights/zip.h"

enum {
  MAGIC_BYTES = 6,
  MAX_HEADER_BYTES = 1 << 20,
  PACKED_HEADER = 4096, /* a deflated array's header must be within its first bytes, so many */
  ALIGNMENT = 64,
  MAX_DIMS = 32
};
static const char magic[] = "\x93NUMPY";

typedef struct reader {
  const char *p, *end;
} reader;

static char peek(reader *r) {
  while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t')) r->p++;
  return r->p < r->end ? *r->p : 0;
}

static bool take(reader *r, char c) {
  if (peek(r) != c) return false;
  r->p++;
  return true;
}

/* Reads 'text' or "text" without escapes. */
static bool take_string(reader *r, char *out, size_t size) {
  char quote = peek(r);
  if (quote != '\'' && quote != '"') return false;
  size_t n = 0;
  for (r->p++; r->p < r->end && *r->p != quote; r->p++) {
    if (*r->p == '\\' || n + 1 >= size) return false;
    out[n++] = *r->p;
  }
  out[n] = 0;
  return take(r, quote);
}

static bool take_word(reader *r, const char *word) {
  size_t n = strlen(word);
  peek(r);
  if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n) != 0) return false;
  r->p += n;
  return true;
}

static bool take_shape(reader *r, int64_t *rank, int64_t *shape) {
  if (!take(r, '(')) return false;
  for (*rank = 0; !take(r, ')');) {
    if (*rank == MAX_DIMS || peek(r) < '0' || *r->p > '9') return false;
    int64_t value = 0;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9') {
      int digit = *r->p++ - '0';
      if (value > (INT64_MAX - digit) / 10) return false;
      value = value * 10 + digit;
    }
    if (r->p < r->end && *r->p == 'L') r->p++; /* Python 2's suffix of long integers */
    shape[(*rank)++] = value;
    if (!take(r, ',') && peek(r) != ')') return false;
  }
  return true;
}

/* Reads one array: `size` bytes that begin with `data`, of which `known` are available. A deflated
 * array lies in `member`. Otherwise member is NULL and the array lies at `position` of the file. */
static int read_array(cr_weights *w, const char *name, const uint8_t *data, int64_t known,
                      int64_t size, int64_t position, const cr__store *member) {
  if (known < 10 || memcmp(data, magic, MAGIC_BYTES) != 0 || data[6] < 1 || data[6] > 3)
    return cr__weights_fail(w, CR_EFORMAT, "damaged .npy file: its version is unknown");
  int64_t first = data[6] == 1 ? 10 : 12;
  if (known < first) return cr__weights_fail(w, CR_EFORMAT, "the .npy file is truncated");
  int64_t length = data[6] == 1 ? cr__le16(data + 8) : cr__le32(data + 8);
  if (length > MAX_HEADER_BYTES || length > known - first)
    return cr__weights_fail(w, CR_EFORMAT,
                            "its .npy header claims %lld bytes, but the file holds only %lld",
                            (long long)length, (long long)size);
  reader r = {(const char *)data + first, (const char *)data + first + length};
  char key[32], descr[32] = "";
  int64_t rank = 0, shape[MAX_DIMS], stride[MAX_DIMS];
  bool fortran = false, ok = take(&r, '{');
  int seen = 0;
  while (ok && !take(&r, '}')) {
    int bit = 0;
    ok = take_string(&r, key, sizeof key) && take(&r, ':');
    if (!ok) break;
    if (strcmp(key, "descr") == 0) {
      bit = 1;
      if (peek(&r) == '[')
        return cr__weights_fail(w, CR_EUNSUPPORTED, "a .npy file of records is not supported");
      ok = take_string(&r, descr, sizeof descr);
    } else if (strcmp(key, "fortran_order") == 0) {
      bit = 2;
      fortran = take_word(&r, "True");
      ok = fortran || take_word(&r, "False");
    } else if (strcmp(key, "shape") == 0) {
      bit = 4;
      ok = take_shape(&r, &rank, shape);
    }
    if (!bit || seen & bit) ok = false;
    seen |= bit;
    if (ok && !take(&r, ',') && peek(&r) != '}') ok = false;
  }
  if (!ok || seen != 7 || peek(&r))
    return cr__weights_fail(w, CR_EFORMAT, "damaged .npy file: its header cannot be read");
  /* '<f4': the byte order, then the element type. */
  const cr__element *element = cr__element_named(CR__NPY, descr + 1, strlen(descr + 1));
  if (!strchr("<>|=", *descr) || !element || element->dtype < 0)
    return cr__weights_fail(w, CR_EUNSUPPORTED, "its dtype %s is not handled",
                            cr_printable(descr, strlen(descr)));
  int64_t step = 1;
  for (int64_t k = 0; k < rank; k++) {
    stride[k] = step;
    if (__builtin_mul_overflow(step, shape[k] ? shape[k] : 1, &step))
      return cr__weights_fail(w, CR_EFORMAT, "it claims more elements than any file can hold");
  }
  int64_t left = size - first - length;
  cr__store store = {.position = position + first + length, .packed = left, .bytes = left};
  int64_t width = element->bits / 8;
  if (member && (first + length) % width)
    return cr__weights_fail(
        w, CR_EUNSUPPORTED,
        "its data is not aligned to the size of its elements, which is not supported");
  int32_t number = cr__weights_add_store(w, member ? member : &store);
  if (number < 0) return number;
  cr__layout layout = {.element = element,
                       .offset = member ? (first + length) / width : 0,
                       .swapped = *descr == '>' && element->bits > 8,
                       .rank = rank,
                       .shape = shape,
                       .stride = fortran ? stride : NULL};
  CR_TRY(cr__weights_add(w, name, &layout, number));
  int64_t needed = w->entries[w->count - 1].bytes;
  if (needed != left)
    return cr__weights_fail(w, CR_EFORMAT, "its array needs %lld bytes, but %lld follow the header",
                            (long long)needed, (long long)left);
  return CR_OK;
}

int cr__npy_read(cr_weights *w) {
  w->format = "npy";
  char *name = cr__arena_string(&w->arena, "array", 5);
  if (!name) return CR_ENOMEM;
  return read_array(w, name, w->map->data, w->map->size, w->map->size, 0, NULL);
}

static bool ends_in_npy(const char *name) {
  size_t n = strlen(name);
  return n > 4 && strcmp(name + n - 4, ".npy") == 0;
}

bool cr__npz_is(const cr__zip *zip) {
  for (int64_t i = 0; i < zip->count; i++)
    if (!ends_in_npy(zip->members[i].name)) return false;
  return zip->count > 0;
}

int cr__npz_read(cr_weights *w, const cr__zip *zip) {
  w->format = "npz";
  for (int64_t i = 0; i < zip->count; i++) {
    const cr__zip_member *m = &zip->members[i];
    char *name = cr__arena_string(&w->arena, m->name, strlen(m->name) - 4);
    if (!name) return CR_ENOMEM;
    const uint8_t *packed = w->map->data + m->position;
    if (!m->deflated) {
      CR_TRY(read_array(w, name, packed, m->bytes, m->bytes, m->position, NULL));
      continue;
    }
    uint8_t head[PACKED_HEADER];
    int64_t known = cr__inflate_start(w->path, packed, m->packed, head,
                                      m->bytes < PACKED_HEADER ? m->bytes : PACKED_HEADER);
    if (known < 0) return (int)known;
    cr__store member = {.position = m->position,
                        .packed = m->packed,
                        .bytes = m->bytes,
                        .deflated = true,
                        .crc = m->crc};
    CR_TRY(read_array(w, name, head, known, m->bytes, 0, &member));
  }
  return CR_OK;
}

enum { HEADER_BYTES = 512 };

/* Makes the header of a tensor's file. Returns its length. */
static int make_header(const char *path, const cr_tensor *t, char *header) {
  CR_TRY(cr__alive("npy_save", t));
  const char *code = cr__element_of(t->dtype)->names[CR__NPY];
  if (!code)
    return cr__fail(CR_EUNSUPPORTED, "%s: .npy has no %s; save as .safetensors or convert to f32",
                    path, cr_dtype_name(t->dtype));
  int n = snprintf(header + 10, HEADER_BYTES - 10,
                   "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                   cr_dtype_size(t->dtype) > 1 ? '<' : '|', code) +
          10;
  for (int32_t k = 0; k < t->rank; k++)
    n += snprintf(header + n, HEADER_BYTES - (size_t)n, "%d, ", t->shape[k]);
  n += snprintf(header + n, HEADER_BYTES - (size_t)n, "), }");
  while ((n + 1) % ALIGNMENT) header[n++] = ' ';
  header[n++] = '\n';
  memcpy(header, magic, MAGIC_BYTES);
  header[6] = 1;
  header[7] = 0;
  header[8] = (char)((n - 10) & 0xff);
  header[9] = (char)((n - 10) >> 8);
  return n;
}

CR_EXPORT int cr_npy_save(const char *path, const cr_tensor *t) {
  char header[HEADER_BYTES];
  int n = make_header(path, t, header);
  if (n < 0) return n;
  cr__output output;
  CR_TRY(cr__output_open(&output, path));
  CR_TRY(cr__output_write(&output, header, (size_t)n));
  CR_TRY(cr__output_tensor(&output, t));
  return cr__output_finish(&output);
}

/* ---- archives ---- */

/* Appends a little-endian number of `bytes` bytes. */
static uint8_t *put(uint8_t *p, int bytes, uint64_t value) {
  for (int k = 0; k < bytes; k++) *p++ = (uint8_t)(value >> 8 * k);
  return p;
}

enum { LOCAL_BYTES = 30, CENTRAL_BYTES = 46, END_BYTES = 22, DATE = 33 /* 1980-01-01 */ };

/* Appends the fields that the local and the central record of a member share, from the required
 * version on. */
static uint8_t *put_member(uint8_t *p, uint32_t crc, uint64_t bytes, size_t name) {
  p = put(p, 2, 20);
  p = put(p, 2, 1 << 11); /* flag: names are UTF-8 */
  p = put(p, 2, 0);       /* method: stored */
  p = put(p, 4, (uint64_t)DATE << 16);
  p = put(p, 4, crc);
  p = put(p, 4, bytes);
  p = put(p, 4, bytes);
  p = put(p, 2, name);
  return put(p, 2, 0);
}

CR_EXPORT int cr_npz_save(const char *path, int32_t n, const char *const *names,
                          const cr_tensor *const *tensors) {
  cr__text directory = {0};
  uint64_t position = 0;
  cr__output output;
  CR_TRY(cr__output_open(&output, path));
  int rc = CR_OK;
  for (int32_t i = 0; i < n && rc >= 0; i++) {
    char header[HEADER_BYTES], name[512];
    uint8_t local[LOCAL_BYTES], central[CENTRAL_BYTES];
    int length = make_header(path, tensors[i], header);
    if (length < 0) {
      rc = length;
      break;
    }
    size_t letters = (size_t)snprintf(name, sizeof name, "%s.npy", names[i]);
    uint64_t data = (uint64_t)cr_numel(tensors[i]) * (uint64_t)cr_dtype_size(tensors[i]->dtype);
    uint64_t bytes = (uint64_t)length + data;
    if (letters >= sizeof name || n > 0xfffe || position + bytes > 0xffff0000u) {
      rc = cr__fail(CR_EUNSUPPORTED,
                    "%s: an .npz cannot hold more than 4 GB or names longer than 500 bytes: save "
                    "it as .safetensors",
                    path);
      break;
    }
    uint32_t crc = (uint32_t)crc32(0, (const uint8_t *)header, (uInt)length);
    if (data) crc = (uint32_t)crc32(crc, (const uint8_t *)cr_data(tensors[i]), (uInt)data);
    put_member(put(local, 4, 0x04034b50), crc, bytes, letters);
    uint8_t *p = put(put(central, 4, 0x02014b50), 2, 20);
    p = put_member(p, crc, bytes, letters);
    p = put(put(p, 4, 0), 4, 0); /* comment, disk, attributes */
    put(put(p, 2, 0), 4, position);
    cr__text_add(&directory, (const char *)central, CENTRAL_BYTES);
    cr__text_add(&directory, name, letters);
    rc = cr__output_write(&output, local, LOCAL_BYTES);
    if (rc >= 0) rc = cr__output_write(&output, name, letters);
    if (rc >= 0) rc = cr__output_write(&output, header, (size_t)length);
    if (rc >= 0) rc = cr__output_tensor(&output, tensors[i]);
    position += LOCAL_BYTES + letters + bytes;
  }
  if (rc >= 0 && directory.failed) rc = cr__fail(CR_ENOMEM, "%s: out of memory", path);
  if (rc >= 0) rc = cr__output_write(&output, directory.data ? directory.data : "", directory.size);
  uint8_t end[END_BYTES];
  uint8_t *p = put(put(end, 4, 0x06054b50), 4, 0);
  p = put(put(p, 2, (uint64_t)n), 2, (uint64_t)n);
  put(put(put(p, 4, directory.size), 4, position), 2, 0);
  if (rc >= 0) rc = cr__output_write(&output, end, END_BYTES);
  cr__text_free(&directory);
  if (rc < 0) {
    cr__output_abandon(&output);
    return rc;
  }
  return cr__output_finish(&output);
}
