// Pages of a tree that still runs at its source, in the coordinator: given back, or made ready to be filled. A peer
// names them, so that any number may come.
#pragma once

#include <span>

#include "core/files/restore_files.h"
#include "core/memory/page_io.h"
#include "core/memory/tree_layout.h"
#include "core/restore/shared_memory.h"
#include "core/restore/shells.h"

namespace migrate {

/// Both return when all shells have done it. What does not exist is passed over; Corrupt for an address that is no
/// page's. `files`: null as long as there are none.
void discard_pages(Shells& shells, SharedMemory& shared, FileRestorer* files, std::span<const PageDiscard> discards);
void reserve_pages(Shells& shells, std::span<const PageReserve> pages);

}  // namespace migrate
