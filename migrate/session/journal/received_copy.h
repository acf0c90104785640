// What is done about a copy that runs at the destination, by whoever finds that it is to be done: its guardian, its
// lazy host, or who looks at the session when there is no guardian.
#pragma once

#include <string>

#include "migrate/session/journal/trees.h"

namespace migrate {

/// Of a session whose gate is open, as its journal says: whoever wrote that may have died before the gate was thawed,
/// or taken away. Nothing if the copy is dead.
void let_run(TreeKeeper& keeper, const JournalEntry& entry);

/// Of a lazy session whose gate is open: writes that the copy needs nothing of the source any more, or, with `lost`,
/// why it never gets what it needs.
void write_pages_end(Journal& journal, const std::string& lost);

}  // namespace migrate
