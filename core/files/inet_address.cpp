#include "core/files/inet_address.h"

#include <arpa/inet.h>
#include <net/if.h>

#include "core/base/error.h"

namespace migrate {

std::string InetAddress::text() {
  char host[INET6_ADDRSTRLEN] = "?";
  if (raw.ss_family == AF_INET) {
    ::inet_ntop(AF_INET, &v4().sin_addr, host, sizeof host);
    return std::string(host) + ":" + std::to_string(port());
  }
  ::inet_ntop(AF_INET6, &v6().sin6_addr, host, sizeof host);
  return "[" + std::string(host) + "]:" + std::to_string(port());
}

std::string InetAddress::key() {
  std::string bytes(10, '\0');
  if (raw.ss_family == AF_INET) {
    bytes += "\xff\xff";
    bytes.append(reinterpret_cast<const char*>(&v4().sin_addr), 4);
  } else {
    bytes.assign(reinterpret_cast<const char*>(&v6().sin6_addr), 16);
  }
  const uint16_t number = htons(port());
  return bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

bool InetAddress::is_loopback() {
  if (raw.ss_family == AF_INET) return ntohl(v4().sin_addr.s_addr) >> 24 == 127;
  const in6_addr& a = v6().sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&a) || (IN6_IS_ADDR_V4MAPPED(&a) && a.s6_addr[12] == 127);
}

InetAddress get_address(const img::inet_sk_entry& e, bool source) {
  const auto& words = source ? e.src_addr() : e.dst_addr();
  const uint32_t port = source ? e.src_port() : e.dst_port();
  if ((e.family() != AF_INET && e.family() != AF_INET6) || port > 65535 ||
      words.size() < (e.family() == AF_INET6 ? 4 : 1))
    throw Corrupt("files.img", "a socket address is incomplete");
  uint32_t copy[4]{};
  const int count = e.family() == AF_INET6 ? 4 : 1;
  for (int i = 0; i < count; ++i) copy[i] = words.Get(i);
  InetAddress a = inet_address(std::string(reinterpret_cast<const char*>(copy), static_cast<size_t>(count) * 4),
                               static_cast<uint16_t>(port));
  if (count == 4 && source && e.has_ifname()) a.v6().sin6_scope_id = ::if_nametoindex(e.ifname().c_str());
  return a;
}

InetAddress inet_address(const std::string& bytes, uint16_t port) {
  InetAddress a;
  if (bytes.size() == 4) {
    a.raw.ss_family = AF_INET;
    a.length = sizeof(sockaddr_in);
    a.v4().sin_port = htons(port);
    std::memcpy(&a.v4().sin_addr, bytes.data(), 4);
    return a;
  }
  a.raw.ss_family = AF_INET6;
  a.length = sizeof(sockaddr_in6);
  a.v6().sin6_port = htons(port);
  std::memcpy(&a.v6().sin6_addr, bytes.data(), 16);
  return a;
}

bool own_address(int fd, InetAddress& out) {
  out.length = sizeof out.raw;
  return ::getsockname(fd, out.get(), &out.length) == 0;
}

bool peer_address(int fd, InetAddress& out) {
  out.length = sizeof out.raw;
  return ::getpeername(fd, out.get(), &out.length) == 0;
}

}  // namespace migrate
