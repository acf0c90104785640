#include "pageserver/peer_user.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "pageserver/tcp.h"

namespace migrate {
namespace {

/// As /proc/net/tcp and tcp6 write an address: words of 32 bits as they lie in memory, and the port
/// (Documentation/networking/proc_net_tcp.rst).
std::string table_text(const sockaddr_storage& address) {
  char text[48] = "";
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    std::snprintf(text, sizeof text, "%08X:%04X", in.sin_addr.s_addr, ntohs(in.sin_port));
  } else if (address.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
    uint32_t words[4];
    std::memcpy(words, &in.sin6_addr, sizeof words);
    std::snprintf(text, sizeof text, "%08X%08X%08X%08X:%04X", words[0], words[1], words[2], words[3],
                  ntohs(in.sin6_port));
  }
  return text;
}

}  // namespace

std::optional<uid_t> peer_user(int socket) {
  sockaddr_storage ours{}, theirs{};
  socklen_t our_size = sizeof ours, their_size = sizeof theirs;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&ours), &our_size) != 0) return {};
  if (ours.ss_family == AF_UNIX) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return {};
    return credentials.uid;
  }
  if (!is_loopback_connection(socket)) return {};
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&theirs), &their_size) != 0) return {};
  const std::string here = table_text(ours), there = table_text(theirs);
  std::ifstream table(ours.ss_family == AF_INET6 ? "/proc/thread-self/net/tcp6" : "/proc/thread-self/net/tcp");
  std::string line;
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string slot, local, remote, state, queues, timer, retransmits;
    uid_t user = 0;
    if (words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> user && local == there &&
        remote == here)
      return user;
  }
  return {};
}

}  // namespace migrate
