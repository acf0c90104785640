// What waits in the queue of a Unix socket, read without taking anything of it.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"

namespace migrate {

/// PacketSender.urgent
inline constexpr uint32_t kUrgent = 1, kUrgentTaken = 2;

struct QueuedMessage {
  std::vector<std::byte> bytes;
  std::optional<ucred> from{};  ///< who sent it, as far as that is told
  std::string address{};        ///< of a datagram: the name of the sender's socket
  uint32_t urgent = 0;
  std::vector<Fd> descriptors{};  ///< duplicates of those that come with it (SCM_RIGHTS)
};

struct UnixQueue {
  /// Of a stream: pieces that differ in sender, and urgent bytes by themselves. One with descriptors starts where the
  /// read that gets them must arrive at.
  std::vector<QueuedMessage> messages;
  /// Behind them ECONNRESET: the peer was closed with data unread, and nobody has been told so far (unix(7)).
  bool reset = false;
};

/// The tree must stand still: options of the socket are changed meanwhile, and put back. `descriptors`: how many are
/// there, as fdinfo tells (scm_fds). Throws Refusal for a reset socket of messages: a look into its queue would take
/// the error; and for descriptors that stand beside urgent bytes, or are too many for us.
UnixQueue read_unix_queue(int fd, uint32_t type, size_t descriptors, const std::string& who);

/// Of a program that runs: descriptors of the first message, or of the first piece of a stream, that has some. None
/// where the program would see that somebody looked (SO_PEEK_OFF, an error that waits to be told).
std::vector<Fd> first_descriptors(int fd);

}  // namespace migrate
