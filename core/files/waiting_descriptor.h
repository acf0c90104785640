// Descriptors in messages that nobody has received yet (unix(7), SCM_RIGHTS): what of them can be moved, and what
// images say of them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/files/open_file.h"
#include "core/image/image_set.h"

namespace migrate {

/// The kernel's limit of one message (SCM_MAX_FD).
inline constexpr size_t kMostInMessage = 253;

/// As kinds see it. `socket`: who() of the one where it waits, which `holder` has.
OpenFile waiting_file(const ProcDir& holder, Fd fd, const std::string& socket);

/// Refusal for one that no task has, if it has state that is restored by way of a task's number.
void check_waiting_descriptor(const OpenFile& file, img::fd_types type);

/// A message in the queue of a socket, or a piece of a stream's.
struct QueuedPacket {
  uint32_t socket;  ///< file id
  std::span<const std::byte> bytes;
  std::vector<uint32_t> files;  ///< ids of those that come with it
};
/// All of sk-queues.img, in order. The bytes are the images'. Throws Corrupt.
std::vector<QueuedPacket> read_queued_packets(const ImageSet& images);

/// Who has a socket may take what waits there, and what waits at a socket that does: `hand_on` gives what is said of
/// `socket` to `file`, too, and returns whether that was news of it. `sockets`: file ids to begin with, of any kind.
void hand_on_to_waiting(const ImageSet& images, std::vector<uint32_t> sockets,
                        const std::function<bool(uint32_t socket, uint32_t file)>& hand_on);

}  // namespace migrate
