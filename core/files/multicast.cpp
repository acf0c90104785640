#include "core/files/multicast.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <vector>

#include "core/files/interfaces.h"
#include "core/files/option_table.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

/// Where SO_MEMINFO (socket(7)) tells of memory that options take; a membership takes some.
constexpr size_t kOptionMemory = 6;
/// More than any limit that is set in practice (net.ipv4.igmp_max_msf).
constexpr uint32_t kMostSources = 4096;

struct Membership {
  int level = IPPROTO_IP;
  uint32_t interface = 0;
  std::string group;  ///< 4 or 16 bytes
};

bool takes_option_memory(int fd) {
  std::array<uint32_t, 16> memory{};
  socklen_t length = sizeof memory;
  if (::getsockopt(fd, SOL_SOCKET, 55, memory.data(), &length) != 0) return true;  // SO_MEMINFO, Linux 4.12
  return length <= kOptionMemory * sizeof(uint32_t) || memory[kOptionMemory] != 0;
}

sockaddr_storage address_of(const std::string& bytes) {
  sockaddr_storage a{};
  if (bytes.size() == sizeof(in_addr)) {
    a.ss_family = AF_INET;
    std::memcpy(&reinterpret_cast<sockaddr_in&>(a).sin_addr, bytes.data(), bytes.size());
  } else if (bytes.size() == sizeof(in6_addr)) {
    a.ss_family = AF_INET6;
    std::memcpy(&reinterpret_cast<sockaddr_in6&>(a).sin6_addr, bytes.data(), bytes.size());
  } else {
    throw Corrupt(kSocketsImage, "a multicast address is neither IPv4's nor IPv6's");
  }
  return a;
}

std::string bytes_of(const sockaddr_storage& a) {
  if (a.ss_family == AF_INET6)
    return {reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in6&>(a).sin6_addr), sizeof(in6_addr)};
  return {reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in&>(a).sin_addr), sizeof(in_addr)};
}

/// Lines of interfaces begin with their number; those of their groups, with the address as a number of this machine,
/// with white space.
void read_igmp(const std::string& text, std::vector<Membership>& found) {
  std::istringstream lines(text);
  uint32_t interface = 0;
  for (std::string line; std::getline(lines, line);) {
    unsigned number = 0;
    if (line.empty()) continue;
    if (line.front() != '\t' && line.front() != ' ') {
      if (std::sscanf(line.c_str(), "%u", &number) == 1) interface = number;
    } else if (std::sscanf(line.c_str(), "%x", &number) == 1) {
      found.push_back({IPPROTO_IP, interface, {reinterpret_cast<const char*>(&number), sizeof number}});
    }
  }
}

/// "NUMBER NAME GROUP ..."
void read_igmp6(const std::string& text, std::vector<Membership>& found) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    unsigned number = 0;
    char group[33] = {};
    if (std::sscanf(line.c_str(), "%u %*s %32s", &number, group) != 2 || std::strlen(group) != 32) continue;
    std::string bytes;
    for (int i = 0; i < 32; i += 2)
      bytes.push_back(static_cast<char>(std::strtoul(std::string(group + i, 2).c_str(), nullptr, 16)));
    found.push_back({IPPROTO_IPV6, number, bytes});
  }
}

/// nullopt: the socket has not joined it.
std::optional<ext::JoinedGroup> joined(int fd, const Membership& m, const std::string& who) {
  std::vector<char> memory(GROUP_FILTER_SIZE(0));
  uint32_t sources = 0;
  for (;;) {
    std::ranges::fill(memory, 0);
    auto& filter = *reinterpret_cast<group_filter*>(memory.data());
    filter.gf_interface = m.interface;
    const sockaddr_storage group = address_of(m.group);
    std::memcpy(&filter.gf_group, &group, sizeof group);
    filter.gf_numsrc = sources;
    auto length = static_cast<socklen_t>(memory.size());
    if (::getsockopt(fd, m.level, MCAST_MSFILTER, memory.data(), &length) != 0) {
      if (errno == EADDRNOTAVAIL || errno == ENOPROTOOPT || errno == EINVAL || errno == ENODEV) return std::nullopt;
      throw Error("ask for the multicast groups of", who, errno);
    }
    if (filter.gf_numsrc <= sources) break;
    sources = filter.gf_numsrc;
    if (sources > kMostSources) throw Refusal(who + ", a socket with too many multicast sources", "close it first");
    memory.resize(GROUP_FILTER_SIZE(sources));
  }
  auto& filter = *reinterpret_cast<group_filter*>(memory.data());
  ext::JoinedGroup out;
  out.set_group(m.group);
  out.set_interface(interface_name(fd, static_cast<int>(m.interface), who));
  out.set_exclude(filter.gf_fmode == MCAST_EXCLUDE);
  for (uint32_t i = 0; i < filter.gf_numsrc; ++i) {
    sockaddr_storage source;
    std::memcpy(&source, &filter.gf_slist[i], sizeof source);
    out.add_sources(bytes_of(source));
  }
  return out;
}

/// Asks for the way of a datagram to all on a link, without sending one (MSG_PROBE), by addresses on links only, so
/// that there is none unless an interface was given. 0, or why not.
int probe(int fd, in_addr_t source) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(9);
  to.sin_addr.s_addr = htonl(INADDR_ALLHOSTS_GROUP);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(in_pktinfo))> control{};
  msghdr header{};
  header.msg_name = &to;
  header.msg_namelen = sizeof to;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = IPPROTO_IP;
  c->cmsg_type = IP_PKTINFO;
  c->cmsg_len = CMSG_LEN(sizeof(in_pktinfo));
  in_pktinfo info{};
  info.ipi_spec_dst.s_addr = source;
  std::memcpy(CMSG_DATA(c), &info, sizeof info);
  constexpr int kProbe = 0x10;  // MSG_PROBE, of the kernel's headers only
  return ::sendmsg(fd, &header, MSG_CONFIRM | kProbe | MSG_DONTROUTE | MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ? 0 : errno;
}

