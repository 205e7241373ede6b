/* NumPy's .npy: magic, version, a header that is a Python dictionary, the numbers.
 *
 * The header is read by a parser for just the three keys that it may have. */
#include <stdio.h>
#include <string.h>

#include "weights/weights.h"

enum { MAGIC_BYTES = 6, MAX_HEADER_BYTES = 1 << 20, ALIGNMENT = 64, MAX_DIMS = 32 };
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

/* 'text' or "text", without escapes. */
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
    if (r->p < r->end && *r->p == 'L') r->p++; /* Python 2 */
    shape[(*rank)++] = value;
    if (!take(r, ',') && peek(r) != ')') return false;
  }
  return true;
}

int cr__npy_read(cr_weights *w) {
  w->format = "npy";
  const uint8_t *data = w->map->data;
  int64_t size = w->map->size;
  if (size < 10 || data[6] < 1 || data[6] > 3)
    return cr__weights_fail(w, CR_EFORMAT, "damaged .npy file: no such version");
  int64_t first = data[6] == 1 ? 10 : 12;
  if (size < first) return cr__weights_fail(w, CR_EFORMAT, "the .npy file is truncated");
  int64_t length = data[6] == 1 ? cr__le16(data + 8) : cr__le32(data + 8);
  if (length > MAX_HEADER_BYTES || !cr__weights_within(w, first, length))
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
        return cr__weights_fail(w, CR_EUNSUPPORTED, "a .npy file of records is not read");
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
  /* '<f4': the byte order, then what it orders. */
  const cr__element *element = cr__element_named(CR__NPY, descr + 1, strlen(descr + 1));
  if (!strchr("<>|=", *descr) || !element || element->dtype < 0)
    return cr__weights_fail(w, CR_EUNSUPPORTED, "its dtype %s is not handled",
                            cr_printable(descr, strlen(descr)));
  int64_t step = 1;
  for (int64_t k = 0; k < rank; k++) {
    stride[k] = step;
    if (__builtin_mul_overflow(step, shape[k] ? shape[k] : 1, &step))
      return cr__weights_fail(w, CR_EFORMAT, "it claims more elements than any file holds");
  }
  int64_t left = size - first - length;
  cr__store store = {.position = first + length, .packed = left, .bytes = left};
  int32_t number = cr__weights_add_store(w, &store);
  if (number < 0) return number;
  char *name = cr__arena_string(&w->arena, "array", 5);
  if (!name) return CR_ENOMEM;
  cr__layout layout = {.element = element,
                       .swapped = *descr == '>' && element->bits > 8,
                       .rank = rank,
                       .shape = shape,
                       .stride = fortran ? stride : NULL};
  CR_TRY(cr__weights_add(w, name, &layout, number));
  if (w->entries[0].bytes != left)
    return cr__weights_fail(w, CR_EFORMAT, "its array needs %lld bytes, but %lld follow the header",
                            (long long)w->entries[0].bytes, (long long)left);
  return CR_OK;
}

CR_EXPORT int cr_npy_save(const char *path, const cr_tensor *t) {
  CR_TRY(cr__alive("npy_save", t));
  const char *code = cr__element_of(t->dtype)->names[CR__NPY];
  if (!code)
    return cr__fail(CR_EUNSUPPORTED, "%s: .npy has no %s; save as .safetensors or convert to f32",
                    path, cr_dtype_name(t->dtype));
  char header[512];
  int n = snprintf(header + 10, sizeof header - 10,
                   "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                   cr_dtype_size(t->dtype) > 1 ? '<' : '|', code) +
          10;
  for (int32_t k = 0; k < t->rank; k++)
    n += snprintf(header + n, sizeof header - (size_t)n, "%d, ", t->shape[k]);
  n += snprintf(header + n, sizeof header - (size_t)n, "), }");
  while ((n + 1) % ALIGNMENT) header[n++] = ' ';
  header[n++] = '\n';
  memcpy(header, magic, MAGIC_BYTES);
  header[6] = 1;
  header[7] = 0;
  header[8] = (char)((n - 10) & 0xff);
  header[9] = (char)((n - 10) >> 8);
  cr__output output;
  CR_TRY(cr__output_open(&output, path));
  CR_TRY(cr__output_write(&output, header, (size_t)n));
  CR_TRY(cr__output_tensor(&output, t));
  return cr__output_finish(&output);
}
