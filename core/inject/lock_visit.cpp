#include "core/inject/lock_visit.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "core/inject/visit.h"

namespace migrate {
namespace {

/// For a copy that had them and is just ending.
constexpr std::chrono::milliseconds kMoment{300};
/// For a task that a dead tracer left in the middle of a visit.
constexpr std::chrono::milliseconds kWayBack{1'000};

void pause() { ::usleep(5'000); }

std::string lock_name(const HeldLock& lock) {
  const char* kind = lock.lock.kind == kLockFlock ? "flock(2)" : lock.lock.kind == kLockPosix ? "POSIX" : "OFD";
  return std::string("its ") + kind + " lock on " + lock.path;
}

std::string without(const HeldLock& lock, const std::string& why) {
  return "task " + std::to_string(lock.pid.get()) + " runs on without " + lock_name(lock) + ": " + why;
}

bool is_living(Pid pid) {
  try {
    const char state = ProcDir(pid.get()).stat().state;
    return state != 'Z' && state != 'X';
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
}

StoppedTask* find_task(std::vector<StoppedTask>& tasks, Pid pid) {
  const auto it = std::ranges::find(tasks, pid, &StoppedTask::pid);
  return it == tasks.end() || it->state == TaskState::zombie ? nullptr : &*it;
}

/// Each lock once, by a task that is there; a POSIX lock has ended with its task.
using LocksOfTasks = std::map<Pid, std::vector<HeldLock>>;
LocksOfTasks by_task(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks) {
  LocksOfTasks sorted;
  std::set<uint32_t> taken;
  for (const HeldLock& lock : locks)
    if (find_task(tasks, lock.pid) != nullptr && taken.insert(lock.number).second) sorted[lock.pid].push_back(lock);
  return sorted;
}

std::vector<int64_t> visit_for_locks(StoppedTask& task, std::span<const HeldLock> locks, bool take,
                                     DomainWitnesses& witnesses, Logger& log, const FaultHook& hook) {
  const std::vector<int> no_timers;
  Visit visit(task, no_timers, witnesses, hook, log);
  std::vector<int64_t> results = visit.run_leader_for_locks(locks, take);
  visit.cure();
  return results;
}

/// The task may have put something else under the number since.
bool is_of_same_file(const StoppedTask& task, const HeldLock& lock) {
  struct stat st {};
  return ::fstatat(task.proc.fd(), ("fd/" + std::to_string(lock.fd)).c_str(), &st, 0) == 0 &&
         st.st_dev == lock.device && st.st_ino == lock.inode;
}

/// Those of `locks`, all of one task, that somebody else has.
std::vector<HeldLock> take_some(StoppedTask& task, const std::vector<HeldLock>& locks, DomainWitnesses& witnesses,
                                Logger& log) {
  std::vector<HeldLock> missed;
  const std::vector<int64_t> results = visit_for_locks(task, locks, true, witnesses, log, {});
  for (size_t i = 0; i < locks.size(); ++i) {
    if (results[i] == 0) continue;
    missed.push_back(locks[i]);
    if (results[i] != -EAGAIN && results[i] != -EACCES)
      log.warn("task {} and {}: {}", task.pid.get(), lock_name(locks[i]), std::strerror(static_cast<int>(-results[i])));
  }
  return missed;
}

/// Throws Error where a task cannot be visited.
std::vector<std::string> take_by_visits(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log) {
  std::vector<std::string> lost;
  DomainWitnesses witnesses;
  const Deadline deadline = Deadline::in(kMoment);
  for (auto& [pid, wanted] : by_task(tasks, locks)) {
    StoppedTask& task = *find_task(tasks, pid);
    std::erase_if(wanted, [&](const HeldLock& lock) {
      const bool other = !is_of_same_file(task, lock);
      if (other) lost.push_back(without(lock, "it has closed that file since"));
      return other;
    });
    while (!wanted.empty() && !(wanted = take_some(task, wanted, witnesses, log)).empty() && !deadline.passed())
      pause();
    for (const HeldLock& lock : wanted) lost.push_back(without(lock, "another process has it"));
  }
  return lost;
}

std::vector<std::string> all_lost(std::span<const HeldLock> locks, const std::string& why) {
  std::vector<std::string> lost;
  for (const HeldLock& lock : locks) lost.push_back(without(lock, why));
  return lost;
}

/// One attempt. Throws Error.
std::vector<std::string> stop_and_take(std::span<const HeldLock> locks, std::span<const Pid> tasks,
                                       const std::function<void()>& thaw, Logger& log) {
  std::vector<Pid> living;
  for (const Pid pid : tasks)
    if (is_living(pid)) living.push_back(pid);
  const bool needed = std::ranges::any_of(
      locks, [&](const HeldLock& lock) { return std::ranges::find(living, lock.pid) != living.end(); });
  if (!needed) return {};
  StoppedTree::Options options;
  options.descendants = false;
  options.others.assign(living.begin() + 1, living.end());
  options.thaw = thaw;
  StoppedTree stopped(living.front(), options, log);
  return take_by_visits(stopped.tasks(), locks, log);
}

/// Of a line of /proc/locks: "1: POSIX  ADVISORY  WRITE 4242 08:01:1234 0 EOF", or of who waits for that one,
/// "1: -> POSIX  ADVISORY  WRITE 4243 08:01:1234 0 EOF". The pid is -1 where it is a description's.
struct LocksLine {
  std::string number;
  bool waits = false;
  pid_t pid = 0;
  uint64_t inode = 0;
};
LocksLine parse_locks_line(const std::string& line) {
  LocksLine parsed;
  std::istringstream words(line);
  std::string kind, mode, type, device;
  words >> parsed.number >> kind;
  if (kind == "->") parsed.waits = true, words >> kind;
  // The device is not always what stat(2) tells (btrfs, overlay): the file's number alone is compared.
  words >> mode >> type >> parsed.pid;
  std::getline(words, device, ':');
  std::getline(words, device, ':');
  words >> parsed.inode;
  return parsed;
}

}  // namespace

void give_up_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log,
                   const FaultHook& hook) {
  DomainWitnesses witnesses;
  for (const auto& [pid, of_task] : by_task(tasks, locks)) {
    const std::vector<int64_t> results = visit_for_locks(*find_task(tasks, pid), of_task, false, witnesses, log, hook);
    for (size_t i = 0; i < of_task.size(); ++i)
      if (results[i] < 0)
        throw Error("give up the lock on " + of_task[i].path + " of", "task " + std::to_string(pid.get()),
                    static_cast<int>(-results[i]));
  }
}

std::vector<std::string> take_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log) {
  try {
    return take_by_visits(tasks, locks, log);
  } catch (const Error& e) {
    return all_lost(locks, e.what());
  }
}

std::vector<std::string> run_on_with_locks(std::span<const HeldLock> locks, std::span<const Pid> tasks,
                                           const std::function<void()>& thaw, Logger& log) {
  bool thawed = false;
  const auto once = [&] {
    if (!thawed) thaw();
    thawed = true;
  };
  std::vector<std::string> lost;
  for (const Deadline deadline = Deadline::in(kWayBack);;) {
    try {
      lost = stop_and_take(locks, tasks, thawed ? std::function<void()>() : once, log);
      break;
    } catch (const std::exception& e) {
      once();
      lost = all_lost(locks, e.what());
      if (deadline.passed()) break;
      pause();
    }
  }
  once();
  return lost;
}

void refuse_waiters_outside(std::span<const HeldLock> locks, std::span<const Pid> tasks) {
  const auto in_tree = [&](pid_t pid) { return std::ranges::find(tasks, Pid(pid)) != tasks.end(); };
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/locks", 64 << 20));
  LocksLine held;
  for (std::string text; std::getline(lines, text);) {
    const LocksLine line = parse_locks_line(text);
    if (!line.waits) held = line;
    const auto lock = std::ranges::find(locks, line.inode, &HeldLock::inode);
    // Who waits for another's lock on the same file, or for that of a description that has no task, gets none of ours.
    const bool ours = line.waits && line.number == held.number && lock != locks.end() && in_tree(held.pid);
    if (!ours || line.pid <= 0 || in_tree(line.pid)) continue;
    throw Refusal("process " + std::to_string(line.pid) + " waits for the lock of task " + std::to_string(held.pid) +
                      " on " + lock->path + ", and would get it while that is given up for the move",
                  "end that process, or let it try again later");
  }
}

}  // namespace migrate
