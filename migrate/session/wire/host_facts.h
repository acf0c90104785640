// What the two hosts tell each other before anything is touched, and whether a tree of one can run on the other.
#pragma once

#include <string>
#include <vector>

#include "core/base/features.h"
#include "migration.pb.h"
#include "pageserver/page_codec.h"

namespace migrate {

inline constexpr uint32_t kProtocolVersion = 3;

/// This host's greeting. `packed_pages`: it takes pages that are compressed.
wire::Hello host_facts(bool packed_pages = true);

/// The codecs in which a peer takes pages.
CodecSet page_codecs(const wire::Hello& peer);
/// In Begin.page_codecs, of what may come.
uint32_t to_wire(CodecSet codecs);
CodecSet codecs_from_wire(uint32_t bits);

/// Whether trees of `source` can run at `destination`: all that is compared, with what follows and what to do.
std::vector<Feature> compare_hosts(const wire::Hello& source, const wire::Hello& destination);
/// Of these, what no tree can do without and is missing; empty: trees can run there.
std::vector<Feature> incompatibilities(const wire::Hello& source, const wire::Hello& destination);
/// Refusal if the peer speaks another version or needs what we lack.
void check_hello_version(const wire::Hello& peer);

}  // namespace migrate
