#include "core/ipc/whose_objects.h"

#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <sstream>

#include "core/base/proc_values.h"
#include "core/ipc/ipc_namespace.h"

namespace migrate {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

int64_t seconds_of(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return now.tv_sec;
}

/// When it began, seconds since 1970, rounded down; a second early rather than late.
int64_t began(const ProcDir& task) {
  const auto ticks = static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));
  const auto since_boot = static_cast<int64_t>(task.stat().start_time / ticks);
  return seconds_of(CLOCK_REALTIME) - (seconds_of(CLOCK_BOOTTIME) - since_boot) - 1;
}

/// A thread's call and the first argument: "70 0x5 0x7ffe...". nullopt: it runs, or may not be looked at.
std::optional<std::pair<IpcKind, int>> waits_for(const ProcDir& thread) {
  std::istringstream words(thread.read("syscall"));
  long nr = -1;
  std::string argument;
  if (!(words >> nr >> argument)) return std::nullopt;
  const auto id = static_cast<int>(std::strtoul(argument.c_str(), nullptr, 16));
  if (nr == SYS_semop || nr == SYS_semtimedop) return std::pair(IpcKind::semaphores, id);
  if (nr == SYS_msgrcv || nr == SYS_msgsnd) return std::pair(IpcKind::queue, id);
  return std::nullopt;
}

void add_waits(pid_t pid, WaitedFor& waits) {
  try {
    const ProcDir task(pid);
    for (const pid_t tid : task.threads())
      if (const auto object = waits_for(task.thread(tid))) waits.insert(*object);
  } catch (const Error& e) {
    if (!cannot_be_seen(e)) throw;
  }
}

std::string ipc_link(const ProcDir& task) {
  try {
    return task.link("ns/ipc");
  } catch (const Error& e) {
    if (!cannot_be_seen(e)) throw;
    return "";
  }
}

/// Who did something to each semaphore of a set last.
std::vector<pid_t> users_of_set(const IpcObject& set) {
  std::vector<pid_t> pids;
  for (int i = 0; i < static_cast<int>(set.size); ++i)
    if (const int pid = ::semctl(set.id, i, GETPID); pid > 0) pids.push_back(pid);
  return pids;
}

enum class Whose { trees, others, nobodys };

/// What the numbers in an object say of its users.
class Judge {
 public:
  Judge(const IpcUsers& users, const IsOutside& outside) : users_(users), outside_(outside) {}

  bool is_trees(const IpcObject& o) {
    const bool trees = used_by_tree(o);
    const pid_t other = used_outside(o);
    if (trees && other != 0) refuse(o, other);
    if (trees) check_owner(o);
    return trees || (other == 0 && is_anybodys(o));
  }

 private:
  /// The numbers of processes that an object has, and since when they are theirs.
  std::vector<std::pair<pid_t, int64_t>> recorded(const IpcObject& o) const {
    switch (o.kind) {
      case IpcKind::segment:
        return {{o.creator, o.changed}, {o.last_a, std::max(o.used_a, o.used_b)}};
      case IpcKind::queue:
        return {{o.last_a, o.used_a}, {o.last_b, o.used_b}};
      case IpcKind::semaphores:
        break;
    }
    std::vector<std::pair<pid_t, int64_t>> all;
    if (const auto it = users_.users_of_sets.find(o.id); it != users_.users_of_sets.end())
      for (const pid_t pid : it->second) all.emplace_back(pid, std::max(o.used_a, o.changed));
    return all;
  }

  bool used_by_tree(const IpcObject& o) const {
    if (o.kind == IpcKind::segment && users_.mappings.contains(o.id)) return true;
    if (users_.waits.contains({o.kind, o.id})) return true;
    if (o.kind == IpcKind::semaphores &&
        std::ranges::any_of(users_.undos, [&](const UndoList& undo) { return undo.set == o.id; }))
      return true;
    return std::ranges::any_of(recorded(o), [&](const auto& use) {
      const auto task = users_.tree.find(use.first);
      return task != users_.tree.end() && task->second <= use.second;  // else somebody dead had that number
    });
  }

  bool belongs_to_tree(const IpcObject& o) const {
    return users_.users.contains(o.uid) || users_.users.contains(o.cuid);
  }

  /// It is removed at the source, which only its owner, its creator and root may do.
  void check_owner(const IpcObject& o) const {
    if (belongs_to_tree(o) || users_.users.contains(0)) return;
    throw Refusal(
        o.describe() + " is used by the tree and belongs to user " + std::to_string(o.uid) +
            ", whom no task of the tree runs as",
        "have the program use an object that its own user made, or start it and all who use that object in an "
        "IPC namespace of their own (unshare -i), and move them together");
  }

  /// Who, or -1: somebody who is not known by number; 0: nobody.
  pid_t used_outside(const IpcObject& o) const {
    if (o.kind == IpcKind::segment) {
      const auto mapped = users_.mappings.find(o.id);
      const uint64_t ours = mapped == users_.mappings.end() ? 0 : mapped->second;
      if (users_.exact && o.attached > ours) return -1;
      if (!users_.exact && ours == 0 && o.attached != 0) return -1;
      return o.creator != 0 && !users_.tree.contains(o.creator) && outside_(o.creator, o.changed) ? o.creator : 0;
    }
    if (users_.others_wait.contains({o.kind, o.id})) return -1;
    for (const auto& [pid, used] : recorded(o))
      if (pid != 0 && !users_.tree.contains(pid) && outside_(pid, used)) return pid;
    return 0;
  }

