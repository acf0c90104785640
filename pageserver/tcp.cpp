#include "pageserver/tcp.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <charconv>
#include <cstring>
#include <memory>

#include "pageserver/stream.h"

namespace migrate {
namespace {

struct AddrinfoFree {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, AddrinfoFree>;

Addresses resolve(const HostPort& where, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* list = nullptr;
  const int rc = ::getaddrinfo(where.host.empty() ? nullptr : where.host.c_str(), std::to_string(where.port).c_str(),
                               &hints, &list);
  if (rc == EAI_SYSTEM) throw Error("resolve", where.host, errno);
  if (rc != 0) throw Error("resolve " + where.host + ": " + ::gai_strerror(rc));
  return Addresses(list);
}

std::string address_text(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  HostPort out;
  if (address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    out = {::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text), ntohs(in.sin_port)};
  } else if (address->sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof in);
    out = {::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text), ntohs(in.sin6_port)};
  } else {
    return "socket";
  }
  return out.text();
}

bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &address, sizeof in);
    return ntohl(in.sin_addr.s_addr) >> 24 == 127;
  }
  if (address.ss_family != AF_INET6) return address.ss_family == AF_UNIX;
  sockaddr_in6 in{};
  std::memcpy(&in, &address, sizeof in);
  const uint8_t* a = in.sin6_addr.s6_addr;
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return IN6_IS_ADDR_LOOPBACK(&in.sin6_addr) || (std::memcmp(a, kMapped, 12) == 0 && a[12] == 127);
}

static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
char* port_field(sockaddr_storage& address) {
  void* p = &address;
  return static_cast<char*>(p) + offsetof(sockaddr_in, sin_port);
}
void set_port(sockaddr_storage& address, uint16_t port) {
  const uint16_t network = htons(port);
  std::memcpy(port_field(address), &network, sizeof network);
}
uint16_t get_port(sockaddr_storage address) {
  uint16_t network = 0;
  std::memcpy(&network, port_field(address), sizeof network);
  return ntohs(network);
}

using NameCall = int (*)(int, sockaddr*, socklen_t*);
sockaddr_storage socket_address(int fd, NameCall call) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  void* p = &address;
  check(call(fd, static_cast<sockaddr*>(p), &length), "get address of", "socket");
  return address;
}

void set_option(int fd, int level, int name, int value) {
  check(::setsockopt(fd, level, name, &value, sizeof value), "set option of", "TCP socket");
}

/// Waits until one of the descriptors has an event; false if `stop` was triggered.
bool poll_any(std::vector<pollfd>& polls, const StopEvent* stop, const std::optional<Deadline>& deadline,
              const std::string& what) {
  if (stop != nullptr) polls.push_back({stop->fd(), POLLIN, 0});
  while (stop == nullptr || !stop->stopped()) {
    const int n = ::poll(polls.data(), polls.size(), deadline ? deadline->poll_timeout() : -1);
    if (n < 0 && errno != EINTR) throw Error("wait for", what, errno);
    if (n > 0) return stop == nullptr || !stop->stopped();
    if (n == 0 && deadline && deadline->passed()) throw TimedOut("time is up while waiting for " + what);
  }
  return false;
}

/// One address; nullopt with `error` set if it cannot be reached.
std::optional<Fd> try_connect(const addrinfo& to, Deadline deadline, const StopEvent* stop, int& error) {
  Fd fd(::socket(to.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, to.ai_protocol));
  if (!fd) {
    error = errno;
    return {};
  }
  tune_tcp(fd.get());
  if (::connect(fd.get(), to.ai_addr, to.ai_addrlen) == 0) return fd;
  error = errno;
  if (error != EINPROGRESS) return {};
  std::vector<pollfd> polls{{fd.get(), POLLOUT, 0}};
  const std::string where = address_text(to.ai_addr);
  if (!poll_any(polls, stop, deadline, "a connection to " + where))
    throw Cancelled("cancelled", "connecting to " + where);
  socklen_t length = sizeof error;
  check(::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length), "get result of connecting to", where);
  if (error != 0) return {};
  return fd;
}

}  // namespace

std::string HostPort::text() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

