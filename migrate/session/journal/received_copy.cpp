#include "migrate/session/journal/received_copy.h"

namespace migrate {

void let_run(TreeKeeper& keeper, const JournalEntry& entry) {
  if (!keeper.lives(entry)) return;
  keeper.open_gate(entry);
  keeper.leave_gate(entry);
}

void write_pages_end(Journal& journal, const std::string& lost) {
  if (lost.empty()) {
    journal.step(State::whole, kOwn, "all its pages are here");
  } else {
    journal.step(State::lost, kTreeGone, lost);
  }
}

}  // namespace migrate
