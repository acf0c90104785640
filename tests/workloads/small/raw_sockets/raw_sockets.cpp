// Raw sockets and ICMP ones: protocols, addresses, peers, filters and options; they send and hear.
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "small.h"
#include "socket_calls.h"

namespace {

constexpr int kMine = 253, kOther = 254;  // for experiments (RFC 3692)
constexpr int kSoon = 5000;               // ms

int raw(int family, int protocol) {
  const int fd = socket(family, SOCK_RAW | SOCK_CLOEXEC, protocol);
  allowed(fd, "raw sockets");
  return fd;
}

sockaddr_in v4(const char* text, uint16_t port = 0) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  expect(inet_pton(AF_INET, text, &a.sin_addr) == 1, text);
  return a;
}

sockaddr_in6 v6(const char* text) {
  sockaddr_in6 a{};
  a.sin6_family = AF_INET6;
  expect(inet_pton(AF_INET6, text, &a.sin6_addr) == 1, text);
  return a;
}

template <typename Address>
void bind_to(int fd, const Address& a) {
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
}
template <typename Address>
void connect_to(int fd, const Address& a) {
  must(connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "connect");
}
template <typename Address>
void send_to(int fd, const Address& a, const std::string& what) {
  must(sendto(fd, what.data(), what.size(), 0, reinterpret_cast<const sockaddr*>(&a), sizeof a), "sendto");
}

std::string bytes_of_name(int fd) {
  sockaddr_storage a{};
  socklen_t length = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length), "getsockname");
  return {reinterpret_cast<const char*>(&a), length};
}

/// The next packet that ends with that; others may have come meanwhile.
void hears(int fd, const std::string& what) {
  for (;;) {
    pollfd p{fd, POLLIN, 0};
    expect(poll(&p, 1, kSoon) == 1, "nothing came that ends with " + what);
    std::array<char, 2048> packet;
    const auto n = static_cast<size_t>(must(recv(fd, packet.data(), packet.size(), 0), "recv"));
    if (std::string(packet.data(), n).ends_with(what)) return;
  }
}

void hears_nothing(int fd) {
  char byte;
  expect(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "something came that was to be kept out");
}

