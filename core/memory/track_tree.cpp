#include "core/memory/track_tree.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include "core/base/proc_values.h"

namespace migrate {
namespace {

/// The last number of NSpid, NSpgid or NSsid: that in the task's own namespace.
pid_t innermost_of(const StatusFields& status, const char* key) {
  const auto found = status.find(key);
  return found == status.end() ? 0 : innermost(found->second);
}

struct Looked {
  LivingTask task;
  std::vector<pid_t> children;
};

/// nullopt: it ended, or is ending.
std::optional<Looked> look_at(pid_t pid, const LivingTask* parent) {
  try {
    const ProcDir proc(pid);
    const auto status = proc.status();
    const auto state = status.find("State");
    if (state == status.end() || state->second.starts_with('Z') || state->second.starts_with('X')) return std::nullopt;
    if (!status.contains("VmSize")) return std::nullopt;  // it has left its memory already
    Looked found{.task = {.pid = pid}, .children = proc.children()};
    found.task.image_pid = innermost_of(status, "NSpid");
    found.task.pgid = innermost_of(status, "NSpgid");
    found.task.sid = innermost_of(status, "NSsid");
    const ProcStat stat = proc.stat();
    found.task.terminal = pseudo_terminal(stat.tty_nr);
    found.task.exit_signal = stat.exit_signal;
    if (found.task.image_pid == 0) return std::nullopt;
    if (parent != nullptr) {
      found.task.parent = parent->pid;
      found.task.image_ppid = parent->image_pid;
      found.task.borrows_memory = ::syscall(SYS_kcmp, pid, parent->pid, KCMP_VM, 0, 0) == 0;
    }
    return found;
  } catch (const Error& e) {
    if (e.code() == ESRCH || e.code() == ENOENT) return std::nullopt;
    throw;
  }
}

}  // namespace

std::vector<LivingTask> list_living(Pid root) {
  std::vector<LivingTask> all;
  std::vector<std::pair<pid_t, size_t>> to_see;  // and the parent's place
  const auto take = [&](pid_t pid, const LivingTask* parent) {
    auto found = look_at(pid, parent);
    if (!found) return;
    for (const pid_t child : found->children) to_see.emplace_back(child, all.size());
    all.push_back(found->task);
  };
  take(root.get(), nullptr);
  for (size_t i = 0; i < to_see.size(); ++i) {
    const auto [pid, place] = to_see[i];
    const LivingTask parent = all[place];
    take(pid, &parent);
  }
  return all;
}

}  // namespace migrate
