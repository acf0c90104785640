#include "core/memory/track_tree.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
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

/// nullopt: it is gone.
std::optional<Looked> look_at(pid_t pid, const LivingTask* parent) {
  try {
    const ProcDir proc(pid);
    const auto status = proc.status();
    const auto state = status.find("State");
    if (state == status.end() || state->second.starts_with('X')) return std::nullopt;
    // As good as ended, too: it has left its memory already.
    const bool ended = state->second.starts_with('Z') || !status.contains("VmSize");
    Looked found{.task = {.pid = pid, .ended = ended}, .children = {}};
    if (!ended) found.children = proc.children();
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
      if (ended) return found;
      found.task.borrows_memory = ::syscall(SYS_kcmp, pid, parent->pid, KCMP_VM, 0, 0) == 0;
    }
    return found;
  } catch (const Error& e) {
    if (e.code() == ESRCH || e.code() == ENOENT) return std::nullopt;
    throw;
  }
}

}  // namespace

TreeLayout::Task layout_of(const LivingTask& task) {
  const int exit_signal = task.ended ? exit_signal_of_ended(task.exit_signal) : task.exit_signal;
  return {.pid = task.image_pid,
          .ppid = task.image_ppid,
          .pgid = task.pgid,
          .sid = task.sid,
          .terminal = task.terminal,
          .exit_signal = task.parent == 0 ? SIGCHLD : exit_signal,
          .areas = {}};
}

std::vector<LivingTask> list_living(Pid root, bool with_leaders) {
  std::vector<LivingTask> all, ended;
  std::vector<std::pair<pid_t, size_t>> to_see;  // and the parent's place
  const auto take = [&](pid_t pid, const LivingTask* parent) {
    auto found = look_at(pid, parent);
    if (!found) return;
    if (found->task.ended) return ended.push_back(found->task);
    for (const pid_t child : found->children) to_see.emplace_back(child, all.size());
    all.push_back(found->task);
  };
  take(root.get(), nullptr);
  for (size_t i = 0; i < to_see.size(); ++i) {
    const auto [pid, place] = to_see[i];
    const LivingTask parent = all[place];
    take(pid, &parent);
  }
  if (!with_leaders || all.empty()) return all;
  // Members of a session whose leader is there but dead cannot be made: most likely it is reaped soon.
  std::erase_if(ended, [&](const LivingTask& leader) {
    const auto leads = [&](pid_t LivingTask::*what) {
      return std::ranges::any_of(all, [&](const LivingTask& t) { return t.*what == leader.image_pid; });
    };
    return !leads(&LivingTask::pgid) || leads(&LivingTask::sid);
  });
  all.insert(all.end(), ended.begin(), ended.end());
  return all;
}

}  // namespace migrate
