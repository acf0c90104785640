#include "core/restore/messages.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

namespace migrate {
namespace {

/// As many as the kernel takes (SCM_MAX_FD).
constexpr size_t kMaxFds = 253;

struct Frame {
  uint32_t type;
  int32_t pid;
};

}  // namespace

SocketPair SocketPair::make() {
  std::array<int, 2> fds;
  check(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds.data()), "make a socket pair");
  return {Fd(fds[0]), Fd(fds[1])};
}

void send_message(int socket, Msg type, pid_t pid, std::span<const std::byte> body, std::span<const int> fds) {
  const Frame frame{static_cast<uint32_t>(type), pid};
  std::vector<std::byte> bytes(sizeof frame + body.size());
  std::memcpy(bytes.data(), &frame, sizeof frame);
  if (!body.empty()) std::memcpy(bytes.data() + sizeof frame, body.data(), body.size());
  send_fds(socket, bytes, fds);
}

std::optional<Message> receive_message(int socket) {
  std::vector<std::byte> bytes(kMaxBody + sizeof(Frame));
  iovec iov{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int)) + CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t n;
  do {
    n = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n == 0 || (n < 0 && errno == ECONNRESET)) return std::nullopt;
  check(n, "receive", "a message between restore processes");
  Message m;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET) continue;
    if (c->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials;
      std::memcpy(&credentials, CMSG_DATA(c), sizeof credentials);
      m.sender = credentials.pid;
    } else if (c->cmsg_type == SCM_RIGHTS) {
      for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
        m.fds.emplace_back(fd);
      }
    }
  }
  if (static_cast<size_t>(n) < sizeof(Frame) || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    throw Error("receive", "a message between restore processes", EMSGSIZE);
  Frame frame;
  std::memcpy(&frame, bytes.data(), sizeof frame);
  m.type = static_cast<Msg>(frame.type);
  m.pid = frame.pid;
  m.body.assign(bytes.begin() + sizeof frame, bytes.begin() + n);
  return m;
}

std::optional<Message> receive_message(int socket, const Deadline& deadline) {
  for (;;) {
    pollfd p{socket, POLLIN, 0};
    const int n = ::poll(&p, 1, deadline.poll_timeout());
    if (n > 0) return receive_message(socket);
    if (n < 0 && errno != EINTR) throw Error("wait for", "a message between restore processes", errno);
    if (n == 0) throw Error("wait for", "a restore process to answer", ETIMEDOUT);
  }
}

void send_current_exception(int socket, pid_t pid) noexcept {
  try {
    try {
      throw;
    } catch (const Refusal& e) {
      send_text(socket, Msg::refusal, pid, e.what());
    } catch (const Corrupt& e) {
      send_text(socket, Msg::corrupt, pid, e.what());
    } catch (const std::exception& e) {
      send_text(socket, Msg::error, pid, e.what());
    }
  } catch (...) {
    // The reader is gone; it notices our end by itself.
  }
}

void rethrow_failure(const Message& message) {
  const std::string text(message.text());
  // Refusal and Corrupt put their two parts together; the sentence is complete already.
  if (message.type == Msg::refusal) {
    const size_t cut = text.find("; ");
    if (cut == std::string::npos) throw Error(text);
    throw Refusal(text.substr(0, cut), text.substr(cut + 2));
  }
  if (message.type == Msg::corrupt) {
    constexpr std::string_view kMiddle = " is damaged: ";
    const size_t cut = text.find(kMiddle);
    if (cut == std::string::npos) throw Error(text);
    throw Corrupt(text.substr(0, cut), text.substr(cut + kMiddle.size()));
  }
  if (message.type == Msg::error) throw Error(text);
}

Message receive_answer(int socket, const Deadline& deadline, std::string_view who) {
  auto m = receive_message(socket, deadline);
  if (!m) throw Error(std::string(who) + " died");
  rethrow_failure(*m);
  return std::move(*m);
}

LoggerPtr socket_logger(int socket) {
  return callback_logger("restore", [socket](LogLevel level, std::string_view text) {
    const Frame frame{static_cast<uint32_t>(Msg::log), static_cast<int32_t>(level)};
    std::string bytes(reinterpret_cast<const char*>(&frame), sizeof frame);
    bytes.append(text.substr(0, kMaxBody));
    (void)::send(socket, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  });
}

}  // namespace migrate
