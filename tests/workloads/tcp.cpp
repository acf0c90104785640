// Listening TCP sockets of both families with their options; they serve afterwards.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

struct Option {
  int level, name, value;
  const char* text;
};

const std::vector<Option> kOptions = {
    {SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"},         {SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
    {IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"},          {IPPROTO_TCP, TCP_KEEPIDLE, 77, "TCP_KEEPIDLE"},
    {IPPROTO_TCP, TCP_KEEPINTVL, 11, "TCP_KEEPINTVL"},     {IPPROTO_TCP, TCP_KEEPCNT, 4, "TCP_KEEPCNT"},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, "TCP_DEFER_ACCEPT"}};

int option(int fd, const Option& o) {
  int value = 0;
  socklen_t n = sizeof value;
  must(getsockopt(fd, o.level, o.name, &value, &n), o.text);
  return value;
}

uint16_t port_of(int fd) {
  sockaddr_storage a{};
  socklen_t n = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
  return ntohs(reinterpret_cast<sockaddr_in*>(&a)->sin_port);  // at the same place in both families
}

/// Binds to a port the kernel picks, on the loopback address.
int listen_on(int family) {
  const int fd = must(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
  for (const Option& o : kOptions) must(setsockopt(fd, o.level, o.name, &o.value, sizeof o.value), o.text);
  sockaddr_in a4{};
  a4.sin_family = AF_INET;
  a4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in6 a6{};
  a6.sin6_family = AF_INET6;
  a6.sin6_addr = in6addr_loopback;
  if (family == AF_INET6) {
    const int on = 1;
    must(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on), "IPV6_V6ONLY");
    must(bind(fd, reinterpret_cast<sockaddr*>(&a6), sizeof a6), "bind");
  } else {
    must(bind(fd, reinterpret_cast<sockaddr*>(&a4), sizeof a4), "bind");
  }
  must(listen(fd, 33), "listen");
  return fd;
}

void verify(int fd, uint16_t port, const std::vector<int>& options, const std::string& what) {
  expect_equal(port_of(fd), port, what + ": port");
  for (size_t i = 0; i < kOptions.size(); ++i)
    expect_equal(option(fd, kOptions[i]), options[i], what + kOptions[i].text);
  int listening = 0;
  socklen_t n = sizeof listening;
  must(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n), "SO_ACCEPTCONN");
  expect_equal(listening, 1, what + ": SO_ACCEPTCONN");
  sockaddr_storage a{};
  n = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
  const int client = must(socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(connect(client, reinterpret_cast<sockaddr*>(&a), n), "connect");
  int server = -1;
  await([&] { return (server = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC)) != -1; }, "a connection", 5000);
  char c = 'x';
  expect(write(client, &c, 1) == 1 && read(server, &c, 1) == 1 && c == 'x', what + ": echo");
  // The client resets, so that no TIME_WAIT stays.
  const linger off{1, 0};
  setsockopt(client, SOL_SOCKET, SO_LINGER, &off, sizeof off);
  close(client);
  close(server);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        std::vector<int> fds = {listen_on(AF_INET)};
        if (access("/proc/net/if_inet6", F_OK) == 0) fds.push_back(listen_on(AF_INET6));
        std::vector<uint16_t> ports;
        std::vector<std::vector<int>> options;
        for (int fd : fds) {
          ports.push_back(port_of(fd));
          options.emplace_back();
          for (const Option& o : kOptions) options.back().push_back(option(fd, o));
        }
        w.serve([&] {
          for (size_t i = 0; i < fds.size(); ++i) verify(fds[i], ports[i], options[i], i == 0 ? "IPv4 " : "IPv6 ");
        });
      },
      argv[0]);
}
