// TreeKeeper over freezer cgroups: the tree by what its journal says, or, when the journal was not written in time, by
// the cgroup's name, which holds the session id.
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <poll.h>
#include <algorithm>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/files/hidden_sockets.h"
#include "core/files/reset_connections.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/inject/lock_visit.h"
#include "core/ipc/left_behind.h"
#include "migrate/session/journal/trees.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kKillTime{10'000};

void find_folders(const std::string& at, const std::string& name, int depth, std::vector<std::string>& out) {
  if (depth > 32) return;
  std::vector<std::string> others;
  try {
    for_entries(AT_FDCWD, at, [&](const dirent& e) {
      if (e.d_type == DT_DIR) (e.d_name == name ? out : others).push_back(at + "/" + e.d_name);
    });
  } catch (const Error& e) {
    // One that is not seen would stay frozen.
    if (e.code() != ENOENT && e.code() != ENODEV && e.code() != EACCES) throw;
  }
  for (const std::string& folder : others) find_folders(folder, name, depth + 1, out);
}

/// Every freezer cgroup of this session: the journal's, and those that it does not know yet.
std::vector<FreezerCgroup::Record> records_of(const JournalEntry& entry) {
  std::vector<FreezerCgroup::Record> records;
  if (entry.cgroup) records.push_back(*entry.cgroup);
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  for (const bool v2 : {true, false}) {
    const std::optional<CgroupMount> mount = find_cgroup_mount(mounts, v2);
    if (!mount) continue;
    std::vector<std::string> folders;
    find_folders(mount->point, cgroup_name(entry.id, entry.role), 0, folders);
    if (entry.cgroup && entry.cgroup->v2 == v2) {
      std::erase_if(folders, [&](const std::string& f) {
        return std::find(entry.cgroup->folders.begin(), entry.cgroup->folders.end(), f) != entry.cgroup->folders.end();
      });
    }
    if (!folders.empty()) records.push_back({v2, folders, {}});
  }
  return records;
}

bool has_folder(const FreezerCgroup::Record& record) {
  return std::any_of(record.folders.begin(), record.folders.end(),
                     [](const std::string& f) { return ::access(f.c_str(), F_OK) == 0; });
}

/// SIGKILL through a pidfd, so that a pid that was reused meanwhile is spared. Gives the pidfd, nullopt if it was dead.
std::optional<Fd> signal_task(const TaskId& task) {
  std::optional<Fd> pidfd = open_pidfd(task.pid);
  if (!pidfd || !task.lives()) return std::nullopt;
  ::syscall(SYS_pidfd_send_signal, pidfd->get(), SIGKILL, nullptr, 0);
  return pidfd;
}

/// ... and waits for the end.
void kill_task(const TaskId& task) {
  const std::optional<Fd> pidfd = signal_task(task);
  if (!pidfd) return;
  pollfd p{pidfd->get(), POLLIN, 0};
  ::poll(&p, 1, static_cast<int>(kKillTime.count()));
}

/// A tree that has run since may have given up for good what it held then. One that was never held runs since its
/// guardian died, a moment ago.
bool wants_locks(const JournalEntry& entry, bool held) {
  constexpr std::chrono::seconds kMoment{10};
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const bool fresh = now - std::chrono::nanoseconds(entry.updated_ns) < kMoment;
  return !entry.locks.empty() && (held || (entry.state == State::preparing && fresh));
}

class CgroupKeeper final : public TreeKeeper {
 public:
  explicit CgroupKeeper(Logger& log) : log_(log) {}

  bool lives(const JournalEntry& entry) override {
    if (entry.boot_id != boot_id()) return false;
    return std::any_of(entry.tasks.begin(), entry.tasks.end(), [](const TaskId& t) { return t.lives(); });
  }

  std::vector<std::string> run_on(const JournalEntry& entry) override {
    std::vector<FreezerCgroup> held = ours(entry);
    const auto let_go = [&held] {
      for (FreezerCgroup& one : held) one.dissolve();
    };
    if (entry.boot_id != boot_id() || !wants_locks(entry, !held.empty())) return let_go(), std::vector<std::string>();
    std::vector<Pid> tasks;
    for (const TaskId& task : entry.tasks)
      if (task.lives()) tasks.emplace_back(task.pid);
    std::vector<std::string> lost = run_on_with_locks(entry.locks, tasks, let_go, log_);
    for (const std::string& sentence : lost) log_.error("{}", sentence);
    return lost;
  }

  void kill(const JournalEntry& entry) override {
    // What still has connections was moved without them (--tcp-close).
    for (const TaskId& task : entry.tasks)
      if (task.lives()) reset_connections(task.pid);
    for (FreezerCgroup& held : ours(entry)) {
      held.kill_all(kKillTime);
      held.dissolve();
    }
    if (entry.boot_id != boot_id() || lives(entry)) return;
    for (const std::string& stays : remove_left_behind(entry.left_behind)) log_.warn("{}", stays);
  }

  void open_gate(const JournalEntry& entry) override {
    for (FreezerCgroup& gate : ours(entry)) gate.thaw();
  }

  void discard(const JournalEntry& entry) override {
    if (entry.boot_id == boot_id()) kill_copy(entry);
    remove_hidden_sockets(entry.socket_folders, "", entry.hidden_mark());
  }

  void leave_gate(const JournalEntry& entry) override {
    for (FreezerCgroup& gate : ours(entry)) gate.dissolve();
  }

 private:
  void kill_copy(const JournalEntry& entry) {
    // The init first, but only queued: its tasks die with it as soon as they are thawed.
    if (entry.init) signal_task(*entry.init);
    for (FreezerCgroup& gate : ours(entry)) {
      gate.kill_all(kKillTime);
      gate.dissolve();
    }
    if (entry.init) kill_task(*entry.init);
    for (const TaskId& task : entry.tasks) kill_task(task);
  }

  std::vector<FreezerCgroup> ours(const JournalEntry& entry) {
    std::vector<FreezerCgroup> found;
    if (entry.boot_id != boot_id()) return found;
    for (FreezerCgroup::Record& record : records_of(entry)) {
      if (has_folder(record)) found.push_back(FreezerCgroup::adopt(std::move(record)));
    }
    log_.debug("session {}: {} cgroup record(s) of ours found", to_hex(entry.id), found.size());
    return found;
  }

  Logger& log_;
};

}  // namespace

std::unique_ptr<TreeKeeper> cgroup_keeper(Logger& log) { return std::make_unique<CgroupKeeper>(log); }

}  // namespace migrate
