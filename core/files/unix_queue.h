// What waits in the queue of a Unix socket, read without taking anything of it.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace migrate {

/// PacketSender.urgent
inline constexpr uint32_t kUrgent = 1, kUrgentTaken = 2;

struct QueuedMessage {
  std::vector<std::byte> bytes;
  std::optional<ucred> from{};  ///< who sent it, as far as that is told
  std::string address{};        ///< of a datagram: the name of the sender's socket
  uint32_t urgent = 0;
};

struct UnixQueue {
  /// Of a stream: pieces that differ in sender, and urgent bytes by themselves.
  std::vector<QueuedMessage> messages;
  /// Behind them ECONNRESET: the peer was closed with data unread, and nobody has been told so far (unix(7)).
  bool reset = false;
};

/// Descriptors (SCM_RIGHTS) must not be there, and the tree must stand still: options of the socket are changed
/// meanwhile, and put back. Throws Refusal for a reset socket of messages: a look into its queue would take the error.
UnixQueue read_unix_queue(int fd, uint32_t type, const std::string& who);

}  // namespace migrate
