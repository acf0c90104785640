#include "migrate/session/journal/lazy_cgroups.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <optional>
#include <string_view>

#include "core/base/error.h"
#include "core/base/procfs.h"
#include "core/freeze/apart_cgroups.h"

namespace migrate {
namespace {

constexpr unsigned kSeats = 3;

bool is_empty(const std::string& folder) {
  try {
    return read_file_at(AT_FDCWD, folder + "/cgroup.procs").empty();
  } catch (const Error&) {  // it is gone
    return false;
  }
}

/// Not of a session of another state folder that is only beginning.
bool is_old(const std::string& folder) {
  constexpr time_t kYoung = 60;  // seconds
  struct stat st {};
  return ::stat(folder.c_str(), &st) == 0 && ::time(nullptr) - st.st_mtime > kYoung;
}

/// Of the session that a lazy host's cgroup has this name for.
std::optional<SessionId> session_of_cgroup(std::string_view name) {
  constexpr std::string_view kFirst = "migrate-";
  constexpr size_t kDigits = 2 * SessionId().size();
  if (!name.starts_with(kFirst) || name.size() < kFirst.size() + kDigits) return std::nullopt;
  const std::optional<SessionId> id = session_from_hex(name.substr(kFirst.size(), kDigits));
  return id && name.starts_with(lazy_cgroup_mark(*id)) ? id : std::nullopt;
}

bool is_known(const JournalStore& store, const SessionId& id) {
  try {
    return store.peek(id, Role::destination).has_value();
  } catch (const Error&) {  // damaged, but there
    return true;
  }
}

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

bool has_lazy_cgroups(const JournalEntry& entry) {
  return std::ranges::any_of(entry.lazy_cgroups, [](const std::string& f) { return ::access(f.c_str(), F_OK) == 0; });
}

std::map<SessionId, std::vector<std::string>> stray_lazy_cgroups(const JournalStore& store) {
  std::map<SessionId, std::vector<std::string>> strays;
  for (const std::string& parent : find_apart_parents().folders) {
    for_entries(AT_FDCWD, parent, [&](const dirent& e) {
      const std::optional<SessionId> id = e.d_type == DT_DIR ? session_of_cgroup(e.d_name) : std::nullopt;
      const std::string folder = parent + "/" + e.d_name;
      if (id && is_empty(folder) && is_old(folder) && !is_known(store, *id)) strays[*id].push_back(folder);
    });
  }
  return strays;
}

void remove_lazy_cgroups(const JournalEntry& entry, std::chrono::milliseconds patience, Logger& log) noexcept {
  try {
    remove_cgroups(entry.lazy_cgroups, patience);
  } catch (const std::exception& e) {
    log.warn("session {}: {}", to_hex(entry.id), e.what());
  }
}

}  // namespace migrate
