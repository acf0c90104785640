// Lines of /proc/net/{tcp,udp}{,6} (Documentation/networking/proc_net_tcp.rst).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace migrate {

struct NetTableLine {
  std::string address;  ///< local, as the kernel holds it: 4 bytes or 16
  uint16_t port = 0;
  std::string peer_address;  ///< likewise
  uint16_t peer_port = 0;
  uint32_t received = 0;  ///< bytes not read yet, the end of what the peer sends (FIN) counted as one
  uint8_t state = 0;      ///< TCP_LISTEN, ...; a UDP socket that is not connected has TCP_CLOSE
  uint64_t inode = 0;
};

/// Throws Corrupt for what is no line of a table of `family` (AF_INET, AF_INET6).
NetTableLine parse_net_table_line(std::string_view line, int family);

}  // namespace migrate