  /// Nobody who lives is known to use it: it is left to others if it cannot have been made by the tree.
  bool is_anybodys(const IpcObject& o) const {
    if (std::max({o.changed, o.used_a, o.used_b}) < users_.since || !belongs_to_tree(o)) return false;
    throw Refusal(o.describe() + " of user " + std::to_string(o.uid) +
                      " was made, changed or used while the tree ran, and nothing tells whether it is the tree's",
                  "try again when it is gone, remove it with `" + o.how_to_remove() +
                      "` if nobody needs it, or run the program in an IPC namespace of its own (unshare -i)");
  }

  [[noreturn]] static void refuse(const IpcObject& o, pid_t other) {
    throw Refusal(
        o.describe() + " is used by the tree and " +
            (other > 0 ? "by process " + std::to_string(other) + " outside of it" : std::string("outside of it")),
        "move a tree that holds all who use it, or end the others");
  }

  const IpcUsers& users_;
  const IsOutside& outside_;
};

}  // namespace

std::vector<IpcObject> pick_objects(const std::vector<IpcObject>& all, const IpcUsers& users,
                                    const IsOutside& outside) {
  for (const auto& [id, count] : users.mappings) {
    const auto known = std::ranges::find_if(
        all, [&](const IpcObject& o) { return o.kind == IpcKind::segment && o.id == id && o.attached != 0; });
    if (known == all.end() && users.exact)
      throw Refusal("System V shared memory segment " + std::to_string(id) +
                        " is attached in the tree and belongs to another IPC namespace",
                    "have the program detach it");
  }
  std::vector<IpcObject> trees;
  Judge judge(users, outside);
  for (const IpcObject& o : all)
    if (users.alone || judge.is_trees(o)) trees.push_back(o);
  return trees;
}

bool alone_in_ipc_namespace(const std::vector<ProcDir>& tasks) {
  std::set<pid_t> inside;
  for (const ProcDir& task : tasks) inside.insert(task.pid());
  const std::string ns = ipc_link(tasks.front());
  if (ns.empty() || ns == read_link_at(AT_FDCWD, "/proc/self/ns/ipc")) return false;
  for (const pid_t pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (inside.contains(pid)) continue;
    try {
      if (ipc_link(ProcDir(pid)) == ns) return false;
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
    }
  }
  return true;
}

IpcUsers look_at_ipc_users(const std::vector<ProcDir>& tasks) {
  IpcUsers users;
  users.since = INT64_MAX;
  users.alone = alone_in_ipc_namespace(tasks);
  for (const ProcDir& task : tasks) {
    try {
      const int64_t start = began(task);
      users.tree.emplace(task.pid(), start);
      users.since = std::min(users.since, start);
      std::istringstream ids(task.status()["Uid"]);
      for (uint32_t id = 0; ids >> id;) users.users.insert(id);
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
    }
  }
  return users;
}

void look_for_waiters(const std::vector<ProcDir>& tasks, IpcUsers& users) {
  for (const ProcDir& task : tasks) add_waits(task.pid(), users.waits);
  const std::string ns = ipc_link(tasks.front());
  for (const pid_t pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (users.tree.contains(pid)) continue;
    try {
      if (ipc_link(ProcDir(pid)) == ns) add_waits(pid, users.others_wait);
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
    }
  }
}

namespace {

/// Without a way to read them, none must be there.
void check_undos(const std::vector<IpcObject>& objects, const IpcUsers& users, bool known) {
  for (const IpcObject& o : objects) {
    if (o.kind != IpcKind::semaphores) continue;
    for (const UndoList& undo : users.undos)
      if (undo.set == o.id && o.size > kMostUndone)
        throw Refusal("process " + std::to_string(undo.pid) + " has used SEM_UNDO with " + o.describe() + " of " +
                          std::to_string(o.size) + " semaphores, which is too many to be read",
                      "run the program without SEM_UNDO");
    for (const auto& [pid, start] : users.tree)
      if (!known && may_have_undos(pid))
        throw Refusal("process " + std::to_string(pid) + " may have used SEM_UNDO, and uses " + o.describe(),
                      "only a kernel with BPF and its types (/sys/kernel/btf/vmlinux) tells what there is to undo");
  }
}

}  // namespace

TreeObjects find_tree_objects(const std::vector<ProcDir>& tasks, IpcUsers users,
                              const std::optional<UndoReader>& undo_reader) {
  std::vector<IpcObject> all;
  in_ipc_namespace(tasks.front(), [&] {
    all = list_ipc_objects();
    for (const IpcObject& o : all)
      if (o.kind == IpcKind::semaphores && !users.alone) users.users_of_sets[o.id] = users_of_set(o);
  });
  if (undo_reader) {
    std::set<pid_t> pids;
    for (const auto& [pid, start] : users.tree) pids.insert(pid);
    users.undos = undo_reader->read(pids);
  }
  const IsOutside outside = [](pid_t pid, int64_t used) {
    try {
      return began(ProcDir(pid)) <= used;
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
      return false;
    }
  };
  TreeObjects found{.objects = pick_objects(all, users, outside), .undos = users.undos};
  check_undos(found.objects, users, undo_reader.has_value());
  return found;
}

}  // namespace migrate
