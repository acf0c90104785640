// What is done about a copy that runs at the destination, by whoever finds that it is to be done: its guardian, its
// lazy host, or who looks at the session when there is no guardian.
#pragma once

#include <string>

#include "migrate/session/journal/trees.h"

namespace migrate {

/// Of a session whose gate is open, as its journal says: whoever wrote that may have died before the gate was thawed,
/// or taken away. Nothing if the copy is dead.
void let_run(TreeKeeper& keeper, const JournalEntry& entry);

/// How the pages of a lazy session ended: all of them are here ...
struct PagesEnd {
  std::string lost;      ///< ... or this says why the rest never comes
  std::string given_up;  ///< ... but for what tasks missed that have ended at the source: these
};

/// Of a lazy session whose gate is open: writes that the copy needs nothing of the source any more, or why it never
/// gets what it needs.
void write_pages_end(Journal& journal, const PagesEnd& end);

/// The source says that its tree runs: of a copy that runs, too, the journal tells it from now on. Only an operator's
/// word can have brought that about.
void note_source_runs(Journal& journal);

/// To go on a sentence that all pages are here: nothing, or which are not, and what that means.
std::string but_for(const std::string& given_up);

}  // namespace migrate
