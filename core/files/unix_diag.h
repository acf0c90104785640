// The kernel's list of Unix sockets of a network namespace (sock_diag(7), NETLINK_SOCK_DIAG).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/base/procfs.h"

namespace migrate {

struct UnixSocketInfo {
  uint32_t ino = 0;
  uint8_t type = 0, state = 0, shutdown = 0;
  uint32_t peer = 0;              ///< inode of the peer, 0: none, or gone
  std::string name;               ///< as bound; abstract names start with NUL
  uint32_t file_ino = 0;          ///< of the file it is bound to
  std::vector<uint32_t> waiting;  ///< inodes of connections not accepted yet
  uint32_t backlog = 0;           ///< of listening sockets
};

/// By inode. `task` says whose network namespace; nullptr: ours.
std::map<uint32_t, UnixSocketInfo> list_unix_sockets(const ProcDir* task);

}  // namespace migrate
