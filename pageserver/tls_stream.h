// A Stream over TLS. For .cpp files of this folder only.
#pragma once

#include <mutex>

#include "pageserver/handshake.h"
#include "pageserver/tls_context.h"
#include "pageserver/tls_socket_bio.h"
#include "pageserver/verdict.h"

namespace migrate {

/// OpenSSL's SSL is not safe for a reader and a writer thread at once. All calls into it are non-blocking and made
/// under a mutex; waiting for the socket happens outside.
class TlsStream final : public Stream {
 public:
  TlsStream(std::shared_ptr<TlsContext::Shared> shared, Fd socket, bool server);
  /// Throws Refusal (also after telling the peer), Disconnected, TimedOut, Cancelled.
  void handshake(const std::string& server_name, Deadline deadline);
  /// The same a step at a time: what to wait for, nullopt when it is done. A Refusal has been told to the peer; read
  /// what still comes before closing (linger_close).
  std::optional<Want> advance_handshake(const std::string& server_name, const Handshake::Admit& admit);
  void finish() override;
  bool buffered() const override;
  std::string description() const override;

 protected:
  Step try_read(std::span<std::byte> out) override;
  Step try_write(std::span<const std::byte> data) override;
  bool try_flush() override;

 private:
  Step outcome(int result, const char* doing);
  enum class Stage { first_byte, tls, flush, verdicts, done };
  std::optional<Want> next_stage(const std::string& server_name, const Handshake::Admit& admit);
  [[noreturn]] void refuse_plain_peer();
  /// False: nothing has come yet. Throws Refusal if something else than TLS came.
  bool first_byte_is_tls();
  std::optional<Want> advance_tls();
  std::string peer_refusal(const std::string& server_name) const;
  void update_key_if_due(size_t written);

  const std::shared_ptr<TlsContext::Shared> shared_;
  const bool server_;
  mutable std::mutex mutex_;
  SocketBuffer socket_;
  SslPtr ssl_;
  Stage stage_ = Stage::first_byte;
  std::string refusal_, remedy_;  ///< of the peer, by us
  std::optional<VerdictExchange> verdicts_;
  bool greeted_ = false;    ///< verdicts were exchanged: from here on a TLS alert is an ordinary cut
  uint64_t under_key_ = 0;  ///< bytes written since the last change of the key
  size_t unfinished_ = 0;   ///< bytes of a write that did not come to its end: OpenSSL wants as many with the next call
  size_t taken_ = 0;        ///< bytes read of the record of which some are left
  std::string seen_name_;   ///< of the certificate that came, also of a refused one
  static int note_certificate(int ok, X509_STORE_CTX* store);
};

}  // namespace migrate
