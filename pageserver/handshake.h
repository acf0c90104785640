// The server's side of a connection's first words, a step at a time: for an event loop that serves many strangers at
// once.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/base/fd.h"
#include "pageserver/stream.h"

namespace migrate {

/// One thread at a time. The socket is non-blocking, and cut when this is destroyed before take().
class Handshake {
 public:
  enum class Want { read, write };
  /// Asked once the peer has shown who it is (its certificate's name, "" on plain connections): a sentence that refuses
  /// it, or "" to let it in. The peer reads the sentence.
  using Admit = std::function<std::string(const std::string& peer_name)>;

  virtual ~Handshake() = default;
  /// Goes on as far as it can without waiting. What the socket must be ready for before the next call; nullopt: done.
  /// Throws Disconnected, or Refusal after telling the peer: then whoever closes the socket first reads what still
  /// comes (for a second at most), since a reset would undo our last words at the other end.
  virtual std::optional<Want> advance() = 0;
  /// After advance() was done.
  virtual std::unique_ptr<Stream> take() = 0;
  /// For poll(2), and for reading away what a refused peer says.
  virtual int fd() const = 0;
};

/// Plain TCP, see accept_plain().
std::unique_ptr<Handshake> start_accept_plain(Fd socket, Handshake::Admit admit = {});

}  // namespace migrate
