#include "pageserver/tls.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "pageserver/keys.h"
#include "pageserver/tls_context.h"
#include "pageserver/tls_stream.h"

namespace migrate {
namespace {

void check_given(const std::string& path, const char* what, const char* remedy) {
  if (path.empty()) throw Refusal(std::string("no ") + what + " was given", remedy);
  check_readable(path, what, remedy, "run as root, or name files that this user may read");
}

/// Who has it may do as root at the peer what we may.
void check_private(const std::string& key) {
  struct stat file {};
  if (::stat(key.c_str(), &file) != 0) return;  // it is looked at again
  if (file.st_uid != 0 && file.st_uid != ::geteuid())
    throw Refusal("the key " + key + " belongs to user " + std::to_string(file.st_uid),
                  "have it belong to root, and make a new one if it may have been seen");
  constexpr mode_t kOthers = S_IRWXO | S_IWGRP;
  if ((file.st_mode & kOthers) != 0)
    throw Refusal("the key " + key + " may be used by other users", "chmod 600 it, and make a new one if it was");
}

void load_crl(SSL_CTX* context, const std::string& path) {
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  X509_LOOKUP* lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
  if (lookup == nullptr || X509_load_crl_file(lookup, path.c_str(), X509_FILETYPE_PEM) <= 0)
    throw Refusal("cannot use the revocation list " + path + ": " + openssl_error(), "give one in PEM");
  X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
}

void load_files(SSL_CTX* context, const TlsConfig& config) {
  if (SSL_CTX_load_verify_file(context, config.cacert.c_str()) != 1)
    throw Refusal("cannot use the CA certificate " + config.cacert + ": " + openssl_error(), "give one in PEM");
  if (SSL_CTX_use_certificate_chain_file(context, config.cert.c_str()) != 1)
    throw Refusal("cannot use the certificate " + config.cert + ": " + openssl_error(), "give one in PEM");
  // Never ask for a passphrase on the terminal.
  SSL_CTX_set_default_passwd_cb(context, [](char*, int, int, void*) { return -1; });
  if (SSL_CTX_use_PrivateKey_file(context, config.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1)
    throw Refusal("cannot use the key " + config.key + ": " + openssl_error(),
                  "give the unencrypted PEM key that belongs to " + config.cert);
  if (config.crl) load_crl(context, *config.crl);
}

SslCtxPtr make_context(const SSL_METHOD* method, const TlsConfig& config) {
  SslCtxPtr context(SSL_CTX_new(method));
  openssl_check(context != nullptr, "set up", "TLS");
  SSL_CTX* c = context.get();
  openssl_check(SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) == 1 &&
                    SSL_CTX_set_ciphersuites(
                        c, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") == 1,
                "set up", "TLS");
  // No resumption: each connection shows its certificates.
  SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_num_tickets(c, 0);
  SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  load_files(c, config);
  return context;
}

}  // namespace

TlsContext::TlsContext(const TlsConfig& config) : shared_(std::make_shared<Shared>()) {
  constexpr const char* kMakeKeys = "make keys with `migrate keys`, and copy them there as it says";
  check_given(config.cacert, "CA certificate", kMakeKeys);
  check_given(config.cert, "certificate", kMakeKeys);
  check_given(config.key, "key", kMakeKeys);
  check_private(config.key);
  if (config.crl) check_given(*config.crl, "revocation list", "name a file that is there");
  shared_->config = config;
  shared_->bio_method = make_socket_bio_method();
  shared_->client = make_context(TLS_client_method(), config);
  shared_->server = make_context(TLS_server_method(), config);
}

TlsContext::~TlsContext() = default;
TlsContext::TlsContext(TlsContext&&) noexcept = default;
TlsContext& TlsContext::operator=(TlsContext&&) noexcept = default;

std::unique_ptr<Stream> TlsContext::connect(Fd socket, const std::string& server_name, Deadline deadline,
                                            const StopEvent* stop) const {
  auto stream = std::make_unique<TlsStream>(shared_, std::move(socket), false);
  stream->set_stop(stop);
  stream->handshake(server_name, deadline);
  stream->set_stop(nullptr);
  return stream;
}

std::unique_ptr<Stream> TlsContext::accept(Fd socket, Deadline deadline, const StopEvent* stop) const {
  auto stream = std::make_unique<TlsStream>(shared_, std::move(socket), true);
  stream->set_stop(stop);
  stream->handshake({}, deadline);
  stream->set_stop(nullptr);
  return stream;
}

namespace {

class TlsServerHandshake final : public Handshake {
 public:
  TlsServerHandshake(std::unique_ptr<TlsStream> stream, Admit admit)
      : stream_(std::move(stream)), admit_(std::move(admit)) {}
  std::optional<Want> advance() override {
    const auto want = stream_->advance_handshake({}, admit_);
    if (!want) return {};
    return *want == Stream::Want::write ? Want::write : Want::read;
  }
  std::unique_ptr<Stream> take() override { return std::move(stream_); }
  int fd() const override { return stream_->fd(); }

 private:
  std::unique_ptr<TlsStream> stream_;
  Admit admit_;
};

}  // namespace

std::unique_ptr<Handshake> TlsContext::start_accept(Fd socket, Handshake::Admit admit) const {
  return std::make_unique<TlsServerHandshake>(std::make_unique<TlsStream>(shared_, std::move(socket), true),
                                              std::move(admit));
}

}  // namespace migrate
