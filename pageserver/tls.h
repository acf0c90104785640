// TLS 1.3 with certificates on both sides. OpenSSL stays inside tls.cpp.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "pageserver/handshake.h"
#include "pageserver/stream.h"

namespace migrate {

/// Files in PEM. Plain values.
struct TlsConfig {
  std::string cacert;                       ///< the CA (one or more) that signed the peer's certificate
  std::string cert;                         ///< our certificate, with intermediates if any
  std::string key;                          ///< our private key
  std::optional<std::string> crl;           ///< revocation lists: then every peer's CA needs one here
  std::vector<std::string> accepted_peers;  ///< subjectAltNames of which the peer must have one; empty: any
  /// Bytes written under one key before it is changed (AES-GCM is good for 2^24.5 records of 16 KiB).
  uint64_t key_update_bytes = uint64_t{64} << 30;
  /// Other programs' protocols over TLS: no verdicts after the handshake. A client whose certificate is refused learns
  /// it from its first read.
  bool bare = false;
  bool any_server_name = false;  ///< client: the server's certificate need not carry its name
};

/// Loaded files, made once and used for all connections; any thread. Throws Refusal naming the file that is missing,
/// unreadable, mismatched (key and certificate) or not PEM.
class TlsContext {
 public:
  explicit TlsContext(const TlsConfig& config);
  ~TlsContext();
  TlsContext(TlsContext&&) noexcept;
  TlsContext& operator=(TlsContext&&) noexcept;

  /// Client side, over a connected socket. `server_name`: the DNS name or IP address that the server's certificate must
  /// carry (what the user typed, or --tls-name). Returns only after the server accepted our certificate. A refusal by
  /// either side throws Refusal with one sentence; Disconnected, TimedOut, Cancelled as they are.
  std::unique_ptr<Stream> connect(Fd socket, const std::string& server_name, Deadline deadline,
                                  const StopEvent* stop = nullptr) const;
  /// Server side. Refusals are thrown here and told to the client. One slow or hostile client blocks only its caller,
  /// until the deadline.
  std::unique_ptr<Stream> accept(Fd socket, Deadline deadline, const StopEvent* stop = nullptr) const;

  /// Server side, a step at a time.
  std::unique_ptr<Handshake> start_accept(Fd socket, Handshake::Admit admit = {}) const;

  struct Shared;

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace migrate
