// The receiving end of CRIU's page server protocol: pages of a dump elsewhere go into an image folder here.
#pragma once

#include <cstdint>

#include "core/memory/page_folder.h"
#include "pageserver/stream.h"

namespace migrate {

/// Serves one connection until the peer has closed its session; `folder` is finished by then. The peer is hostile:
/// memory taken grows with what arrives only. Throws Corrupt, Refusal (a request that is not served), Disconnected (the
/// peer left in the middle: the folder has no pagemaps then, and no restore takes it), TimedOut, Cancelled.
void serve_criu_pages(Stream& stream, PageFolder& folder);

}  // namespace migrate
