#include "core/files/reset_connections.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "core/base/procfs.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

constexpr int kPatience = 1000;  ///< milliseconds, for packets that go nowhere
constexpr uint8_t kClosed = 7, kListens = 10;
constexpr linger kReset{1, 0};

bool set_reset(int fd) { return ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &kReset, sizeof kReset) == 0; }

/// connect(2) to nothing resets what is connected (tcp_disconnect()), whoever else has it open; where that is not
/// possible for now, the last close(2) does.
void reset_connection(int pidfd, int number) {
  const Fd fd = get_remote_fd(pidfd, number);
  if (try_socket_option(fd.get(), SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP) return;
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd.get(), IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return;
  if (info.tcpi_state == kClosed || info.tcpi_state == kListens) return;
  sockaddr nothing{};
  nothing.sa_family = AF_UNSPEC;
  if (::connect(fd.get(), &nothing, sizeof nothing) != 0) set_reset(fd.get());
}

struct Loopback {
  sockaddr_storage raw{};
  socklen_t length = sizeof(sockaddr_in);
  explicit Loopback(int family) {
    raw.ss_family = static_cast<sa_family_t>(family);
    if (family == AF_INET6) {
      length = sizeof(sockaddr_in6);
      reinterpret_cast<sockaddr_in6&>(raw).sin6_addr = in6addr_loopback;
    } else {
      reinterpret_cast<sockaddr_in&>(raw).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
  }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&raw); }
};

Fd new_tcp(int family) {
  return Fd(check(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "make", "a TCP socket"));
}

Fd listen_on_loopback(int family) {
  Fd fd = new_tcp(family);
  Loopback name(family);
  if (::bind(fd.get(), name.get(), name.length) != 0 || ::listen(fd.get(), 1) != 0) return {};
  return fd;
}

bool await(int fd, short events) {
  pollfd p{fd, events, 0};
  return ::poll(&p, 1, kPatience) == 1;
}

/// Of those that came to `listener`, anybody on this host, the one whose other end `fd` is.
Fd accept_from(int listener, int fd) {
  Loopback mine(AF_INET), theirs(AF_INET);
  mine.length = theirs.length = sizeof mine.raw;
  if (::getsockname(fd, mine.get(), &mine.length) != 0) return {};
  while (await(listener, POLLIN)) {
    Fd peer(::accept4(listener, theirs.get(), &theirs.length, SOCK_CLOEXEC));
    if (peer && theirs.length == mine.length && std::memcmp(&mine.raw, &theirs.raw, mine.length) == 0) return peer;
    theirs.length = sizeof theirs.raw;
  }
  return {};
}

}  // namespace

void reset_connections(pid_t task) noexcept {
  try {
    const auto pidfd = open_pidfd(task);
    if (!pidfd) return;
    const ProcDir proc(task);
    for (const int fd : proc.descriptors()) try {
        if (proc.link("fd/" + std::to_string(fd)).starts_with("socket:")) reset_connection(pidfd->get(), fd);
      } catch (const Error&) {
        continue;
      }
  } catch (const std::exception&) {
    // It has ended.
  }
}

Fd ResetSockets::make(int family, bool to_be_told) {
  Fd& listener = listeners_[family];
  if (!listener) listener = listen_on_loopback(family);
  if (!listener) return {};
  Loopback name(family);
  name.length = sizeof name.raw;
  check(::getsockname(listener.get(), name.get(), &name.length), "read the address of", "a TCP socket");
  Fd fd = new_tcp(family);
  if (::connect(fd.get(), name.get(), name.length) != 0 && (errno != EINPROGRESS || !await(fd.get(), POLLOUT)))
    return {};
  Fd peer = accept_from(listener.get(), fd.get());
  if (!peer || !set_reset(peer.get())) return {};
  peer.reset();
  if (!await(fd.get(), POLLRDHUP)) return {};
  if (!to_be_told) socket_option(fd.get(), SOL_SOCKET, SO_ERROR, "a TCP socket");  // told once
  const int flags = check(::fcntl(fd.get(), F_GETFL), "read the flags of", "a TCP socket");
  check(::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK), "set the flags of", "a TCP socket");
  return fd;
}

}  // namespace migrate
