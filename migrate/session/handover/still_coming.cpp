#include "migrate/session/handover/still_coming.h"

#include <unistd.h>

#include <algorithm>
#include <set>

#include "core/base/procfs.h"
#include "core/memory/track_tree.h"
#include "migrate/session/guardian/lazy_client.h"

namespace migrate {
namespace {

constexpr std::chrono::milliseconds kAnswer{2'000};

/// Those of the tree, and those that its root descends from.
std::set<pid_t> tasks_and_ancestors(Pid root) {
  std::set<pid_t> all;
  for (const LivingTask& task : list_living(root)) all.insert(task.pid);
  try {
    for (pid_t pid = root.get(); pid > 1; pid = ProcDir(pid).stat().ppid) all.insert(pid);
  } catch (const Error&) {  // one of them has just ended
  }
  return all;
}

}  // namespace

uint64_t missing_pages(const JournalStore& store, const SessionId& id) {
  try {
    std::optional<LazyClient> host = LazyClient::connect(store.lazy_path(id));
    return host ? host->ask(Deadline::in(kAnswer)).missing : 0;
  } catch (const Error&) {
    return 0;
  }
}

void refuse_while_pages_come(const std::string& state_dir, Pid root) {
  if (::access(state_dir.c_str(), F_OK) != 0) return;
  const JournalStore store(state_dir);
  std::set<pid_t> tasks;
  for (const JournalEntry& entry : store.list()) {
    if (entry.role != Role::destination || entry.state != State::gate_open || !entry.lazy) continue;
    if (tasks.empty()) tasks = tasks_and_ancestors(root);
    const bool its =
        std::ranges::any_of(entry.tasks, [&](const TaskId& t) { return tasks.contains(t.pid) && t.lives(); });
    const uint64_t missing = its ? missing_pages(store, entry.id) : 0;
    if (missing == 0) continue;
    throw Refusal("the memory of " + std::to_string(root.get()) + " is still coming from " + entry.peer + ": session " +
                      to_hex(entry.id) + ", " + std::to_string(missing) + " pages are missing",
                  "try again when it is whole; `migrate resolve " + to_hex(entry.id) + "` says when");
  }
}

}  // namespace migrate