HostPort parse_host_port(std::string_view text, bool empty_host_ok) {
  const auto refuse = [&](std::string_view why) -> Refusal {
    return Refusal("\"" + std::string(text) + "\" is not an address: " + std::string(why),
                   "write HOST:PORT, for example 192.0.2.7:7400 or [2001:db8::7]:7400");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) throw refuse("it has no port");
  std::string_view host = text.substr(0, colon);
  const std::string_view port_text = text.substr(colon + 1);
  if (!host.empty() && host.front() == '[') {
    if (host.back() != ']' || host.size() < 3) throw refuse("its brackets do not hold an address");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    throw refuse("an IPv6 address needs brackets");
  }
  if (host.empty() && !empty_host_ok) throw refuse("it has no host");
  if (host.size() > 253 || host.find_first_of(" \t\n[]/") != std::string_view::npos || host.find('\0') != host.npos)
    throw refuse("the host is no name");
  unsigned port = 0;
  const auto [end, ec] = std::from_chars(port_text.data(), port_text.data() + port_text.size(), port);
  if (ec != std::errc() || end != port_text.data() + port_text.size() || port > 65535 || (port == 0 && !empty_host_ok))
    throw refuse("the port must be a number from 1 to 65535");
  return {std::string(host), static_cast<uint16_t>(port)};
}

void tune_tcp(int fd) {
  const int flags = check(::fcntl(fd, F_GETFL), "get flags of", "TCP socket");
  check(::fcntl(fd, F_SETFL, flags | O_NONBLOCK), "set flags of", "TCP socket");
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 20000);
}

Fd connect_tcp(const HostPort& to, Deadline deadline, const StopEvent* stop) {
  const Addresses list = resolve(to, false);
  int error = 0;
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next)
    if (auto fd = try_connect(*a, deadline, stop, error)) return std::move(*fd);
  throw Error("connect to", to.text(), error);
}

bool is_loopback_connection(int fd) {
  return is_loopback(socket_address(fd, ::getpeername)) && is_loopback(socket_address(fd, ::getsockname));
}

std::string peer_address(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  void* p = &address;
  if (::getpeername(fd, static_cast<sockaddr*>(p), &length) != 0) return "a peer that is gone";
  return address_text(static_cast<const sockaddr*>(p));
}

Listener::Listener(const HostPort& at) : port_(at.port) {
  const Addresses list = resolve(at, true);
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    Fd fd(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol));
    if (!fd && errno == EAFNOSUPPORT) continue;  // no IPv6 on this host
    check(fd.get(), "make a socket for", at.text());
    set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (a->ai_family == AF_INET6) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 1);
    sockaddr_storage address{};
    std::memcpy(&address, a->ai_addr, a->ai_addrlen);
    set_port(address, port_);  // with port 0 the first address chooses, the others follow
    void* p = &address;
    if (::bind(fd.get(), static_cast<sockaddr*>(p), a->ai_addrlen) != 0) {
      const int error = errno;
      if (error == EADDRNOTAVAIL && a->ai_next != nullptr) continue;
      if (error == EADDRNOTAVAIL && !sockets_.empty()) break;
      if (error == EADDRINUSE)
        throw Refusal(address_text(a->ai_addr) + " is in use by another program", "give another port");
      throw Error("listen on", address_text(a->ai_addr), error);
    }
    check(::listen(fd.get(), 128), "listen on", address_text(a->ai_addr));
    if (port_ == 0) port_ = get_port(socket_address(fd.get(), ::getsockname));
    sockets_.push_back(std::move(fd));
  }
  if (sockets_.empty())
    throw Refusal("cannot listen on " + at.text() + ": this host has no such address", "give one that it has");
}

std::string Listener::addresses() const {
  std::string all;
  for (const Fd& fd : sockets_) {
    const sockaddr_storage address = socket_address(fd.get(), ::getsockname);
    const void* p = &address;
    all += (all.empty() ? "" : ", ") + address_text(static_cast<const sockaddr*>(p));
  }
  return all;
}

bool Listener::loopback_only() const {
  for (const Fd& fd : sockets_)
    if (!is_loopback(socket_address(fd.get(), ::getsockname))) return false;
  return true;
}

std::optional<Fd> Listener::accept(const StopEvent* stop, std::optional<Deadline> deadline) {
  while (true) {
    for (const Fd& listener : sockets_) {
      int error = 0;
      Fd fd = try_accept(listener.get(), error);
      if (fd) return fd;
      // A peer that is gone again before it was accepted is none of our business; lack of descriptors is.
      if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM || error == EBADF)
        throw Error("accept a connection on port", std::to_string(port_), error);
    }
    std::vector<pollfd> polls;
    for (const Fd& listener : sockets_) polls.push_back({listener.get(), POLLIN, 0});
    if (!poll_any(polls, stop, deadline, "a connection")) return {};
  }
}

Fd Listener::try_accept(int listening, int& error) {
  Fd fd(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  error = fd ? 0 : errno;
  if (!fd) return fd;
  try {
    tune_tcp(fd.get());
  } catch (const Error& e) {  // it is gone again
    error = ECONNABORTED;
    return {};
  }
  return fd;
}

std::vector<int> Listener::fds() const {
  std::vector<int> out;
  for (const Fd& fd : sockets_) out.push_back(fd.get());
  return out;
}

}  // namespace migrate
