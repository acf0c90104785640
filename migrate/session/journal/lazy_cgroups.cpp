#include "migrate/session/journal/lazy_cgroups.h"

#include <fcntl.h>

#include "core/base/error.h"
#include "core/freeze/apart_cgroups.h"

namespace migrate {
namespace {

constexpr unsigned kSeats = 3;

}  // namespace

LazyCgroups plan_lazy_cgroups(const SessionId& id) {
  ApartParents parents = find_apart_parents();
  LazyCgroups planned{.folders = {}, .without = std::move(parents.without)};
  for (const std::string& parent : parents.folders)
    for (unsigned seat = 0; seat < kSeats; ++seat)
      planned.folders.push_back(parent + "/" + lazy_cgroup_mark(id) + std::to_string(seat));
  return planned;
}

/// Of a hierarchy all or none: two in one cgroup would be no better than three.
LazyCgroups make_lazy_cgroups(LazyCgroups planned) {
  LazyCgroups made{.folders = {}, .without = std::move(planned.without)};
  for (auto one = planned.folders.begin(); one != planned.folders.end(); one += kSeats) {
    const std::vector<std::string> of_hierarchy(one, one + kSeats);
    try {
      make_cgroups(of_hierarchy);
      made.folders.insert(made.folders.end(), of_hierarchy.begin(), of_hierarchy.end());
    } catch (const Error& e) {
      if (made.without.empty()) made.without = e.what();
    }
  }
  return made;
}

std::array<std::vector<Fd>, 3> open_lazy_cgroups(const JournalEntry& entry) {
  std::array<std::vector<Fd>, kSeats> seats;
  for (const std::string& folder : entry.lazy_cgroups) {
    const auto seat = static_cast<unsigned>(folder.back() - '0');
    Fd procs(::open((folder + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
    if (procs && seat < kSeats) seats[seat].push_back(std::move(procs));
  }
  return seats;
}

void remove_lazy_cgroups(const JournalEntry& entry, std::chrono::milliseconds patience, Logger& log) noexcept {
  try {
    remove_cgroups(entry.lazy_cgroups, patience);
  } catch (const std::exception& e) {
    log.warn("session {}: {}", to_hex(entry.id), e.what());
  }
}

}  // namespace migrate
