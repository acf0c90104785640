#include "core/inject/lock_visit.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "core/inject/visit.h"

namespace migrate {
namespace {

/// For a copy that had it and is just ending.
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

std::map<Pid, std::vector<HeldLock>> by_task(std::span<const HeldLock> locks) {
  std::map<Pid, std::vector<HeldLock>> sorted;
  for (const HeldLock& lock : locks) sorted[lock.pid].push_back(lock);
  return sorted;
}

std::vector<Pid> living_holders(std::span<const HeldLock> locks) {
  std::vector<Pid> living;
  for (const auto& [pid, of_task] : by_task(locks)) {
    try {
      const char state = ProcDir(pid.get()).stat().state;
      if (state != 'Z' && state != 'X') living.push_back(pid);
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
    }
  }
  return living;
}

StoppedTask* find_task(std::vector<StoppedTask>& tasks, Pid pid) {
  const auto it = std::ranges::find(tasks, pid, &StoppedTask::pid);
  return it == tasks.end() || it->state == TaskState::zombie ? nullptr : &*it;
}

std::vector<int64_t> visit_for_locks(StoppedTask& task, std::span<const HeldLock> locks, bool take,
                                     DomainWitnesses& witnesses, Logger& log, const FaultHook& hook) {
  const std::vector<int> no_timers;
  Visit visit(task, no_timers, witnesses, hook, log);
  std::vector<int64_t> results = visit.run_leader_for_locks(locks, take);
  visit.cure();
  return results;
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

void take_of_task(StoppedTask* task, std::vector<HeldLock> locks, DomainWitnesses& witnesses, Logger& log,
                  std::vector<std::string>& lost) {
  const Deadline deadline = Deadline::in(kMoment);
  std::string why = "another process has it";
  try {
    while (task != nullptr && !(locks = take_some(*task, locks, witnesses, log)).empty() && !deadline.passed()) pause();
  } catch (const Error& e) {
    why = e.what();
  }
  if (task == nullptr) return;  // they ended with it
  for (const HeldLock& lock : locks) lost.push_back(without(lock, why));
}

/// Of a line of /proc/locks ("1: -> POSIX  ADVISORY  WRITE 4242 08:01:1234 0 EOF"): who waits, and for which file.
struct Waiter {
  Pid pid;
  uint64_t inode = 0;
};
std::optional<Waiter> waiter_of(const std::string& line) {
  std::istringstream words(line);
  std::string number, arrow, kind, mode, type, device;
  pid_t pid = 0;
  uint64_t inode = 0;
  words >> number >> arrow >> kind >> mode >> type >> pid;
  if (!words || arrow != "->") return std::nullopt;
  // Its device is not always what stat(2) tells (btrfs, overlay): the file's number alone is compared.
  std::getline(words, device, ':');
  std::getline(words, device, ':');
  words >> inode;
  return Waiter{Pid(pid), inode};
}

}  // namespace

void give_up_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log,
                   const FaultHook& hook) {
  DomainWitnesses witnesses;
  for (const auto& [pid, of_task] : by_task(locks)) {
    StoppedTask* task = find_task(tasks, pid);
    if (task == nullptr) continue;
    const std::vector<int64_t> results = visit_for_locks(*task, of_task, false, witnesses, log, hook);
    for (size_t i = 0; i < of_task.size(); ++i)
      if (results[i] < 0)
        throw Error("give up the lock on " + of_task[i].path + " of", "task " + std::to_string(pid.get()),
                    static_cast<int>(-results[i]));
  }
}

std::vector<std::string> take_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log) {
  std::vector<std::string> lost;
  DomainWitnesses witnesses;
  for (auto& [pid, of_task] : by_task(locks)) take_of_task(find_task(tasks, pid), of_task, witnesses, log, lost);
  return lost;
}

std::vector<std::string> run_on_with_locks(std::span<const HeldLock> locks, const std::function<void()>& thaw,
                                           Logger& log) {
  bool thawed = false;
  const auto once = [&] {
    if (!std::exchange(thawed, true)) thaw();
  };
  std::vector<std::string> lost;
  for (const Deadline deadline = Deadline::in(kWayBack);;) {
    try {
      const std::vector<Pid> holders = living_holders(locks);
      if (holders.empty()) break;
      StoppedTree::Options options;
      options.descendants = false;
      options.others.assign(holders.begin() + 1, holders.end());
      if (!thawed) options.thaw = once;
      StoppedTree stopped(holders.front(), options, log);
      lost = take_locks(stopped.tasks(), locks, log);
      break;
    } catch (const Error& e) {
      once();
      if (deadline.passed()) {
        for (const HeldLock& lock : locks) lost.push_back(without(lock, e.what()));
        break;
      }
      pause();
    }
  }
  once();
  return lost;
}

void refuse_waiters_outside(std::span<const HeldLock> locks, std::span<const Pid> tasks) {
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/locks", 64 << 20));
  for (std::string line; std::getline(lines, line);) {
    const std::optional<Waiter> waiter = waiter_of(line);
    if (!waiter || std::ranges::find(tasks, waiter->pid) != tasks.end()) continue;
    const auto lock = std::ranges::find(locks, waiter->inode, &HeldLock::inode);
    if (lock == locks.end()) continue;
    throw Refusal("process " + std::to_string(waiter->pid.get()) + " waits for the lock of task " +
                      std::to_string(lock->pid.get()) + " on " + lock->path +
                      ", and would get it while that is given up for the move",
                  "end that process, or let it try again later");
  }
}

}  // namespace migrate
