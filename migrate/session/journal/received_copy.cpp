#include "migrate/session/journal/received_copy.h"

namespace migrate {

void let_run(TreeKeeper& keeper, const JournalEntry& entry) {
  if (!keeper.lives(entry)) return;
  keeper.open_gate(entry);
  keeper.leave_gate(entry);
}

void write_pages_end(Journal& journal, const PagesEnd& end) {
  if (!end.lost.empty()) return journal.step(State::lost, kTreeGone, end.lost);
  journal.step_with(State::whole, kOwn, "all its pages are here" + but_for(end.given_up),
                    [&](JournalEntry& e) { e.given_up = end.given_up; });
}

void note_source_runs(Journal& journal) {
  const bool runs = journal.state() == State::gate_open || journal.state() == State::whole;
  if (runs && !journal.entry().source_runs) journal.update([](JournalEntry& e) { e.source_runs = true; });
}

std::string but_for(const std::string& given_up) {
  if (given_up.empty()) return {};
  return ", but for pages of " + given_up + ", killed at the source while they were there: who touches one gets SIGBUS";
}

}  // namespace migrate
