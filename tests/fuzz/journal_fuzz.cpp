// Journals: damaged by a disk, or written by whoever can write to the state folder.
#include <string>

#include "core/base/error.h"
#include "fuzz.h"
#include "migrate/session/journal/journal.h"

namespace migrate::fuzz {
namespace {

JournalEntry an_entry(Role role, State state) {
  JournalEntry e;
  e.id[3] = std::byte{42};
  e.role = role;
  e.state = state;
  e.label = "pid:42 (program)";
  e.peer = "192.0.2.7:7400";
  e.tasks = {{42, 1000}, {43, 1001}};
  e.init = TaskId{41, 999};
  e.socket_folders = {"/run/program"};
  e.cgroup.emplace();
  e.cgroup->folders = {"/sys/fs/cgroup/migrate-0000002a"};
  e.cgroup->came_from[42] = "/sys/fs/cgroup/user";
  return e;
}

}  // namespace

void run(std::span<const std::byte> input) {
  const std::string text(reinterpret_cast<const char*>(input.data()), input.size());
  try {
    const JournalEntry e = JournalEntry::from_json(text, "a journal");
    for (const TaskId& task : e.tasks) demand(task.pid > 0 && task.pid <= kMaxPid, "a task without a pid");
    demand(!e.init || (e.init->pid > 0 && e.init->pid <= kMaxPid), "an init without a pid");
    if (e.cgroup)
      for (const auto& [pid, folder] : e.cgroup->came_from) demand(pid > 0 && pid <= kMaxPid, "a pid out of range");
    const JournalEntry again = JournalEntry::from_json(e.to_json(), "again");
    demand(again.tasks == e.tasks && again.epoch == e.epoch && again.state == e.state, "a journal that changes");
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all;
  for (const auto& entry : {an_entry(Role::source, State::frozen), an_entry(Role::destination, State::prepared)}) {
    const std::string text = entry.to_json();
    const auto bytes = as_bytes_of(text);
    all.emplace_back(bytes.begin(), bytes.end());
  }
  return all;
}

}  // namespace migrate::fuzz
