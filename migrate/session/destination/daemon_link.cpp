#include "migrate/session/destination/daemon_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "core/base/error.h"
#include "pageserver/page_stream.h"

namespace migrate {
namespace {

// A message's first byte.
constexpr char kPlace = 'P', kTokens = 'T', kGranted = 'G', kBusy = 'B', kStream = 'S';
constexpr size_t kTokenSize = std::tuple_size_v<StreamToken>;
constexpr size_t kMaxMessage = 1 + kTokenSize * kMaxPageStreams;

bool send_message(int socket, std::string_view text, int flags) {
  for (;;) {
    if (::send(socket, text.data(), text.size(), MSG_NOSIGNAL | flags) >= 0) return true;
    if (errno != EINTR) return false;
  }
}

}  // namespace

std::string DaemonLink::take_place(const Deadline& deadline) {
  if (!send_message(socket_.get(), {&kPlace, 1}, 0)) throw Error("ask", "the receiver's daemon for a place", errno);
  pollfd p{socket_.get(), POLLIN, 0};
  while (::poll(&p, 1, deadline.poll_timeout()) <= 0) {
    if (deadline.passed()) throw Error("ask", "the receiver's daemon for a place", ETIMEDOUT);
  }
  char answer[kMaxMessage];
  const ssize_t n = ::recv(socket_.get(), answer, sizeof answer, 0);
  if (n <= 0) throw Error("ask", "the receiver's daemon for a place", n == 0 ? EPIPE : errno);
  return answer[0] == kGranted ? "" : std::string(answer + 1, static_cast<size_t>(n) - 1);
}

void DaemonLink::expect_streams(std::span<const StreamToken> tokens) {
  std::string message(1, kTokens);
  for (const StreamToken& token : tokens) message.append(reinterpret_cast<const char*>(token.data()), token.size());
  if (!send_message(socket_.get(), message, 0)) throw Error("tell", "the receiver's daemon", errno);
}

Fd DaemonLink::next_stream() {
  std::vector<std::byte> kind;
  std::vector<Fd> sockets;
  pollfd p{socket_.get(), POLLIN, 0};
  if (::poll(&p, 1, 0) <= 0) return {};
  if (!recv_fds(socket_.get(), kind, sockets, 1)) throw Error("wait for page streams: the receiver's daemon is gone");
  if (kind != std::vector{std::byte{kStream}} || sockets.size() != 1) return {};
  return std::move(sockets.front());
}

std::pair<ServingEnd, Fd> ServingEnd::pair() {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "make", "a socket pair");
  return {ServingEnd(Fd(ends[0])), Fd(ends[1])};
}

std::optional<ServingRequest> ServingEnd::receive() {
  char message[kMaxMessage];
  const ssize_t n = ::recv(socket_.get(), message, sizeof message, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return {};
  ServingRequest request;
  if (n <= 0) return request;
  request.wants_place = message[0] == kPlace;
  for (size_t at = 1; message[0] == kTokens && at + kTokenSize <= static_cast<size_t>(n); at += kTokenSize) {
    std::memcpy(request.tokens.emplace_back().data(), message + at, kTokenSize);
  }
  return request;
}

void ServingEnd::answer_place(const std::string& refusal) {
  send_message(socket_.get(), refusal.empty() ? std::string(1, kGranted) : kBusy + refusal.substr(0, kMaxMessage - 1),
               MSG_DONTWAIT);
}

bool ServingEnd::pass_stream(const Fd& socket) {
  const std::byte kind{kStream};
  const int fd = socket.get();
  return try_send_fds(socket_.get(), {&kind, 1}, {&fd, 1});
}

}  // namespace migrate
