#include "migrate/session/lazy/lazy_settling.h"

namespace migrate {
namespace {

/// As whoever looks at the session would (handover/destination_sessions), but that the copy needs nobody any more.
bool write_end(JournalStore& store, TreeKeeper& keeper, const SessionId& id, const PagesEnd& end) {
  std::optional<Journal> journal = store.take_over(id, Role::destination, false);
  if (!journal) return false;  // somebody looks, and asks us
  if (journal->state() != State::gate_open) return true;
  let_run(keeper, journal->entry());  // of a session that is WHOLE nobody sees to that
  write_pages_end(*journal, end);
  return true;
}

}  // namespace

bool settle_without_guardian(JournalStore& store, TreeKeeper& keeper, const SessionId& id, const PagesEnd& end) {
  const std::optional<JournalEntry> entry = store.peek(id, Role::destination);
  if (!entry) return true;
  switch (entry->state) {
    case State::gate_open:
      return write_end(store, keeper, id, end);
    case State::receiving:
    case State::prepared:
      // Without us it would not be let run: whoever looks takes it that its pages are gone.
      return !keeper.lives(*entry);
    default:
      return true;
  }
}

}  // namespace migrate
