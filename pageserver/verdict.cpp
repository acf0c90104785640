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

VerdictExchange::VerdictExchange(std::string_view refusal)
    : refuses_(!refusal.empty()), out_(encode_verdict(refusal)) {}

std::optional<Stream::Want> VerdictExchange::read(Stream& stream, size_t until) {
  while (in_.size() < until) {
    std::byte buffer[kMaxRefusalText];
    const Stream::Step step = stream.try_read(std::span(buffer).first(std::min(sizeof buffer, until - in_.size())));
    in_.insert(in_.end(), buffer, buffer + step.bytes);
    if (step.bytes > 0) continue;
    if (step.want != Stream::Want::closed) return step.want;
    if (in_.empty()) throw Disconnected(stream.peer() + " ended the connection without a word; look at its log");
    throw Disconnected(stream.peer() + " ended the connection in the middle of a message");
  }
  return {};
}

std::optional<Stream::Want> VerdictExchange::advance(Stream& stream) {
  while (sent_ < out_.size()) {
    const Stream::Step step = stream.try_write(std::span<const std::byte>(out_).subspan(sent_));
    sent_ += step.bytes;
    if (step.bytes == 0) return step.want;
  }
  if (!stream.try_flush()) return Stream::Want::write;
  if (refuses_) return {};
  constexpr size_t kHeader = 8;
  if (const auto want = read(stream, kHeader)) return want;
  if (std::memcmp(in_.data(), kVerdictMagic, 4) != 0) {
    const bool tls = in_[0] == std::byte{0x16} && in_[1] == std::byte{3};
    throw Refusal(stream.peer() + (tls ? " speaks TLS, and this side was told --insecure" : " does not speak migrate"),
                  tls ? "use --insecure on both sides or on none" : "check address and port");
  }
  Unpacker in(std::span<const std::byte>(in_).subspan(4));
  const auto refused = in.get<uint8_t>();
  in.get<uint8_t>();
  const auto length = in.get<uint16_t>();
  if (refused == 0 && length == 0) return {};
  if (refused != 1 || length > kMaxRefusalText) throw Corrupt("the greeting of " + stream.peer(), "unknown verdict");
  if (const auto want = read(stream, kHeader + length)) return want;
  const std::string sentence(reinterpret_cast<const char*>(in_.data()) + kHeader, length);
  throw Refusal(stream.peer() + " refuses us", "it says: " + printable(sentence, kMaxRefusalText));
}

void exchange_verdicts(Stream& stream, std::string_view our_refusal, Deadline deadline) {
  VerdictExchange exchange(our_refusal);
  while (const auto want = exchange.advance(stream)) stream.wait(*want, deadline, "greeting");
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