uint16_t checksum(const void* data, size_t size) {
  uint32_t sum = 0;
  for (size_t i = 0; i < size; i += 2) {
    uint16_t word = 0;
    std::memcpy(&word, static_cast<const char*>(data) + i, std::min<size_t>(2, size - i));
    sum += word;
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

std::string echo_request(uint16_t id, const std::string& text, bool six) {
  std::string packet(8, '\0');
  packet[0] = static_cast<char>(six ? ICMP6_ECHO_REQUEST : ICMP_ECHO);
  packet[4] = static_cast<char>(id >> 8), packet[5] = static_cast<char>(id);
  packet += text;
  const uint16_t sum = checksum(packet.data(), packet.size());
  std::memcpy(packet.data() + 2, &sum, 2);
  return packet;
}

WORKLOAD(raw_sockets, of_a_protocol) {
  const int fd = raw(AF_INET, kMine), from = raw(AF_INET, kMine);
  bind_to(fd, v4("127.0.0.2"));
  bind_to(from, v4("127.0.0.3"));
  set(from, IPPROTO_IP, IP_TTL, 7);
  return [=, name = bytes_of_name(fd)] {
    expect(bytes_of_name(fd) == name, "its address differs");
    expect_equal(option<int>(from, IPPROTO_IP, IP_TTL), 7, "IP_TTL");
    expect_equal(option<int>(fd, SOL_SOCKET, SO_PROTOCOL), kMine, "SO_PROTOCOL");
    send_to(from, v4("127.0.0.2"), "from another one");
    hears(fd, "from another one");
  };
}

WORKLOAD(raw_sockets, hears_its_peer_only) {
  const int fd = raw(AF_INET, kMine), peer = raw(AF_INET, kMine), stranger = raw(AF_INET, kMine);
  bind_to(fd, v4("127.0.0.4"));
  bind_to(peer, v4("127.0.0.5"));
  bind_to(stranger, v4("127.0.0.6"));
  connect_to(fd, v4("127.0.0.5"));
  return [=] {
    send_to(stranger, v4("127.0.0.4"), "a stranger's");
    send_to(peer, v4("127.0.0.4"), "its peer's");
    hears(fd, "its peer's");
    hears_nothing(fd);
    must(send(fd, "to its peer", 11, 0), "send");
    hears(peer, "to its peer");
    send_to(stranger, v4("127.0.0.4"), "a stranger's");
    hears_nothing(fd);
  };
}

WORKLOAD(raw_sockets, peer_with_a_port) {
  const int fd = raw(AF_INET, kMine);
  connect_to(fd, v4("127.0.0.1", 99));
  return [=] {
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    must(getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length), "getpeername");
    expect_equal(ntohs(peer.sin_port), 99, "the peer's port");
    expect(peer.sin_addr.s_addr == htonl(INADDR_LOOPBACK), "the peer's address differs");
  };
}

WORKLOAD(raw_sockets, whole_packets) {
  const int fd = raw(AF_INET, IPPROTO_RAW), into = raw(AF_INET, kOther), plain = raw(AF_INET, kOther);
  bind_to(into, v4("127.0.0.7"));
  bind_to(plain, v4("127.0.0.8"));
  set(plain, IPPROTO_IP, IP_HDRINCL, 1);
  return [=] {
    expect_equal(option<int>(plain, IPPROTO_IP, IP_HDRINCL), 1, "IP_HDRINCL");
    for (const int from : {fd, plain}) {
      iphdr header{};
      header.version = 4, header.ihl = 5, header.ttl = 9, header.protocol = kOther;
      header.saddr = v4("127.0.0.9").sin_addr.s_addr, header.daddr = v4("127.0.0.7").sin_addr.s_addr;
      const std::string text = "with its header";
      header.tot_len = htons(static_cast<uint16_t>(sizeof header + text.size()));
      send_to(from, v4("127.0.0.7"), std::string(reinterpret_cast<const char*>(&header), sizeof header) + text);
      hears(into, text);
    }
  };
}

WORKLOAD(raw_sockets, icmp_filter) {
  const int fd = raw(AF_INET, IPPROTO_ICMP);
  constexpr int kFilter = 1;  // ICMP_FILTER of raw(7)
  const uint32_t keep_out = ~(1u << ICMP_ECHOREPLY);
  set(fd, SOL_RAW, kFilter, keep_out);
  bind_to(fd, v4("127.0.0.10"));
  return [=] {
    expect_equal(option<uint32_t>(fd, SOL_RAW, kFilter), keep_out, "ICMP_FILTER");
    send_to(fd, v4("127.0.0.10"), echo_request(0x4d49, "an echo of v4", false));
    hears(fd, "an echo of v4");
    hears_nothing(fd);
  };
}

WORKLOAD(raw_sockets, icmp6_filter) {
  const int fd = raw(AF_INET6, IPPROTO_ICMPV6);
  icmp6_filter keep_out;
  ICMP6_FILTER_SETBLOCKALL(&keep_out);
  ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &keep_out);
  set(fd, IPPROTO_ICMPV6, ICMP6_FILTER, keep_out);
  return [=] {
    const auto is = option<icmp6_filter>(fd, IPPROTO_ICMPV6, ICMP6_FILTER);
    expect(std::memcmp(&is, &keep_out, sizeof is) == 0, "ICMP6_FILTER differs");
    send_to(fd, v6("::1"), echo_request(0x4d49, "an echo of v6", true));
    hears(fd, "an echo of v6");
  };
}

WORKLOAD(raw_sockets, checksums_of_v6) {
  const int fd = raw(AF_INET6, kMine);
  set(fd, IPPROTO_IPV6, IPV6_CHECKSUM, 4);
  connect_to(fd, v6("::1"));
  return [=] {
    expect_equal(option<int>(fd, IPPROTO_IPV6, IPV6_CHECKSUM), 4, "IPV6_CHECKSUM");
    must(send(fd, "12345678 and so on", 18, 0), "send");
    hears(fd, " and so on");
  };
}

WORKLOAD(raw_sockets, in_a_group) {
  const int fd = raw(AF_INET, kOther);
  ip_mreqn group{};
  group.imr_multiaddr = v4("224.0.0.77").sin_addr;
  group.imr_ifindex = static_cast<int>(if_nametoindex("lo"));
  set(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, group);
  set(fd, IPPROTO_IP, IP_MULTICAST_IF, group);
  return [=] {
    send_to(fd, v4("224.0.0.77"), "to its group");
    hears(fd, "to its group");
  };
}

WORKLOAD(raw_sockets, shut_down_for_reading) {
  const int fd = raw(AF_INET, kMine);
  connect_to(fd, v4("127.0.0.1"));
  must(shutdown(fd, SHUT_RD), "shutdown");
  return [=] {
    char byte;
    expect_equal(must(recv(fd, &byte, 1, 0), "recv"), 0, "what is read after SHUT_RD");
  };
}

WORKLOAD(raw_sockets, echoes_without_rights) {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP);
  if (fd == -1 && errno == EACCES) throw NotHere("nobody may have ICMP sockets (net.ipv4.ping_group_range)");
  must(fd, "socket");
  bind_to(fd, v4("127.0.0.1", 0x4d50));
  connect_to(fd, v4("127.0.0.1"));
  return [=, name = bytes_of_name(fd)] {
    expect(bytes_of_name(fd) == name, "its identifier differs");
    const std::string request = echo_request(0, "an echo for anybody", false);
    must(send(fd, request.data(), request.size(), 0), "send");
    hears(fd, "an echo for anybody");
  };
}

}  // namespace