/// Those that have an IPv4 address.
std::set<std::string> interfaces(int fd, const std::string& who) {
  std::vector<ifreq> all(1024);
  ifconf request{};
  request.ifc_len = static_cast<int>(all.size() * sizeof(ifreq));
  request.ifc_req = all.data();
  check(::ioctl(fd, SIOCGIFCONF, &request), "list the network interfaces of", who);
  all.resize(static_cast<size_t>(request.ifc_len) / sizeof(ifreq));
  std::set<std::string> names;
  for (const ifreq& i : all) names.emplace(i.ifr_name, ::strnlen(i.ifr_name, sizeof i.ifr_name));
  return names;
}

/// The kernel keeps the number of the interface (ip_mreqn) and tells only the address, which need not be there. That
/// there is one shows in the ways of datagrams; a loopback interface is told from others by their sources.
void describe_outgoing(int fd, const std::string& who, ext::SocketState& out) {
  sockaddr_in bound{};
  socklen_t length = sizeof bound;
  check(::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length), "read the address of", who);
  // Whatever is sent binds it.
  if (bound.sin_family != AF_INET || bound.sin_port == 0) return;
  in_addr given{};
  length = sizeof given;
  if (::getsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &given, &length) != 0 || given.s_addr != 0) return;
  if (bound_interface(fd, who)) return;
  if (probe(fd, INADDR_ANY) != 0) return;
  // Where a route leads all multicast onto a link any socket has a way.
  const Fd other(check(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "make", "a UDP socket"));
  if (probe(other.get(), INADDR_ANY) == 0) return;
  std::set<std::string> candidates = interfaces(fd, who);
  if (probe(fd, htonl(INADDR_LOOPBACK)) == 0) {
    if (candidates.contains("lo")) out.set_multicast_interface("lo");
    return;
  }
  candidates.erase("lo");
  std::set<std::string> joined_on;
  for (const ext::JoinedGroup& group : out.groups()) joined_on.insert(group.interface());
  if (candidates.size() == 1) {
    out.set_multicast_interface(*candidates.begin());
  } else if (joined_on.size() == 1) {
    out.set_multicast_interface(*joined_on.begin());
  } else {
    throw Refusal(who +
                      ", a UDP socket whose interface for multicast (IP_MULTICAST_IF) was given by number and "
                      "cannot be told",
                  "have the program give it by address");
  }
}

group_source_req source_request(uint32_t interface, const ext::JoinedGroup& group, const std::string& source) {
  group_source_req request{};
  request.gsr_interface = interface;
  request.gsr_group = address_of(group.group());
  request.gsr_source = address_of(source);
  return request;
}

void join(int fd, const ext::JoinedGroup& group, const std::string& who) {
  const auto interface = static_cast<uint32_t>(interface_number(fd, group.interface(), who));
  const int level = group.group().size() == sizeof(in_addr) ? IPPROTO_IP : IPPROTO_IPV6;
  if (group.exclude()) {
    group_req request{};
    request.gr_interface = interface;
    request.gr_group = address_of(group.group());
    check(::setsockopt(fd, level, MCAST_JOIN_GROUP, &request, sizeof request), "join a multicast group with", who);
  }
  const int name = group.exclude() ? MCAST_BLOCK_SOURCE : MCAST_JOIN_SOURCE_GROUP;
  for (const std::string& source : group.sources()) {
    const group_source_req request = source_request(interface, group, source);
    check(::setsockopt(fd, level, name, &request, sizeof request), "choose a multicast source with", who);
  }
}

}  // namespace

void describe_multicast(int fd, const ProcDir& task, const std::string& who, ext::SocketState& out) {
  if (takes_option_memory(fd)) {
    std::vector<Membership> candidates;
    read_igmp(task.read("net/igmp"), candidates);
    if (try_socket_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6) read_igmp6(task.read("net/igmp6"), candidates);
    for (const Membership& m : candidates)
      if (auto group = joined(fd, m, who)) *out.add_groups() = std::move(*group);
  }
  describe_outgoing(fd, who, out);
}

std::set<std::string> interfaces_of(int fd, const ProcDir& task, const std::string& who) {
  std::set<std::string> names = interfaces_in_options(fd, who);
  if (try_socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM) return names;
  // What is held back (UDP_CORK) would be sent by a probe.
  int unsent = 0;
  if (::ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent != 0) return names;
  ext::SocketState state;
  describe_multicast(fd, task, who, state);
  for (const ext::JoinedGroup& group : state.groups()) names.insert(group.interface());
  if (!state.multicast_interface().empty()) names.insert(state.multicast_interface());
  return names;
}

void apply_multicast(int fd, const ext::SocketState& state, const std::string& who) {
  for (const ext::JoinedGroup& group : state.groups()) join(fd, group, who);
  if (state.multicast_interface().empty()) return;
  ip_mreqn request{};
  request.imr_ifindex = interface_number(fd, state.multicast_interface(), who);
  check(::setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof request), "set IP_MULTICAST_IF of", who);
}

}  // namespace migrate
