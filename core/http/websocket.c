/* The server's side of a WebSocket with wslay: messages from bytes, and bytes from messages.
 *
 * Invariants: it does no input or output. Answers to pings and to the peer's close are put into the
 * output. Memory holds at most one received message of the allowed size, and as many small ones as
 * fit into wslay's buffer. */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <wslay/wslay.h>

#include "base/internal.h"

typedef struct message {
  struct message *next;
  int32_t kind, status;
  int64_t bytes;
  char data[];
} message;

_Static_assert((int)CR_WS_TEXT == (int)WSLAY_TEXT_FRAME &&
                   (int)CR_WS_BINARY == (int)WSLAY_BINARY_FRAME &&
                   (int)CR_WS_CLOSE == (int)WSLAY_CONNECTION_CLOSE &&
                   (int)CR_WS_PING == (int)WSLAY_PING,
               "kinds are wslay's opcodes");

struct cr_ws {
  wslay_event_context_ptr wslay;
  message *first, *last, *given; /* received messages; the one that the caller uses */
  const char *data;              /* being parsed */
  int32_t left;
  bool no_memory, told_end;
  char *out;
  int64_t used, room;
};

static ssize_t on_receive(wslay_event_context_ptr wslay, uint8_t *buffer, size_t n, int flags,
                          void *user) {
  (void)flags;
  cr_ws *w = user;
  if (w->left == 0 || w->first) {
    wslay_event_set_error(wslay, WSLAY_ERR_WOULDBLOCK);
    return -1;
  }
  if (n > (size_t)w->left) n = (size_t)w->left;
  memcpy(buffer, w->data, n);
  w->data += n;
  w->left -= (int32_t)n;
  return (ssize_t)n;
}

static ssize_t on_send(wslay_event_context_ptr wslay, const uint8_t *data, size_t n, int flags,
                       void *user) {
  (void)flags;
  cr_ws *w = user;
  if (w->used + (int64_t)n > w->room) {
    int64_t room = 2 * w->room > w->used + (int64_t)n ? 2 * w->room : w->used + (int64_t)n;
    char *grown = realloc(w->out, (size_t)room);
    if (!grown) {
      wslay_event_set_error(wslay, WSLAY_ERR_NOMEM);
      return -1;
    }
    w->out = grown;
    w->room = room;
  }
  memcpy(w->out + w->used, data, n);
  w->used += (int64_t)n;
  return (ssize_t)n;
}

static void on_message(wslay_event_context_ptr wslay, const struct wslay_event_on_msg_recv_arg *arg,
                       void *user) {
  (void)wslay;
  cr_ws *w = user;
  if (arg->opcode == WSLAY_PING || arg->opcode == WSLAY_PONG) return;
  message *m = malloc(sizeof *m + arg->msg_length);
  if (!m) {
    w->no_memory = true;
    return;
  }
  bool close = arg->opcode == WSLAY_CONNECTION_CLOSE;
  size_t skip = close && arg->msg_length >= 2 ? 2 : 0; /* the status precedes the reason */
  m->next = NULL;
  m->kind = arg->opcode;
  m->status = arg->status_code;
  m->bytes = (int64_t)(arg->msg_length - skip);
  if (m->bytes > 0) memcpy(m->data, arg->msg + skip, (size_t)m->bytes);
  if (w->last) w->last->next = m;
  w->last = m;
  if (!w->first) w->first = m;
}

CR_EXPORT int cr_ws_accept(const char *key, char *out) {
  uint8_t text[128], sum[EVP_MAX_MD_SIZE];
  unsigned sum_bytes = 0;
  int n = snprintf((char *)text, sizeof text, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
  if (n < 0 || n >= (int)sizeof text) return cr__fail(CR_EINVAL, "websocket: the key is too long");
  if (EVP_Digest(text, (size_t)n, sum, &sum_bytes, EVP_sha1(), NULL) != 1)
    return cr__fail(CR_EUNSUPPORTED, "websocket: OpenSSL has no SHA-1 here");
  EVP_EncodeBlock((uint8_t *)out, sum, (int)sum_bytes);
  return CR_OK;
}

CR_EXPORT int cr_ws_new(cr_ws **out, int64_t max_bytes) {
  static const struct wslay_event_callbacks callbacks = {
      .recv_callback = on_receive, .send_callback = on_send, .on_msg_recv_callback = on_message};
  cr_ws *w = calloc(1, sizeof *w);
  if (!w || wslay_event_context_server_init(&w->wslay, &callbacks, w) != 0) {
    free(w);
    return cr__fail(CR_ENOMEM, "websocket: out of memory for another connection");
  }
  wslay_event_config_set_max_recv_msg_length(w->wslay, (uint64_t)max_bytes);
  *out = w;
  return CR_OK;
}

CR_EXPORT void cr_ws_free(cr_ws *w) {
  if (!w) return;
  for (message *m = w->first, *next; m; m = next) {
    next = m->next;
    free(m);
  }
  free(w->given);
  wslay_event_context_free(w->wslay);
  free(w->out);
  free(w);
}

static int give(cr_ws *w, cr_ws_message *out) {
  message *m = w->given = w->first;
  w->first = m->next;
  if (!w->first) w->last = NULL;
  out->data = m->data;
  out->bytes = m->bytes;
  out->status = m->status;
  return out->kind = m->kind;
}

CR_EXPORT int cr_ws_read(cr_ws *w, const char *data, int32_t n, cr_ws_message *out) {
  *out = (cr_ws_message){.kind = CR_WS_MORE};
  free(w->given);
  w->given = NULL;
  if (!w->first) {
    w->data = data;
    w->left = n;
    if (wslay_event_recv(w->wslay) != 0 || w->no_memory)
      return cr__fail(CR_ENOMEM, "websocket: out of memory for a message");
    out->used = n - w->left;
  }
  if (w->first) return give(w, out);
  if (wslay_event_get_read_enabled(w->wslay) || w->told_end) return CR_WS_MORE;
  /* The input breaks the protocol or is too large, so wslay closes the connection. */
  w->told_end = true;
  return out->kind = CR_WS_CLOSE;
}

static int queued(int rc) {
  if (rc == 0) return CR_OK;
  if (rc == WSLAY_ERR_NO_MORE_MSG) return cr__fail(CR_ECLOSED, "websocket: it is closed");
  if (rc == WSLAY_ERR_NOMEM) return cr__fail(CR_ENOMEM, "websocket: out of memory for a message");
  return cr__fail(CR_EINVAL, "websocket: this message cannot be sent");
}

CR_EXPORT int cr_ws_send(cr_ws *w, int32_t kind, const char *data, int64_t n) {
  struct wslay_event_msg m = {
      .opcode = (uint8_t)kind, .msg = (const uint8_t *)data, .msg_length = (size_t)n};
  return queued(wslay_event_queue_msg(w->wslay, &m));
}

CR_EXPORT int cr_ws_close(cr_ws *w, int32_t status, const char *reason, int32_t n) {
  return queued(
      wslay_event_queue_close(w->wslay, (uint16_t)status, (const uint8_t *)reason, (size_t)n));
}

CR_EXPORT int64_t cr_ws_output(cr_ws *w, const char **out) {
  w->used = 0;
  while (wslay_event_want_write(w->wslay)) {
    if (wslay_event_send(w->wslay) != 0)
      return cr__fail(CR_ENOMEM, "websocket: out of memory for bytes to send");
  }
  *out = w->out;
  return w->used;
}
