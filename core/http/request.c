/* Parses HTTP/1.1 requests from the bytes of a connection with llhttp, the parser of Node.js.
 * (libwebsockets 4.1, which also runs on a libuv loop, does not support chunked bodies and accepts
 * two lengths.)
 *
 * Invariants: it does no input or output. Each call returns at the next event, so the bytes behind
 * it wait until the caller wants them. Framing bytes, which are all bytes outside a body (lines of
 * the head and of chunks, trailers), are counted since the last event, and their lines must end in
 * CR LF. So the same bytes cannot be a different request for a proxy that splits lines
 * otherwise. A method unknown to llhttp is parsed as GET and reported under its own name. */
#include <llhttp.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

enum {
  KEPT = 2048,   /* bytes of the head buffer that an idle connection keeps */
  HEADERS = 200, /* most headers of a request */
  METHOD = 32    /* most bytes of a method */
};

struct cr_http {
  llhttp_t parser;
  char *head; /* method, target, names and values, each followed by a NUL */
  int32_t used, room, limit;
  int32_t start; /* of the name or value being read */
  int32_t name;  /* start of the last name */
  int32_t framing;
  char last;           /* last framing byte */
  char method[METHOD]; /* bytes received so far */
  int32_t method_bytes;
  bool method_whole;
  bool in_head;
  int32_t headers, hosts, codings;
  bool coding_known;
  const char *why; /* why this parser refused, not llhttp */
  cr_http_event *event;
  const char *data; /* being parsed */
};

static cr_http *of(llhttp_t *parser) { return (cr_http *)parser; }

static int refuse(cr_http *h, int status, const char *why) {
  h->event->status = status;
  h->why = why;
  return HPE_USER;
}

static int append(cr_http *h, const char *bytes, size_t n, bool lower) {
  while ((size_t)h->room < (size_t)h->used + n) {
    int32_t room = h->room ? 2 * h->room : 512;
    char *grown = realloc(h->head, (size_t)room);
    if (!grown) return refuse(h, 503, "the server has no memory for the request's head");
    h->head = grown;
    h->room = room;
  }
  for (size_t i = 0; i < n; i++) {
    char c = bytes[i];
    h->head[h->used++] = lower && c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
  }
  return 0;
}

static int end_part(cr_http *h) {
  int rc = append(h, "", 1, false);
  h->start = h->used;
  return rc;
}

static int on_begin(llhttp_t *parser) {
  cr_http *h = of(parser);
  h->used = h->start = h->headers = h->hosts = h->codings = 0;
  h->coding_known = false;
  h->in_head = true;
  return 0;
}

static int on_text(llhttp_t *parser, const char *at, size_t n) {
  return of(parser)->in_head ? append(of(parser), at, n, false) : 0;
}

static int on_text_end(llhttp_t *parser) { return of(parser)->in_head ? end_part(of(parser)) : 0; }

static int on_method_end(llhttp_t *parser) {
  cr_http *h = of(parser);
  h->used = h->start;
  int rc = append(h, h->method, (size_t)h->method_bytes, false);
  return rc ? rc : end_part(h);
}

static int on_name(llhttp_t *parser, const char *at, size_t n) {
  return of(parser)->in_head ? append(of(parser), at, n, true) : 0;
}

static int on_name_end(llhttp_t *parser) {
  cr_http *h = of(parser);
  if (h->in_head && h->used == h->start) return refuse(h, 400, "a header has no name");
  if (h->in_head && ++h->headers > HEADERS) return refuse(h, 431, "there are too many headers");
  h->name = h->start;
  return on_text_end(parser);
}

static int on_value_end(llhttp_t *parser) {
  cr_http *h = of(parser);
  if (!h->in_head) return 0;
  while (h->used > h->start && (h->head[h->used - 1] == ' ' || h->head[h->used - 1] == '\t'))
    h->used--;
  int32_t start = h->start;
  int rc = end_part(h);
  if (rc != 0) return rc;
  const char *name = h->head + h->name, *value = h->head + start;
  if (strcmp(name, "host") == 0) h->hosts++;
  if (strcmp(name, "transfer-encoding") == 0) {
    h->codings++;
    h->coding_known = strcasecmp(value, "chunked") == 0;
  }
  return 0;
}

static int on_head_end(llhttp_t *parser) {
  cr_http *h = of(parser);
  h->in_head = false;
  if (parser->http_major != 1 || parser->http_minor > 1)
    return refuse(h, 505, "only HTTP/1.0 and HTTP/1.1 are supported");
  if (h->hosts > 1 || (h->hosts == 0 && parser->http_minor == 1))
    return refuse(h, 400, "exactly one Host header is needed");
  if (parser->method == HTTP_CONNECT || parser->method == HTTP_SOURCE)
    return refuse(h, 501, "this method is not supported");
  if (parser->content_length > INT64_MAX) return refuse(h, 400, "the Content-Length is too large");
  if (h->codings > 0) {
    if (parser->http_minor == 0) return refuse(h, 400, "HTTP/1.0 has no Transfer-Encoding");
    if (h->codings > 1 || !h->coding_known)
      return refuse(h, 501, "chunked is the only supported Transfer-Encoding");
  }
  /* The caller decides whether to upgrade to another protocol. */
  parser->upgrade = 0;
  cr_http_event *e = h->event;
  e->head = h->head;
  e->bytes = h->used;
  e->minor = parser->http_minor;
  e->keep_alive = llhttp_should_keep_alive(parser);
  e->length = parser->flags & F_CHUNKED ? -1 : (int64_t)parser->content_length;
  e->kind = CR_HTTP_HEAD;
  return HPE_PAUSED;
}

