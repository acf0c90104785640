// How pages go that come late, for whoever sends them after the agent.
#pragma once

#include <cstdint>

#include "pageserver/page_codec.h"

namespace migrate {

struct FeedSettings {
  uint64_t bandwidth_limit = 0;  ///< bytes a second; 0: none
  Compression compression;       ///< as the operator wants it ...
  CodecSet codecs;               ///< ... and in which the destination takes pages
  int streams = 1;               ///< that fill, 1 to kMaxPageStreams - 1: there is one for what is asked for, too
};

}  // namespace migrate
