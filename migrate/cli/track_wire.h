// What pre-dump and dump commands and the keeper of a tree's dirty tracker say to each other over a PacketSocket. Both
// ends are this program, run by the same user; they may be of different versions, which the version word tells.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/memory/page_runs.h"
#include "migrate/session/guardian/packet.h"

namespace migrate::cli {

struct TrackMessage {
  enum class Kind : uint64_t {
    // Requests.
    round = 1,  ///< the next round of the running tree; answered by `pages`, then the sources (send_sources)
    stored,     ///< the round's pages stand in the folder `folder`, `pages` is all that it and its parents have
    last,       ///< followed by the sources of the stopped tree; answered by `pages`
    end,        ///< answered by the end of the connection, when the tree is not tracked any more
    // Answers.
    pages,   ///< `pages` are as the folder `folder` of the request has them; `sentence` says why there are none
    done,    ///< to `stored`
    failed,  ///< with `sentence`; a Refusal if `remedy` is not empty
  };
  Kind kind = Kind::failed;
  std::string folder;  ///< run id of an image folder (image_chain.h)
  uint64_t timeout_ms = 10'000;
  PagesByMemory pages;
  std::string sentence, remedy;
};

void send_message(PacketSocket& socket, const TrackMessage& message);
/// Throws GuardianGone, Error at the deadline, Corrupt.
TrackMessage receive_message(PacketSocket& socket, const Deadline& deadline);

/// Exposed for tests.
std::vector<std::byte> encode_message(const TrackMessage& message);
TrackMessage decode_message(std::span<const std::byte> bytes);

}  // namespace migrate::cli
