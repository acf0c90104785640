// The giving end of CRIU's page server protocol (GET): pages of a tree that stands still, to whoever restored it.
#pragma once

#include <map>
#include <optional>

#include "core/base/fd.h"
#include "core/memory/page_io.h"
#include "core/memory/track_set.h"
#include "pageserver/criu_protocol.h"
#include "pageserver/stream.h"

namespace migrate {

/// Pages that were announced, and the descriptor to read them from at their address.
struct GivenMemory {
  PageSet pages;
  Fd fd;
};
using GivenMemories = std::map<MemoryId, GivenMemory>;

uint64_t announced_pages(const GivenMemories& memories);

/// Reads one request, within `deadline`. nullopt: the peer has left in an orderly way (of the stream, not of the
/// protocol). Only what may be asked for comes back: GET of announced pages, PARENT, CLOSE. The peer is hostile: throws
/// Corrupt for anything else, Disconnected, TimedOut, Cancelled.
std::optional<CriuRequest> read_get(Stream& stream, const GivenMemories& memories, Deadline deadline);
/// Gives the pages. False: the task is gone, and nothing was sent. Throws Error if they cannot be read: then the
/// connection must be cut, which tells the peer that they did not come. Memory taken does not depend on how many are
/// wanted.
[[nodiscard]] bool answer_get(Stream& stream, const GivenMemories& memories, const CriuRequest& get);
/// To a GET of a task that is gone, of a peer that understands it.
void answer_gone(Stream& stream, const CriuRequest& get);
/// To a PARENT.
void answer_parent(Stream& stream, bool has);
/// To a CLOSE.
void answer_close(Stream& stream);

}  // namespace migrate
