// The events of page streams: what was chosen to compress with, and the live line.
#pragma once

#include <cstdint>

#include "migrate/session/telling/events.h"
#include "pageserver/codec_chooser.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// `codec`: the streams pack pages in another way from here on, and the numbers behind it.
void tell_codec(Events& events, const CodecChange& change);
/// `codec`: what the session begins with, and why it is not what was asked for; empty: it is.
void tell_codec(Events& events, const CodecChoice& choice, bool automatic, const std::string& why);

/// Where a running pass is.
struct PageProgress {
  uint64_t bytes = 0, total_bytes = 0, wire_bytes = 0;
  double bandwidth = 0;  ///< bytes of pages per second
};
/// ", 0.31 of it on the wire (zstd:1)"; empty if nothing was saved.
std::string ratio_text(uint64_t wire_bytes, uint64_t bytes);
/// The live line of a stopped tree's pages, event `progress`.
void show_pages(Events& events, const PageProgress& progress);

}  // namespace migrate
