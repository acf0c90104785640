// The first message on every connection, both ways: welcome, or why not. In TLS 1.3 a client is done with its handshake
// before the server has looked at its certificate, so that it needs this to learn the outcome.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pageserver/stream.h"

namespace migrate {

/// {u32 magic "MIGW", u8 refused, u8 0, u16 text length, text}; an empty `refusal` is a welcome.
std::vector<std::byte> encode_verdict(std::string_view refusal);
inline constexpr char kVerdictMagic[4] = {'M', 'I', 'G', 'W'};
inline constexpr size_t kMaxRefusalText = 512;

/// The exchange, a step at a time. One thread.
class VerdictExchange {
 public:
  /// An empty `refusal` welcomes the peer.
  explicit VerdictExchange(std::string_view refusal);
  /// What to wait for before the next call; nullopt: both sides are welcome, or ours was refused and told so. Throws
  /// Refusal with the peer's sentence, or Refusal that the peer speaks something else.
  std::optional<Stream::Want> advance(Stream& stream);

 private:
  std::optional<Stream::Want> read(Stream& stream, size_t until);
  const bool refuses_;
  std::vector<std::byte> out_, in_;
  size_t sent_ = 0;
};

/// Sends ours (never blocking on the peer's), reads the peer's. Throws Refusal with the peer's sentence, or Refusal
/// that the peer speaks something else.
void exchange_verdicts(Stream& stream, std::string_view our_refusal, Deadline deadline);

/// Foreign text made fit for a terminal: printable ASCII, bounded.
std::string printable(std::string_view text, size_t limit = 256);

/// After a refusal was sent: ends our direction and waits briefly until the peer has read it; closing at once would
/// make the kernel answer unread input with a reset, which discards our last words at the other end.
void linger_close(int fd, Deadline deadline);

}  // namespace migrate
