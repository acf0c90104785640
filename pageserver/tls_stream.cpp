#include "pageserver/tls_stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "pageserver/copying.h"
#include "pageserver/tcp.h"
#include "pageserver/verdict.h"

namespace migrate {

TlsStream::TlsStream(std::shared_ptr<TlsContext::Shared> shared, Fd socket, bool server)
    : Stream(std::move(socket), "", ""), shared_(std::move(shared)), server_(server) {
  set_peer(peer_address(fd()), "");
  const int flags = check(::fcntl(fd(), F_GETFL), "get flags of", "socket");
  check(::fcntl(fd(), F_SETFL, flags | O_NONBLOCK), "set flags of", "socket");
  socket_.fd = fd();
  ssl_.reset(SSL_new((server ? shared_->server : shared_->client).get()));
  openssl_check(ssl_ != nullptr, "set up TLS with", peer());
  BioPtr bio = make_socket_bio(shared_->bio_method.get(), socket_);
  BIO* raw = bio.release();
  SSL_set_bio(ssl_.get(), raw, raw);  // takes the one reference
  SSL_set_app_data(ssl_.get(), this);
  SSL_set_verify(ssl_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, note_certificate);
}

int TlsStream::note_certificate(int ok, X509_STORE_CTX* store) {
  void* ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
  auto* self = static_cast<TlsStream*>(SSL_get_app_data(static_cast<SSL*>(ssl)));
  if (X509* leaf = X509_STORE_CTX_get0_cert(store)) self->seen_name_ = certificate_name(leaf);
  return ok;
}

Stream::Step TlsStream::outcome(int result, const char* doing) {
  const int error = SSL_get_error(ssl_.get(), result);
  switch (error) {
    case SSL_ERROR_WANT_READ:
      return {0, Want::read};
    case SSL_ERROR_WANT_WRITE:
      return {0, Want::write};
    case SSL_ERROR_ZERO_RETURN:
      return {0, Want::closed};
    default:
      break;
  }
  const int reason = ERR_GET_REASON(ERR_peek_error());
  const bool silent = error == SSL_ERROR_SYSCALL || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING;
  if (silent || socket_.error != 0) {
    ERR_clear_error();
    if (socket_.error != 0) throw Disconnected(doing, peer(), socket_.error);
    throw Disconnected(peer() + " cut the connection without a word" +
                       (greeted_ ? "" : "; look at its log, and check that it speaks migrate's protocol"));
  }
  if (greeted_) throw Disconnected(std::string(doing) + " " + peer() + ": " + openssl_error());
  ERR_clear_error();
  const HandshakeFailure why =
      explain_handshake(shared_->config, server_, peer(), peer_name().empty() ? seen_name_ : "",
                        SSL_get_verify_result(ssl_.get()), reason);
  throw Refusal(why.object, why.remedy);
}

Stream::Step TlsStream::try_read(std::span<std::byte> out) {
  const std::lock_guard lock(mutex_);
  size_t total = 0;
  while (total < out.size()) {
    size_t n = 0;
    ERR_clear_error();
    if (SSL_pending(ssl_.get()) == 0) taken_ = 0;
    const auto to = out.subspan(total);
    const size_t size =
        copy_at_a_time(reinterpret_cast<uintptr_t>(to.data()), socket_.received_contents + taken_, to.size());
    const int result = SSL_read_ex(ssl_.get(), to.data(), size, &n);
    if (result == 1) {
      total += n;
      taken_ += n;
      if (shared_->config.bare) greeted_ = true;
      continue;
    }
    if (total > 0) break;  // whatever it is, it comes again with the next call
    return outcome(result, "read from");
  }
  return {total, Want::nothing};
}

void TlsStream::update_key_if_due(size_t written) {
  under_key_ += written;
  if (under_key_ < shared_->config.key_update_bytes) return;
  under_key_ = 0;
  openssl_check(SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) == 1, "change the key with", peer());
}

Stream::Step TlsStream::try_write(std::span<const std::byte> data) {
  const std::lock_guard lock(mutex_);
  size_t total = 0;
  while (total < data.size()) {
    size_t n = 0;
    ERR_clear_error();
    const auto from = data.subspan(total);
    // After a small record the next one's contents lie elsewhere.
    if (unfinished_ == 0)
      unfinished_ = copy_at_a_time(socket_.sent_contents, reinterpret_cast<uintptr_t>(from.data()), from.size());
    const int result = SSL_write_ex(ssl_.get(), from.data(), std::min(unfinished_, from.size()), &n);
    if (result == 1) {
      unfinished_ = 0;
      total += n;
      update_key_if_due(n);
      continue;
    }
    if (total > 0) break;
    const Step step = outcome(result, "send to");
    if (step.want == Want::closed) throw Disconnected(peer() + " ended the connection while we were sending");
    return step;
  }
  return {total, Want::nothing};
}

bool TlsStream::try_flush() {
  const std::lock_guard lock(mutex_);
  if (socket_.flush()) return true;
  if (socket_.error != 0) throw Disconnected("send to", peer(), socket_.error);
  return false;
}

