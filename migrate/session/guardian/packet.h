// The local socket between an agent and its guardian (SOCK_SEQPACKET): requests and replies, blobs in memfds,
// descriptors in batches. Both ends are ours and trusted; either may die at any time.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/image/image_set.h"
#include "core/memory/page_io.h"
#include "migrate/session/journal/trees.h"

namespace google::protobuf {
class MessageLite;
}

namespace migrate {

/// The other process is gone. An expected outcome for who talks to it, so it has a type of its own.
class GuardianGone : public Error {
 public:
  using Error::Error;
};

class PacketSocket {
 public:
  enum class Outcome { message, closed, timeout };

  explicit PacketSocket(Fd socket) : socket_(std::move(socket)) {}
  int fd() const { return socket_.get(); }
  /// A pidfd of the process that made the pair; empty if it has ended.
  Fd open_peer() const;

  /// Throws GuardianGone if nobody is there.
  void send(const google::protobuf::MessageLite& message);
  Outcome receive(google::protobuf::MessageLite& message, const Deadline& deadline);

  /// Of any size, in a file that is passed. A blob that is received: throws GuardianGone, or Error at the deadline.
  void send_blob(std::span<const std::byte> bytes);
  std::vector<std::byte> receive_blob(const Deadline& deadline);
  /// A message that may be too large for a packet. Received: throws Corrupt as well.
  void send_blob(const google::protobuf::MessageLite& message);
  void receive_blob(google::protobuf::MessageLite& message, const Deadline& deadline);
  /// A file as it is, for receive_blob().
  void send_file(int fd);

  void send_descriptors(std::span<const int> fds);
  std::vector<Fd> receive_descriptors(size_t count, const Deadline& deadline);

  /// A connected pair, both close-on-exec.
  static std::pair<PacketSocket, PacketSocket> pair();

 private:
  bool readable(const Deadline& deadline) const;
  void pass(std::span<const std::byte> bytes, std::span<const int> fds);
  Fd socket_;
};

/// For a PacketSocket to another process of ours: connects to a Unix socket; an empty Fd if nobody listens there.
Fd connect_local(const std::string& path);
/// Listens there, in place of who did before.
Fd listen_local(const std::string& path);

/// An anonymous file with these contents, at offset 0.
Fd memory_file(std::span<const std::byte> bytes, const char* name);
std::vector<std::byte> read_whole(int fd, size_t limit);

/// All images as one run of bytes: {u32 name length, name, u64 size, bytes}, little-endian, each.
std::vector<std::byte> encode_images(const ImageSet& images);
/// Throws Corrupt; `bytes` may come from a peer.
ImageSet decode_images(std::span<const std::byte> bytes);

void send_sources(PacketSocket& socket, const std::vector<PageSource>& sources);
std::vector<PageSource> receive_sources(PacketSocket& socket, const Deadline& deadline);
void send_room(PacketSocket& socket, const Room& room);
Room receive_room(PacketSocket& socket, const Deadline& deadline);

}  // namespace migrate
