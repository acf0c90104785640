// Addresses of TCP and UDP sockets, as the kernel and as the images have them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "images/sk-inet.pb.h"

namespace migrate {

struct InetAddress {
  sockaddr_storage raw{};
  socklen_t length = sizeof raw;

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&raw); }
  sockaddr_in& v4() { return reinterpret_cast<sockaddr_in&>(raw); }
  sockaddr_in6& v6() { return reinterpret_cast<sockaddr_in6&>(raw); }
  uint16_t port() { return ntohs(raw.ss_family == AF_INET ? v4().sin_port : v6().sin6_port); }
  /// "127.0.0.1:80", "[::1]:80"
  std::string text();
  /// Address and port as 18 bytes; an IPv4 address as the IPv6 one that it is mapped to, so that both ends of a
  /// connection between sockets of the two families agree.
  std::string key();
  bool is_loopback();
};

/// The words of an image are in network byte order.
template <class Words>
void put_words(InetAddress& a, Words* out) {
  if (a.raw.ss_family == AF_INET) {
    out->Add(a.v4().sin_addr.s_addr);
    return;
  }
  uint32_t words[4];
  std::memcpy(words, &a.v6().sin6_addr, sizeof words);
  for (const uint32_t w : words) out->Add(w);
}

/// Of an entry: its own, or (`source` false) its peer's. Throws Corrupt.
InetAddress get_address(const img::inet_sk_entry& e, bool source);
/// As a line of /proc/net has it: 4 bytes or 16.
InetAddress inet_address(const std::string& bytes, uint16_t port);
/// False if the socket has none.
bool own_address(int fd, InetAddress& out);
bool peer_address(int fd, InetAddress& out);

}  // namespace migrate
