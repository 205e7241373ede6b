/* The server's side of TLS with OpenSSL: the bytes of a connection in, decrypted bytes out, and
 * back.
 *
 * Invariants: it does no input or output, and never prompts for a password. Bytes to send wait in a
 * memory BIO until cr_tls_output takes them. */
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>

#include "base/internal.h"

struct cr_tls {
  SSL *ssl;
  BIO *in, *out; /* owned by ssl */
  char *sent;
};

static int fail(int code, const char *what) {
  unsigned long problem = ERR_peek_error();
  const char *why = problem ? ERR_reason_error_string(problem) : NULL;
  if (problem && ERR_GET_LIB(problem) == ERR_LIB_SYS) why = strerror(ERR_GET_REASON(problem));
  ERR_clear_error();
  return cr__fail(code, "tls: %s: %s", what, why ? why : "OpenSSL does not say why");
}

static int no_password(char *buffer, int size, int writing, void *user) {
  (void)buffer, (void)size, (void)writing, (void)user;
  return -1;
}

CR_EXPORT int cr_tls_keys_open(cr_tls_keys **out, const char *certificate, const char *key) {
  ERR_clear_error();
  SSL_CTX *context = SSL_CTX_new(TLS_server_method());
  if (!context) return fail(CR_ENOMEM, "the context cannot be created");
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_default_passwd_cb(context, no_password);
  const char *wrong = NULL;
  if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1)
    wrong = certificate;
  else if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1 ||
           SSL_CTX_check_private_key(context) != 1)
    wrong = key;
  if (wrong) {
    int rc = fail(CR_EFORMAT, wrong);
    SSL_CTX_free(context);
    return rc;
  }
  *out = (cr_tls_keys *)context;
  return CR_OK;
}

CR_EXPORT void cr_tls_keys_close(cr_tls_keys *keys) { SSL_CTX_free((SSL_CTX *)keys); }

CR_EXPORT int cr_tls_new(cr_tls **out, cr_tls_keys *keys) {
  cr_tls *t = calloc(1, sizeof *t);
  SSL *ssl = t ? SSL_new((SSL_CTX *)keys) : NULL;
  BIO *from = ssl ? BIO_new(BIO_s_mem()) : NULL, *to = from ? BIO_new(BIO_s_mem()) : NULL;
  if (!to) {
    BIO_free(from);
    SSL_free(ssl);
    free(t);
    ERR_clear_error();
    return cr__fail(CR_ENOMEM, "tls: out of memory for another connection");
  }
  SSL_set_bio(ssl, from, to);
  SSL_set_accept_state(ssl);
  *t = (cr_tls){.ssl = ssl, .in = from, .out = to};
  *out = t;
  return CR_OK;
}

CR_EXPORT void cr_tls_free(cr_tls *t) {
  if (!t) return;
  SSL_free(t->ssl);
  free(t->sent);
  free(t);
}

CR_EXPORT int cr_tls_receive(cr_tls *t, const char *data, int32_t n) {
  if (BIO_write(t->in, data, n) != n)
    return cr__fail(CR_ENOMEM, "tls: out of memory for received bytes");
  return CR_OK;
}

CR_EXPORT int cr_tls_read(cr_tls *t, char *out, int32_t n) {
  ERR_clear_error();
  int got = SSL_read(t->ssl, out, n);
  if (got > 0) return got;
  switch (SSL_get_error(t->ssl, got)) {
  case SSL_ERROR_WANT_READ:
    return 0;
  case SSL_ERROR_ZERO_RETURN:
    return cr__fail(CR_ECLOSED, "tls: the peer ended the connection");
  default:
    return fail(CR_EFORMAT, "the received bytes cannot be decrypted");
  }
}

CR_EXPORT int cr_tls_write(cr_tls *t, const char *data, int32_t n) {
  ERR_clear_error();
  return n == 0 || SSL_write(t->ssl, data, n) == n ? CR_OK
                                                   : fail(CR_EIO, "the bytes cannot be encrypted");
}

CR_EXPORT int cr_tls_end(cr_tls *t) {
  ERR_clear_error();
  SSL_shutdown(t->ssl);
  ERR_clear_error();
  return CR_OK;
}

CR_EXPORT int64_t cr_tls_output(cr_tls *t, const char **out) {
  free(t->sent);
  t->sent = NULL;
  size_t n = BIO_pending(t->out);
  if (n == 0) return 0;
  t->sent = malloc(n);
  if (!t->sent) return cr__fail(CR_ENOMEM, "tls: out of memory for bytes to send");
  *out = t->sent;
  return BIO_read(t->out, t->sent, (int)n);
}