bool TlsStream::buffered() const {
  const std::lock_guard lock(mutex_);
  return SSL_has_pending(ssl_.get()) == 1 || socket_.in_begin < socket_.in_end;
}

std::string TlsStream::description() const {
  const std::lock_guard lock(mutex_);
  return std::string(SSL_get_version(ssl_.get())) + " " + SSL_get_cipher_name(ssl_.get());
}

void TlsStream::finish() {
  {
    const std::lock_guard lock(mutex_);
    ERR_clear_error();
    if (SSL_shutdown(ssl_.get()) < 0) ERR_clear_error();
  }
  // A peer that is gone does not mind.
  try {
    while (!try_flush()) wait(Want::write, {}, "sending to");
  } catch (const Disconnected&) {
  }
  ::shutdown(fd(), SHUT_WR);
}

void TlsStream::refuse_plain_peer() {
  if (shared_->config.bare) throw Refusal(peer() + " speaks plain text instead of TLS", "give it --tls");
  const auto verdict = encode_verdict(
      "this side wants TLS 1.3 with certificates; give --cacert, --cert and --key, or --insecure on both sides");
  [[maybe_unused]] const ssize_t n = ::send(fd(), verdict.data(), verdict.size(), MSG_NOSIGNAL);
  throw Refusal(peer() + " speaks plain text instead of TLS", "give it --cacert, --cert and --key");
}

bool TlsStream::first_byte_is_tls() {
  // A TLS record starts with its type: 22 handshake, 21 alert.
  unsigned char first = 0;
  while (true) {
    const ssize_t n = ::recv(fd(), &first, 1, MSG_PEEK);
    if (n == 1) break;
    if (n == 0) throw Disconnected(peer() + " connected and left without a word");
    if (errno == EAGAIN) return false;
    if (errno != EINTR) throw Disconnected("read from", peer(), errno);
  }
  if (first != 22 && first != 21) refuse_plain_peer();
  return true;
}

std::optional<Stream::Want> TlsStream::advance_tls() {
  while (true) {
    ERR_clear_error();
    const int result = server_ ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get());
    if (result == 1) return {};
    const Step step = outcome(result, "shake hands with");
    if (step.want == Want::closed) throw Disconnected(peer() + " ended the connection during the TLS handshake");
    return try_flush() ? step.want : Want::write;
  }
}

std::string TlsStream::peer_refusal(const std::string& server_name) const {
  X509* certificate = SSL_get0_peer_certificate(ssl_.get());
  if (certificate == nullptr) return "no certificate was shown";
  if (!server_) {
    if (shared_->config.any_server_name || certificate_has_name(certificate, server_name)) return {};
    return "the server's certificate is for " + seen_name_ + ", not for " + printable(server_name);
  }
  const auto& accepted = shared_->config.accepted_peers;
  if (accepted.empty()) return {};
  for (const std::string& name : accepted)
    if (certificate_has_name(certificate, name)) return {};
  return "the certificate's name " + seen_name_ + " is not accepted here";
}

std::optional<Stream::Want> TlsStream::next_stage(const std::string& server_name, const Handshake::Admit& admit) {
  switch (stage_) {
    case Stage::first_byte:
      if (server_ && !first_byte_is_tls()) return Want::read;
      stage_ = Stage::tls;
      [[fallthrough]];
    case Stage::tls:
      if (const auto want = advance_tls()) return want;
      stage_ = Stage::flush;
      [[fallthrough]];
    case Stage::flush:
      if (!try_flush()) return Want::write;
      set_peer(peer() + " (" + seen_name_ + ")", seen_name_);
      refusal_ = peer_refusal(server_name);
      remedy_ = server_ ? "give --accept " + seen_name_ + " if it may send here"
                        : std::string("connect by a name in its certificate, or give ") +
                              (shared_->config.bare ? "--tls-no-cn-verify" : "--tls-name");
      if (refusal_.empty() && admit) {
        refusal_ = admit(seen_name_);
        remedy_ = "it may try again later";
      }
      verdicts_.emplace(refusal_);
      stage_ = Stage::verdicts;
      [[fallthrough]];
    case Stage::verdicts:
      if (!shared_->config.bare)
        if (const auto want = verdicts_->advance(*this)) return want;
      stage_ = Stage::done;
      [[fallthrough]];
    case Stage::done:
      break;
  }
  verdicts_.reset();
  if (!refusal_.empty()) throw Refusal(peer() + " is refused: " + refusal_, remedy_);
  greeted_ = !shared_->config.bare;
  return {};
}

std::optional<Stream::Want> TlsStream::advance_handshake(const std::string& server_name,
                                                         const Handshake::Admit& admit) {
  try {
    return next_stage(server_name, admit);
  } catch (const Refusal&) {
    socket_.flush();
    ::shutdown(fd(), SHUT_WR);
    throw;
  }
}

void TlsStream::handshake(const std::string& server_name, Deadline deadline) {
  try {
    while (const auto want = advance_handshake(server_name, {})) wait(*want, deadline, "in the TLS handshake with");
  } catch (const Refusal&) {
    linger_close(fd(), Deadline::in(std::chrono::seconds(1)));
    throw;
  }
}

}  // namespace migrate