static int on_body(llhttp_t *parser, const char *at, size_t n) {
  cr_http *h = of(parser);
  if (n == 0) return 0;
  h->event->kind = CR_HTTP_BODY;
  h->event->first = (int32_t)(at - h->data);
  h->event->bytes = (int32_t)n;
  return HPE_PAUSED;
}

static int on_end(llhttp_t *parser) {
  of(parser)->event->kind = CR_HTTP_END;
  return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_message_begin = on_begin,
    .on_method_complete = on_method_end,
    .on_url = on_text,
    .on_url_complete = on_text_end,
    .on_header_field = on_name,
    .on_header_field_complete = on_name_end,
    .on_header_value = on_text,
    .on_header_value_complete = on_value_end,
    .on_headers_complete = on_head_end,
    .on_body = on_body,
    .on_message_complete = on_end,
};

CR_EXPORT int cr_http_new(cr_http **out, int32_t head_bytes) {
  cr_http *h = calloc(1, sizeof *h);
  if (!h) return cr__fail(CR_ENOMEM, "http: out of memory for another connection");
  llhttp_init(&h->parser, HTTP_REQUEST, &settings);
  h->limit = head_bytes;
  h->in_head = true;
  *out = h;
  return CR_OK;
}

CR_EXPORT void cr_http_free(cr_http *h) {
  if (!h) return;
  free(h->head);
  free(h);
}

/* Checks that lines end in CR LF and are not folded. */
static bool lines_hold(cr_http *h, const char *data, int32_t n) {
  for (int32_t i = 0; i < n; i++) {
    char c = data[i];
    if ((h->last == '\r') != (c == '\n')) return false;
    if (h->last == '\n' && (c == ' ' || c == '\t')) return false;
    h->last = c;
  }
  return true;
}

static bool is_known(const char *name, int32_t n) {
#define IS(number, id, text)                                                                       \
  (sizeof #text - 1 == (size_t)n && memcmp(name, #text, (size_t)n) == 0) ||
  return HTTP_METHOD_MAP(IS) false;
#undef IS
}

/* Of a method: others than capitals might be taken for a known one elsewhere, and llhttp refuses
 * them. */
static bool is_of_method(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* Reads on in the method; once it is whole llhttp has it, or what stands for it. Returns how many
 * bytes it took. */
static int32_t read_method(cr_http *h, const char *data, int32_t n, llhttp_errno_t *rc) {
  int32_t i = 0;
  if (h->method_bytes == 0)
    while (i < n && (data[i] == '\r' || data[i] == '\n')) i++;
  while (i < n && is_of_method(data[i]) && h->method_bytes < METHOD)
    h->method[h->method_bytes++] = data[i++];
  if (i == n) return i;
  h->method_whole = true;
  bool known = data[i] != ' ' || h->method_bytes == 0 || is_known(h->method, h->method_bytes);
  *rc = llhttp_execute(&h->parser, known ? h->method : "GET", known ? (size_t)h->method_bytes : 3);
  return i;
}

static int fail(cr_http *h, int status, const char *why) {
  if (h->event->status == 0) h->event->status = status;
  return cr__fail(CR_EFORMAT, "%s", why ? why : "the request cannot be understood");
}

CR_EXPORT int cr_http_read(cr_http *h, const char *data, int32_t n, cr_http_event *out) {
  *out = (cr_http_event){.kind = CR_HTTP_MORE, .used = n};
  h->event = out;
  h->data = data;
  bool head = h->in_head;
  llhttp_errno_t rc = HPE_OK;
  int32_t at = h->method_whole ? 0 : read_method(h, data, n, &rc);
  if (rc == HPE_OK && h->method_whole) rc = llhttp_execute(&h->parser, data + at, (size_t)(n - at));
  if (rc == HPE_PAUSED) {
    out->used = (int32_t)(llhttp_get_error_pos(&h->parser) - data);
    llhttp_resume(&h->parser);
  } else if (rc != HPE_OK) {
    return fail(h, rc == HPE_INVALID_VERSION ? 505 : 400,
                h->why ? h->why : llhttp_get_error_reason(&h->parser));
  }
  int32_t framing = out->kind == CR_HTTP_BODY ? out->first : out->used;
  if (!lines_hold(h, data, framing)) return fail(h, 400, "a line does not end in CR LF");
  h->framing += framing;
  if (h->framing > h->limit)
    return fail(h, head ? 431 : 400, "the head of the request or of a chunk is too long");
  if (out->kind == CR_HTTP_MORE) return out->kind;
  h->framing = 0;
  if (out->kind == CR_HTTP_BODY) h->last = 0;
  if (out->kind == CR_HTTP_END) {
    h->in_head = true;
    h->method_whole = false;
    h->method_bytes = 0;
    if (h->room > KEPT) {
      free(h->head);
      h->head = NULL;
      h->room = 0;
    }
  }
  return out->kind;
}
