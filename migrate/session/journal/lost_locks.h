// Locks on files that a tree had given up for its move, and did not get again when it ran on at the source.
#pragma once

#include <string>
#include <vector>

#include "core/base/log.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// Writes down what run_on() of a tree or of its keeper has said. Never throws: the tree runs on, whatever the disk
/// says.
void note_lost_locks(Journal& journal, const std::vector<std::string>& lost, Logger& log) noexcept;

/// To go on a sentence that it runs on here: nothing, or what it lacks.
std::string but_for_locks(const JournalEntry& entry);

}  // namespace migrate
