// The kernel's list of Unix sockets of a network namespace (sock_diag(7), NETLINK_SOCK_DIAG).
#pragma once

#include <cstdint>
#include <map>
#include <span>
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
  uint32_t file_device = 0;       ///< of that: major << 20 | minor, as /proc/self/mountinfo has it
  std::vector<uint32_t> waiting;  ///< inodes of connections not accepted yet
  uint32_t backlog = 0;           ///< of listening sockets
  uint32_t queued = 0;            ///< of others: bytes to be received, of datagrams those of the first
  uint32_t unread = 0;            ///< of others: memory of what they have sent and nobody has received yet
};

/// A piece of the kernel's answer, aligned to four bytes. True: it was the last. Throws Error for a refusal.
bool parse_unix_sockets(std::span<const std::byte> bytes, std::map<uint32_t, UnixSocketInfo>& found);

/// To ask for sockets (sock_diag(7)) in the task's network namespace; nullptr: in ours.
Fd diag_socket(const ProcDir* task);

/// By inode. `task` says whose network namespace; nullptr: ours.
std::map<uint32_t, UnixSocketInfo> list_unix_sockets(const ProcDir* task);

}  // namespace migrate
