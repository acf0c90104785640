// MPTCP listeners (programs in Go have no others): they accept plain TCP and MPTCP, with their options.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "small.h"
#include "socket_calls.h"

namespace {

constexpr int kProtocol = IPPROTO_MPTCP;
constexpr int kSoon = 5000;  // ms

int mptcp(int family = AF_INET) {
  const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, kProtocol);
  if (fd == -1 && (errno == EPROTONOSUPPORT || errno == ENOPROTOOPT || errno == EINVAL))
    throw NotHere("the kernel has no MPTCP, or net.mptcp.enabled is 0");
  return static_cast<int>(must(fd, "socket"));
}

sockaddr_in6 name_of(int fd) {
  sockaddr_in6 a{};
  socklen_t length = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length), "getsockname");
  return a;
}

/// At a port that the kernel chooses; twice in the same place they would not fit beside each other.
int bound(int family = AF_INET, int fd = -1) {
  if (fd == -1) fd = mptcp(family);
  sockaddr_in6 any{};
  any.sin6_family = static_cast<sa_family_t>(family);
  must(bind(fd, reinterpret_cast<const sockaddr*>(&any), family == AF_INET ? sizeof(sockaddr_in) : sizeof any), "bind");
  return fd;
}

int listening(int family = AF_INET, int backlog = 5) {
  const int fd = bound(family);
  must(listen(fd, backlog), "listen");
  return fd;
}

/// Over loopback, by TCP or MPTCP; what is accepted is of that protocol, and carries a word.
void takes(int listener, int protocol) {
  const sockaddr_in6 at = name_of(listener);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = at.sin6_port;  // at the same place in both
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int client = static_cast<int>(must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol), "socket"));
  must(connect(client, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
  pollfd p{listener, POLLIN, 0};
  expect(poll(&p, 1, kSoon) == 1, "no connection came");
  const int taken = static_cast<int>(must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept"));
  expect_equal(option<int>(taken, SOL_SOCKET, SO_PROTOCOL), protocol, "protocol of the connection");
  must(send(client, "x", 1, 0), "send");
  char c = 0;
  must(recv(taken, &c, 1, 0), "recv");
  expect(c == 'x', "another byte came");
  // Nothing of it may be left in TIME_WAIT at the port.
  const linger now{1, 0};
  set(taken, SOL_SOCKET, SO_LINGER, now);
  close(taken);
  close(client);
}

int backlog_of(int fd) { return static_cast<int>(option<tcp_info>(fd, IPPROTO_TCP, TCP_INFO).tcpi_sacked); }

}  // namespace

WORKLOAD(mptcp, listens) {
  const int fd = listening(AF_INET, 7);
  const sockaddr_in6 was = name_of(fd);
  return [fd, was] {
    const sockaddr_in6 is = name_of(fd);
    expect(std::memcmp(&is, &was, sizeof(sockaddr_in)) == 0, "it has another address");
    expect_equal(option<int>(fd, SOL_SOCKET, SO_PROTOCOL), kProtocol, "protocol");
    expect_equal(option<int>(fd, SOL_SOCKET, SO_ACCEPTCONN), 1, "SO_ACCEPTCONN");
    expect_equal(option<int>(fd, SOL_SOCKET, SO_BINDTOIFINDEX), 0, "SO_BINDTOIFINDEX");
    expect_equal(backlog_of(fd), 7, "backlog");
    takes(fd, IPPROTO_TCP);
    takes(fd, kProtocol);
  };
}

WORKLOAD(mptcp, listens_in_both_families) {
  const int fd = listening(AF_INET6);
  return [fd] {
    expect_equal(option<int>(fd, IPPROTO_IPV6, IPV6_V6ONLY), 0, "IPV6_V6ONLY");
    takes(fd, IPPROTO_TCP);
    takes(fd, kProtocol);
  };
}

WORKLOAD(mptcp, options) {
  const int fd = mptcp();
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, SOL_SOCKET, SO_PRIORITY, 3);
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 11);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
  set(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 7);
  bound(AF_INET, fd);
  must(listen(fd, 5), "listen");
  return [=, defer = option<int>(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT)] {
    expect_equal(option<int>(fd, SOL_SOCKET, SO_KEEPALIVE), 1, "SO_KEEPALIVE");
    expect_equal(option<int>(fd, SOL_SOCKET, SO_PRIORITY), 3, "SO_PRIORITY");
    expect_equal(option<int>(fd, IPPROTO_TCP, TCP_NODELAY), 1, "TCP_NODELAY");
    expect_equal(option<int>(fd, IPPROTO_TCP, TCP_KEEPIDLE), 77, "TCP_KEEPIDLE");
    expect_equal(option<int>(fd, IPPROTO_TCP, TCP_KEEPINTVL), 11, "TCP_KEEPINTVL");
    expect_equal(option<int>(fd, IPPROTO_TCP, TCP_KEEPCNT), 4, "TCP_KEEPCNT");
    expect_equal(option<int>(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT), defer, "TCP_DEFER_ACCEPT");
  };
}

WORKLOAD(mptcp, buffers) {
  const int fd = mptcp(), left = listening();
  set(fd, SOL_SOCKET, SO_RCVBUF, 50'000);
  bound(AF_INET, fd);
  must(listen(fd, 5), "listen");
  const auto size = [](int of, int name) { return option<int>(of, SOL_SOCKET, name); };
  return [=, receive = size(fd, SO_RCVBUF), send = size(left, SO_SNDBUF)] {
    expect_equal(size(fd, SO_RCVBUF), receive, "SO_RCVBUF");
    expect_equal(size(left, SO_SNDBUF), send, "SO_SNDBUF");
    expect_equal(size(left, SO_BUF_LOCK), 0, "SO_BUF_LOCK");
  };
}

WORKLOAD(mptcp, bound_to_interface) {
  const int fd = mptcp();
  const std::string lo = "lo";
  must(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, lo.data(), static_cast<socklen_t>(lo.size())), "SO_BINDTODEVICE");
  bound(AF_INET, fd);
  must(listen(fd, 5), "listen");
  return [fd] {
    std::array<char, 16> name{};
    socklen_t length = name.size();
    must(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name.data(), &length), "SO_BINDTODEVICE");
    expect(std::string(name.data()) == "lo", "it is bound to another interface");
    takes(fd, IPPROTO_TCP);
  };
}

WORKLOAD(mptcp, not_listening) {
  const int fresh = mptcp(), placed = bound();
  const sockaddr_in6 was = name_of(placed);
  return [=] {
    expect_equal(option<int>(fresh, SOL_SOCKET, SO_PROTOCOL), kProtocol, "protocol of the fresh one");
    const sockaddr_in6 is = name_of(placed);
    expect(std::memcmp(&is, &was, sizeof(sockaddr_in)) == 0, "the bound one has another address");
    expect_equal(option<int>(placed, SOL_SOCKET, SO_ACCEPTCONN), 0, "SO_ACCEPTCONN");
  };
}
