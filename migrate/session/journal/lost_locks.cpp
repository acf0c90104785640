#include "migrate/session/journal/lost_locks.h"

namespace migrate {

void note_lost_locks(Journal& journal, const std::vector<std::string>& lost, Logger& log) noexcept {
  if (lost.empty()) return;
  constexpr size_t kTold = 8;
  std::string text;
  for (size_t i = 0; i < lost.size() && i < kTold; ++i) text += (i == 0 ? "" : "; ") + lost[i];
  if (lost.size() > kTold) text += "; and " + std::to_string(lost.size() - kTold) + " more";
  try {
    journal.update([&](JournalEntry& e) { e.lost_locks = text; });
  } catch (const std::exception& e) {
    log.warn("session {}: {}", to_hex(journal.id()), e.what());
  }
}

std::string but_for_locks(const JournalEntry& entry) {
  return entry.lost_locks.empty() ? "" : ", but not all of it is as before: " + entry.lost_locks;
}

}  // namespace migrate
