/* The JSON reader: a recursive-descent parser with one character of look-ahead, which builds no
 * tree. */
#include "base/json.h"

#include <string.h>

enum { MAX_DEPTH = 32 };

static bool fail(cr__json *json, const char *why) {
  if (!json->error) json->error = why;
  return false;
}

void cr__json_begin(cr__json *json, const char *text, size_t n) {
  json->start = json->p = text;
  json->end = text + n;
  json->error = NULL;
}

char cr__json_peek(cr__json *json) {
  while (json->p < json->end &&
         (*json->p == ' ' || *json->p == '\t' || *json->p == '\n' || *json->p == '\r'))
    json->p++;
  return json->error || json->p == json->end ? 0 : *json->p;
}

bool cr__json_take(cr__json *json, char c) {
  if (json->error) return false;
  if (cr__json_peek(json) != c)
    return fail(json, json->p == json->end ? "it ends too early" : "an unexpected character");
  json->p++;
  return true;
}

bool cr__json_more(cr__json *json, char close, bool *first) {
  if (json->error) return false;
  char c = cr__json_peek(json);
  if (c == close) {
    json->p++;
    return false;
  }
  if (!*first && !cr__json_take(json, ',')) return false;
  *first = false;
  return true;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

static bool hex4(cr__json *json, uint32_t *out) {
  if (json->end - json->p < 4) return fail(json, "an escape is cut off");
  *out = 0;
  for (int i = 0; i < 4; i++) {
    int digit = hex_digit(*json->p++);
    if (digit < 0) return fail(json, "an escape has a wrong digit");
    *out = *out << 4 | (uint32_t)digit;
  }
  return true;
}

static size_t put_utf8(char *out, uint32_t c) {
  if (c < 0x80) {
    out[0] = (char)c;
    return 1;
  }
  if (c < 0x800) {
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = (char)(0xe0 | c >> 12);
    out[1] = (char)(0x80 | (c >> 6 & 63));
    out[2] = (char)(0x80 | (c & 63));
    return 3;
  }
  out[0] = (char)(0xf0 | c >> 18);
  out[1] = (char)(0x80 | (c >> 12 & 63));
  out[2] = (char)(0x80 | (c >> 6 & 63));
  out[3] = (char)(0x80 | (c & 63));
  return 4;
}

static bool escape(cr__json *json, char *out, size_t *n) {
  if (json->p == json->end) return fail(json, "a string is not closed");
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  char c = *json->p++;
  const char *simple = c ? strchr(from, c) : NULL;
  if (simple) {
    out[(*n)++] = to[simple - from];
    return true;
  }
  if (c != 'u') return fail(json, "an unknown escape");
  uint32_t code = 0, low = 0;
  if (!hex4(json, &code)) return false;
  if (code >= 0xdc00 && code < 0xe000) return fail(json, "an escape is half of a surrogate pair");
  if (code >= 0xd800 && code < 0xdc00) {
    if (json->end - json->p < 2 || json->p[0] != '\\' || json->p[1] != 'u')
      return fail(json, "an escape is half of a surrogate pair");
    json->p += 2;
    if (!hex4(json, &low)) return false;
    if (low < 0xdc00 || low >= 0xe000) return fail(json, "an escape is half of a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  *n += put_utf8(out + *n, code);
  return true;
}

bool cr__json_string(cr__json *json, cr__arena *arena, char **out, size_t *n) {
  if (!cr__json_take(json, '"')) return false;
  const char *close = json->p;
  while (close < json->end && *close != '"')
    close += *close == '\\' && close + 1 < json->end ? 2 : 1;
  if (close >= json->end) return fail(json, "a string is not closed");
  /* An escape is never shorter than the bytes that it stands for. */
  char *text = cr__arena_alloc(arena, (size_t)(close - json->p) + 1);
  if (!text) return fail(json, "out of memory");
  size_t used = 0;
  while (json->p < close) {
    unsigned char c = (unsigned char)*json->p;
    if (c == '\\') {
      json->p++;
      if (!escape(json, text, &used)) return false;
      continue;
    }
    if (c < 0x20) return fail(json, "a string has a control character");
    int length = cr__utf8_length(json->p, close);
    if (!length) return fail(json, "a string is not UTF-8");
    memcpy(text + used, json->p, (size_t)length);
    used += (size_t)length;
    json->p += length;
  }
  json->p = close + 1;
  text[used] = 0;
  *out = text;
  *n = used;
  return true;
}

bool cr__json_size(cr__json *json, int64_t *out) {
  char c = cr__json_peek(json);
  if (json->error) return false;
  if (c < '0' || c > '9') return fail(json, "a whole number is missing");
  const char *first = json->p;
  int64_t value = 0;
  while (json->p < json->end && *json->p >= '0' && *json->p <= '9') {
    int digit = *json->p++ - '0';
    if (value > (INT64_MAX - digit) / 10) return fail(json, "a number is too large");
    value = value * 10 + digit;
  }
  if (*first == '0' && json->p - first > 1) return fail(json, "a number begins with 0");
  if (json->p < json->end && strchr(".eE", *json->p) && *json->p)
    return fail(json, "a number is not whole");
  *out = value;
  return true;
}

static bool skip_digits(cr__json *json) {
  const char *first = json->p;
  while (json->p < json->end && *json->p >= '0' && *json->p <= '9') json->p++;
  return json->p > first || fail(json, "a number lacks digits");
}

static bool skip_number(cr__json *json) {
  if (*json->p == '-') json->p++;
  if (!skip_digits(json)) return false;
  if (json->p < json->end && *json->p == '.') {
    json->p++;
    if (!skip_digits(json)) return false;
  }
  if (json->p < json->end && (*json->p == 'e' || *json->p == 'E')) {
    json->p++;
    if (json->p < json->end && (*json->p == '+' || *json->p == '-')) json->p++;
    return skip_digits(json);
  }
  return true;
}

static bool skip_word(cr__json *json, const char *word) {
  size_t n = strlen(word);
  if ((size_t)(json->end - json->p) < n || memcmp(json->p, word, n) != 0)
    return fail(json, "an unexpected character");
  json->p += n;
  return true;
}

static bool skip(cr__json *json, int depth) {
  if (depth > MAX_DEPTH) return fail(json, "it is nested too deeply");
  char c = cr__json_peek(json);
  bool first = true;
  cr__arena scratch = {0};
  char *text;
  size_t n;
  switch (c) {
  case '{':
    json->p++;
    while (cr__json_more(json, '}', &first)) {
      bool ok = cr__json_string(json, &scratch, &text, &n);
      cr__arena_free(&scratch);
      if (!ok || !cr__json_take(json, ':') || !skip(json, depth + 1)) return false;
    }
    return !json->error;
  case '[':
    json->p++;
    while (cr__json_more(json, ']', &first))
      if (!skip(json, depth + 1)) return false;
    return !json->error;
  case '"': {
    bool ok = cr__json_string(json, &scratch, &text, &n);
    cr__arena_free(&scratch);
    return ok;
  }
  case 't':
    return skip_word(json, "true");
  case 'f':
    return skip_word(json, "false");
  case 'n':
    return skip_word(json, "null");
  case 0:
    return fail(json, "it ends too early");
  default:
    if (c == '-' || (c >= '0' && c <= '9')) return skip_number(json);
    return fail(json, "an unexpected character");
  }
}

bool cr__json_skip(cr__json *json) { return skip(json, 0); }

bool cr__json_end(cr__json *json) {
  cr__json_peek(json);
  return !json->error && (json->p == json->end || fail(json, "something follows its end"));
}
