#include "core/files/raw_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <sstream>

#include "core/files/net_table.h"

namespace migrate {

bool is_raw(const img::inet_sk_entry& e) { return e.type() == SOCK_RAW; }

bool is_ping(const img::inet_sk_entry& e) {
  return e.type() == SOCK_DGRAM &&
         e.proto() == static_cast<uint32_t>(e.family() == AF_INET ? +IPPROTO_ICMP : +IPPROTO_ICMPV6);
}

void check_raw_socket(const OpenFile& file, uint32_t proto) {
  const bool v6 = file.domain == AF_INET6;
  if (proto != static_cast<uint32_t>(v6 ? +IPPROTO_ICMPV6 : +IPPROTO_IGMP)) return;
  std::string routes;
  try {
    routes = file.proc->read(v6 ? "net/ip6_mr_vif" : "net/ip_mr_vif");
  } catch (const Error&) {
    return;  // a kernel that does not route multicast
  }
  const size_t heading = routes.find('\n');
  if (heading == std::string::npos || heading + 1 == routes.size()) return;
  throw Refusal(file.who() + ", a raw socket that may be the one by which multicast is routed (MRT_INIT)",
                "end the routing first");
}

std::optional<InetAddress> raw_peer(const OpenFile& file, const img::inet_sk_entry& e) {
  InetAddress peer;
  if (peer_address(file.ours.get(), peer)) return peer;
  const std::string table = std::string(is_raw(e) ? "net/raw" : "net/icmp") + (e.family() == AF_INET6 ? "6" : "");
  std::istringstream lines(file.proc->read(table.c_str()));
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    const NetTableLine socket = parse_net_table_line(line, static_cast<int>(e.family()));
    if (socket.inode != file.st.stx_ino || socket.state != TCP_ESTABLISHED) continue;
    return inet_address(socket.peer_address, socket.peer_port);
  }
  return std::nullopt;
}

void drop_received(int fd) {
  char byte;
  while (::recv(fd, &byte, sizeof byte, MSG_DONTWAIT | MSG_TRUNC) >= 0) {
  }
}

}  // namespace migrate
