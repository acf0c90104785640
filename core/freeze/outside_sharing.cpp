#include "core/freeze/outside_sharing.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>

#include "core/base/error.h"
#include "core/base/procfs.h"

namespace migrate {
namespace {

/// kcmp(2): 0 equal, 1 less, 2 greater, by an order of the kernel's; -1 if one is gone.
long compare(pid_t a, pid_t b, int what) { return ::syscall(SYS_kcmp, a, b, what, 0, 0); }

bool descends(pid_t pid, const std::set<pid_t>& from) {
  try {
    while (pid > 0 && !from.contains(pid)) pid = ProcDir(pid).stat().ppid;
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return true;
  }
  return pid > 0;
}

/// The members in the kernel's order, so that a task is compared with few of them.
class Ordered {
 public:
  Ordered(std::vector<pid_t> members, int what) : members_(std::move(members)), what_(what) {
    std::sort(members_.begin(), members_.end(), [&](pid_t a, pid_t b) { return compare(a, b, what_) == 1; });
  }
  std::optional<pid_t> equal_to(pid_t tid) const {
    size_t low = 0, high = members_.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      const long order = compare(members_[middle], tid, what_);
      if (order == 0) return members_[middle];
      if (order < 0) return std::nullopt;
      (order == 1 ? low : high) = order == 1 ? middle + 1 : middle;
    }
    return std::nullopt;
  }

 private:
  std::vector<pid_t> members_;
  int what_;
};

/// A vfork(2), or an end, is over in a moment.
bool goes_on(pid_t member, pid_t tid, int what) {
  constexpr int kTries = 40;
  constexpr timespec kBetween{0, 5'000'000};
  for (int i = 0; i < kTries; ++i) {
    if (compare(member, tid, what) != 0 || !has_memory(tid) || !has_memory(member)) return false;
    ::nanosleep(&kBetween, nullptr);
  }
  return true;
}

/// A leader that has ended has no memory, and a thread may have a descriptor table of its own.
std::vector<pid_t> threads_of(pid_t pid) {
  try {
    return numeric_entries(AT_FDCWD, "/proc/" + std::to_string(pid) + "/task");
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return {};
  }
}

}  // namespace

bool has_memory(pid_t task) {
  try {
    return !read_file_at(AT_FDCWD, "/proc/" + std::to_string(task) + "/statm").starts_with("0 ");
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
}

std::set<pid_t> processes_outside(const std::set<pid_t>& inside) {
  const std::vector<int> all = numeric_entries(AT_FDCWD, "/proc");
  std::set<pid_t> outside(all.begin(), all.end());
  for (const pid_t pid : inside) outside.erase(pid);
  return outside;
}

void refuse_outside_sharing(const std::vector<pid_t>& members, const std::set<pid_t>& inside,
                            const std::set<pid_t>& known) {
  constexpr std::pair<int, const char*> kKinds[] = {{KCMP_VM, "memory"}, {KCMP_FILES, "descriptor table"}};
  const Ordered by_memory(members, KCMP_VM), by_files(members, KCMP_FILES);
  for (const pid_t pid : processes_outside(inside)) {
    for (const pid_t tid : known.contains(pid) ? std::vector{pid} : threads_of(pid)) {
      for (const auto& [what, name] : kKinds) {
        const auto member = (what == KCMP_VM ? by_memory : by_files).equal_to(tid);
        if (!member || !has_memory(tid) || descends(pid, inside) || !goes_on(*member, tid, what)) continue;
        throw Refusal("task " + std::to_string(pid) + ", outside the tree, shares the " + name + " of task " +
                          std::to_string(*member),
                      "move a tree that holds both");
      }
    }
  }
}

}  // namespace migrate
