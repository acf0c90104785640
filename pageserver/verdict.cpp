#include "pageserver/verdict.h"

#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "pageserver/codec.h"

namespace migrate {

std::vector<std::byte> encode_verdict(std::string_view refusal) {
  refusal = refusal.substr(0, kMaxRefusalText);
  std::vector<std::byte> message(8 + refusal.size());
  std::memcpy(message.data(), kVerdictMagic, 4);
  Packer(std::span(message).subspan(4))
      .put<uint8_t>(refusal.empty() ? 0 : 1)
      .put<uint8_t>(0)
      .put(static_cast<uint16_t>(refusal.size()));
  if (!refusal.empty()) std::memcpy(message.data() + 8, refusal.data(), refusal.size());
  return message;
}

void exchange_verdicts(Stream& stream, std::string_view our_refusal, Deadline deadline) {
  stream.write(encode_verdict(our_refusal), deadline);
  if (!our_refusal.empty()) return;
  std::byte header[8];
  if (!stream.read_exact(header, deadline))
    throw Disconnected(stream.peer() + " ended the connection without a word; look at its log");
  if (std::memcmp(header, kVerdictMagic, 4) != 0) {
    const bool tls = header[0] == std::byte{0x16} && header[1] == std::byte{3};
    throw Refusal(stream.peer() + (tls ? " speaks TLS, and this side was told --insecure" : " does not speak migrate"),
                  tls ? "use --insecure on both sides or on none" : "check address and port");
  }
  Unpacker in(std::span<const std::byte>(header).subspan(4));
  const auto refused = in.get<uint8_t>();
  in.get<uint8_t>();
  const auto length = in.get<uint16_t>();
  if (refused == 0 && length == 0) return;
  if (refused != 1 || length > kMaxRefusalText) throw Corrupt("the greeting of " + stream.peer(), "unknown verdict");
  std::vector<std::byte> text(length);
  if (length > 0) stream.read_exact(text, deadline);
  std::string sentence(length, '\0');
  std::memcpy(sentence.data(), text.data(), length);
  throw Refusal(stream.peer() + " refuses us", "it says: " + printable(sentence, kMaxRefusalText));
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (const char c : text.substr(0, limit)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

void linger_close(int fd, Deadline deadline) {
  ::shutdown(fd, SHUT_WR);
  char sink[4096];
  while (!deadline.passed()) {
    const ssize_t n = ::recv(fd, sink, sizeof sink, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return;
    if (n > 0) continue;
    pollfd p{fd, POLLIN, 0};
    ::poll(&p, 1, deadline.poll_timeout());
  }
}

}  // namespace migrate
