// Connections as the options say: TLS, or plain with --insecure between processes of one user on one machine.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/deadline.h"
#include "migrate/session/base/options.h"
#include "pageserver/handshake.h"
#include "pageserver/stream.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate {

class Connector {
 public:
  /// Refusal if the options do not say how to protect the connection.
  explicit Connector(const LinkOptions& options);
  /// `first_words` go out in clear text before anything else (stream_token.h).
  std::unique_ptr<Stream> connect(const HostPort& to, const Deadline& deadline, const StopEvent* stop,
                                  std::string_view first_words = {}) const;
  std::unique_ptr<Stream> accept(Fd socket, const Deadline& deadline, const StopEvent* stop) const;
  /// accept(), a step at a time. Refusal at once for a connection that --insecure does not take.
  std::unique_ptr<Handshake> start_accept(Fd socket, Handshake::Admit admit) const;

 private:
  /// Refusal for a plain connection with somebody else. `to`: for the sentence.
  void check_same_user(int socket, const std::string& peer) const;
  LinkOptions options_;
  std::optional<TlsContext> tls_;
};

/// A sentence about whom a receiver with these options trusts, where that is more than people may expect; else "".
std::string who_is_taken(const LinkOptions& options);

}  // namespace migrate
