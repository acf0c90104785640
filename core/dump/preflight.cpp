#include "core/dump/preflight.h"

#include <linux/kcmp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <optional>
#include <set>
#include <sstream>

#include "core/base/proc_values.h"
#include "core/dump/dump_memory.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/freeze/outside_sharing.h"
#include "core/freeze/traced_by.h"
#include "core/inject/visit_places.h"
#include "core/ipc/whose_objects.h"
#include "core/memory/vma.h"
#include "core/task/core_image.h"
#include "core/task/proc_text.h"

namespace migrate {
namespace {

std::string task_name(const ProcDir& task) { return "task " + std::to_string(task.pid()); }

/// "" if it cannot be read (a namespace for children that has no task yet).
std::string ns_link(const ProcDir& task, const std::string& kind) {
  try {
    return task.link("ns/" + kind);
  } catch (const Error& e) {
    if (e.code() == ENOENT) return "";
    throw;
  }
}

/// What is mounted where, without ids, /proc, and terminals: a tree that was received has those of its own.
std::set<std::string> mounts(const ProcDir& task) {
  std::set<std::string> all;
  std::istringstream lines(task.read("mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point;
    words >> id >> parent >> device >> root >> point;
    if (point == "/proc" || point.starts_with("/proc/")) continue;
    const bool terminals = line.find(" - devpts ") != std::string::npos;
    if (terminals && (point == "/dev/pts" || point == "/dev/ptmx")) continue;
    all.insert(device + " " + root + " " + point);
  }
  return all;
}

void check_pid_namespace(const ProcDir& root) {
  if (innermost(root.status()["NSpid"]) == 1)
    throw Refusal(task_name(root) + " is the init of a pid namespace, as the first process of a container is",
                  "containers cannot be moved yet");
}

pid_t parent_of(pid_t pid) { return ProcDir(pid).stat().ppid; }

/// By the words of its auxiliary vector: the first of them is a small number, and what comes next is none.
bool is_32_bit(const ProcDir& task) {
  const std::string vector = task.read("auxv");
  uint64_t first = 0;
  if (vector.size() < sizeof first) return false;
  std::memcpy(&first, vector.data(), sizeof first);
  return first >> 32 != 0;
}

/// "" if it cannot be seen from here.
std::string cgroup_of(const ProcDir& task, const CgroupMount& mount, bool v2) {
  try {
    return cgroup_folder(mount, task.pid(), v2);
  } catch (const Error&) {
    return "";
  }
}

/// By itself or with a cgroup above it; the hierarchy's root has no such file.
bool is_frozen(const std::string& folder, bool v2) {
  if (folder.empty()) return false;
  try {
    if (v2) return read_file_at(AT_FDCWD, folder + "/cgroup.events").find("frozen 1") != std::string::npos;
    return read_file_at(AT_FDCWD, folder + "/freezer.state").starts_with("FROZEN");
  } catch (const Error&) {
    return false;
  }
}

/// Calls `check` for each living task. Members of a running tree come and go: one that ends meanwhile is passed over,
/// but for the root.
template <class Check>
void for_living(const std::vector<ProcDir>& tasks, Check check) {
  for (const ProcDir& task : tasks) {
    try {
      if (!is_zombie(task)) check(task);
    } catch (const Error& e) {
      if (!task_is_gone(e) || &task == &tasks.front()) throw;
    }
  }
}

/// Deadline and extensible policies (thread_image.cpp).
void check_scheduling(const ProcDir& task, pid_t tid) {
  const int policy = ::sched_getscheduler(tid);
  if (policy < 0) return;  // it ended
  switch (policy & ~SCHED_RESET_ON_FORK) {
    case SCHED_OTHER:
    case SCHED_FIFO:
    case SCHED_RR:
    case SCHED_BATCH:
    case SCHED_IDLE:
      return;
    default:
      throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task) + " runs under scheduling policy " +
                        std::to_string(policy & ~SCHED_RESET_ON_FORK) + " (deadline or extensible)",
                    "give it another policy with chrt(1) first");
  }
}

/// Whether a task that was not listed is a new descendant of one that was.
bool descends(pid_t pid, const std::set<pid_t>& from) {
  try {
    while (pid > 0 && !from.contains(pid)) pid = parent_of(pid);
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return true;
  }
  return pid > 0;
}

long compare(pid_t a, pid_t b, int what) { return ::syscall(SYS_kcmp, a, b, what, 0, 0); }
bool shares(pid_t a, pid_t b, int what) { return compare(a, b, what) == 0 && has_memory(a) && has_memory(b); }
/// A vfork(2) is over in a moment.
bool goes_on_sharing(pid_t a, pid_t b, int what) {
  constexpr int kTries = 40;
  constexpr timespec kBetween{0, 5'000'000};
  for (int i = 0; i < kTries && shares(a, b, what); ++i) ::nanosleep(&kBetween, nullptr);
  return shares(a, b, what);
}
bool differs(pid_t a, pid_t b, int what) { return compare(a, b, what) > 0 && has_memory(a) && has_memory(b); }

using Objects = std::set<std::pair<dev_t, uint64_t>>;

/// Objects without a name that a restore makes anew: nobody outside may have them mapped.
bool is_private_object(const Vma& vma) {
  return vma.has_file() && vma.shared &&
         (vma.name.starts_with("/dev/zero (deleted)") || vma.name.starts_with("[anon_shmem") ||
          vma.name.starts_with("/memfd:"));
}

void check_outside_mappers(const Objects& objects, const std::set<pid_t>& inside) {
  for (const pid_t pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (inside.contains(pid)) continue;
    std::vector<Vma> vmas;
    try {
      vmas = parse_smaps(ProcDir(pid).read("maps"));
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
      continue;
    }
    for (const Vma& vma : vmas)
      if (is_private_object(vma) && objects.contains({vma.device, vma.inode}) && !descends(pid, inside))
        throw Refusal("task " + std::to_string(pid) + ", outside the tree, shares memory with it: " + vma.describe(),
                      "move a tree that holds both");
  }
}

}  // namespace

bool is_zombie(const ProcDir& task) {
  char state = task.stat().state;
  // A thread that executes a program, or one that ends the others: over in a moment.
  constexpr int kTries = 100;
  constexpr timespec kBetween{0, 5'000'000};
  for (int i = 0; i < kTries && state == 'Z' && task.threads().size() > 1; ++i) {
    ::nanosleep(&kBetween, nullptr);
    state = task.stat().state;
  }
  if (state == 'Z' && task.threads().size() > 1)
    throw Refusal("the main thread of " + task_name(task) + " has ended while others run on",
                  "this cannot be moved yet");
  return state == 'Z' || state == 'X';
}

namespace {

bool is_kernel_thread(const ProcDir& task) {
  const StatusFields status = task.status();
  const auto told = status.find("Kthread");  // Linux 6.8
  return told != status.end() ? told->second == "1" : !status.contains("VmSize") && task.stat().state != 'Z';
}

}  // namespace

std::vector<ProcDir> collect_tree(Pid root) {
  if (!open_pidfd(root.get()))
    throw Refusal("there is no task " + std::to_string(root.get()), "give the pid of a running process");
  for (pid_t pid = ::getpid(); pid > 0; pid = parent_of(pid))
    if (pid == root.get())
      throw Refusal("task " + std::to_string(root.get()) + " is this process or an ancestor of it",
                    "run this from outside the tree");
  std::vector<ProcDir> tasks;
  tasks.emplace_back(root.get());
  if (tasks.front().threads().front() != root.get())
    throw Refusal(std::to_string(root.get()) + " is a thread, not a process", "give the pid of its process");
  if (is_kernel_thread(tasks.front()))
    throw Refusal(task_name(tasks.front()) + " is a kernel thread", "name a program instead");
  for (size_t i = 0; i < tasks.size(); ++i) {
    std::vector<pid_t> children;
    try {
      children = tasks[i].children();
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
    }
    for (const pid_t child : children) {
      try {
        tasks.emplace_back(child);
      } catch (const Error& e) {
        if (!task_is_gone(e)) throw;
      }
    }
  }
  return tasks;
}

void check_namespaces(const std::vector<ProcDir>& tasks) {
  const ProcDir self(::getpid());
  const ProcDir& root = tasks.front();
  if (ns_link(root, "pid") != ns_link(self, "pid")) check_pid_namespace(root);
  std::string kinds, options;
  // With the options of nsenter(1).
  constexpr std::pair<const char*, const char*> kKinds[] = {
      {"net", " -n"}, {"uts", " -u"}, {"ipc", " -i"}, {"user", " -U"}, {"cgroup", " -C"}};
  for (const auto& [kind, option] : kKinds) {
    if (ns_link(root, kind) == ns_link(self, kind)) continue;
    if (kind == std::string_view("ipc") && alone_in_ipc_namespace(tasks)) continue;
    kinds += (kinds.empty() ? "" : ", ") + std::string(kind);
    options += option;
  }
  if (ns_link(root, "mnt") != ns_link(self, "mnt") && mounts(root) != mounts(self)) {
    kinds += (kinds.empty() ? "" : ", ") + std::string("mount (with other mounts)");
    options += " -m";
  }
  if (!kinds.empty())
    throw Refusal(task_name(root) + " is in other namespaces than this command: " + kinds,
                  "run this inside of them: nsenter -t " + std::to_string(root.pid()) + options + " migrate ...");
  for_living(tasks, [&](const ProcDir& task) {
    for (const char* kind : {"net", "uts", "ipc", "user", "cgroup", "mnt", "pid", "time"})
      if (const std::string link = ns_link(task, kind); link != ns_link(root, kind) && !link.empty())
        throw Refusal(task_name(task) + " is in another " + kind + " namespace than the root of its tree",
                      "trees that span namespaces cannot be moved yet");
    for (const std::string kind : {"pid", "time"})
      if (ns_link(task, kind + "_for_children") != ns_link(task, kind) && has_memory(task.pid()))
        throw Refusal(task_name(task) + " has unshared the " + kind + " namespace of its future children",
                      "trees that span namespaces cannot be moved yet");
  });
}

void check_threads(const std::vector<ProcDir>& tasks) {
  for_living(tasks, [](const ProcDir& task) {
    for (const pid_t tid : task.threads()) {
      std::map<std::string, std::string> status;
      uint32_t flags = 0;
      try {
        const ProcDir thread = task.thread(tid);
        status = thread.status();
        flags = thread.stat().flags;
      } catch (const Error& e) {
        if (!task_is_gone(e)) throw;
        continue;
      }
      if (status["Seccomp"] != "0" && !status["Seccomp"].empty())
        throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task) + " runs under a seccomp filter",
                      "this cannot be moved yet; start the program without seccomp");
      constexpr uint32_t kIoFlusher = 0x180000;  // PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE (linux/sched.h)
      if ((flags & kIoFlusher) == kIoFlusher)
        throw Refusal(
            "thread " + std::to_string(tid) + " of " + task_name(task) + " is an I/O flusher (PR_SET_IO_FLUSHER)",
            "this cannot be moved yet; end that state first");
      if (status["x86_Thread_features"].find("shstk") != std::string::npos)  // Linux 6.6
        throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task) + " has a shadow stack",
                      "run it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
      check_scheduling(task, tid);
      uint64_t cookie = 0;
      if (::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, PR_SCHED_CORE_SCOPE_THREAD, &cookie) == 0 && cookie != 0)
        throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task) +
                          " shares its processor core with chosen tasks only (PR_SCHED_CORE)",
                      "this cannot be moved yet; give it the cookie of a task that has none (PR_SCHED_CORE_SHARE_TO, "
                      "coresched(1))");
      if (status["TracerPid"] != "0") throw traced_by(task_name(task), status["TracerPid"]);
      if (status["CoreDumping"] == "1")
        throw Refusal(task_name(task) + " is dumping its core", "nothing can be moved: it ends when that is done");
    }
  });
}

namespace {

/// Of a task that executes a program just now not all is mapped yet; of one that ends, nothing any more: both are over
/// in a moment. nullopt: it has ended.
std::optional<VisitNeeds> needs_of_visit(const ProcDir& task, size_t timers) {
  constexpr int kTries = 10;
  constexpr timespec kBetween{0, 2'000'000};
  for (int tries = 1;; ++tries) {
    try {
      return check_room_for_visit(task, timers);
    } catch (const Refusal&) {
      if (is_zombie(task)) return std::nullopt;
      if (tries == kTries) throw;
    }
    ::nanosleep(&kBetween, nullptr);
  }
}

}  // namespace

void check_visits(const std::vector<ProcDir>& tasks) {
  const uint64_t most_mappings =
      parse_number(read_file_at(AT_FDCWD, "/proc/sys/vm/max_map_count"), "/proc/sys/vm/max_map_count");
  for_living(tasks, [&](const ProcDir& task) {
    if (is_32_bit(task)) throw Refusal(task_name(task) + " runs a 32-bit program", "only 64-bit programs can be moved");
    const auto timers = parse_timers(task.read("timers"));
    const std::optional<VisitNeeds> needs = needs_of_visit(task, timers.size());
    if (!needs) return;
    const uint64_t limit = parse_limits(task.read("limits"))[RLIMIT_AS].cur;
    const uint64_t mapped = parse_first_number(task.read("statm"), "/proc/PID/statm") * kPageSize;
    if (needs->bytes > limit || mapped > limit - needs->bytes)
      throw Refusal(task_name(task) + " has " + std::to_string(mapped >> 10) + " KiB mapped and a limit of " +
                        std::to_string(limit >> 10) + " KiB (RLIMIT_AS): no room for the " +
                        std::to_string(needs->bytes >> 10) + " KiB of a visit",
                    "raise that limit with prlimit(1)");
    if (needs->mappings > most_mappings)
      throw Refusal(task_name(task) + " has as many mappings as the system allows", "raise vm.max_map_count");
  });
}

void check_frozen(const std::vector<ProcDir>& tasks) {
  const std::string mountinfo = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  for (const bool v2 : {true, false}) {
    const auto mount = find_cgroup_mount(mountinfo, v2);
    if (!mount) continue;
    std::set<std::string> seen;
    for_living(tasks, [&](const ProcDir& task) {
      const std::string folder = cgroup_of(task, *mount, v2);
      if (!seen.insert(folder).second || !is_frozen(folder, v2)) return;
      if (folder.substr(folder.rfind('/') + 1).starts_with("migrate-"))
        throw Refusal(task_name(task) + " is held by a migration, in the frozen cgroup " + folder,
                      "wait for that, or see `migrate resolve`");
      throw Refusal(task_name(task) + " stands in the frozen cgroup " + folder, "thaw that first");
    });
  }
}

namespace {

/// Gone, or only not waited for yet.
bool has_ended(pid_t pid) {
  try {
    const ProcDir task(pid);
    return task.stat().state == 'Z' && task.threads().size() == 1;
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return true;
  }
}

}  // namespace

void check_sessions(const std::vector<ProcDir>& tasks) {
  std::set<pid_t> inside;
  for (const ProcDir& task : tasks) inside.insert(task.pid());
  for_living(tasks, [&](const ProcDir& task) {
    const pid_t sid = task.stat().sid;
    constexpr const char* kRemedy = "start it with setsid, or use --shell-job";
    // Its leader is outside of our pid namespace, so nobody here can make that session again.
    if (sid == 0) throw Refusal(task_name(task) + " belongs to a session of another pid namespace", kRemedy);
    // A session whose leader has ended is rebuilt without one.
    if (inside.contains(sid) || has_ended(sid)) return;
    throw Refusal(task_name(task) + " belongs to session " + std::to_string(sid) + ", whose leader is outside the tree",
                  kRemedy);
  });
}

void check_mappings(const std::vector<ProcDir>& tasks, const MappingReader& mappings, bool tracked) {
  Objects objects;
  std::set<pid_t> inside;
  for (const ProcDir& task : tasks) inside.insert(task.pid());
  for_living(tasks, [&](const ProcDir& task) {
    for (Vma& vma : mappings.read(task)) {
      if (tracked) vma.flags &= ~static_cast<uint32_t>(VmFlag::uffd_wp);
      check_mapping(task.pid(), vma);
      if (is_private_object(vma)) objects.emplace(vma.device, vma.inode);
    }
  });
  if (!objects.empty()) check_outside_mappers(objects, inside);
}

void check_sharing(const std::vector<ProcDir>& tasks) {
  std::set<pid_t> inside;
  for (const ProcDir& task : tasks) inside.insert(task.pid());
  std::vector<pid_t> living;
  for_living(tasks, [&](const ProcDir& task) {
    living.push_back(task.pid());
    for (const pid_t tid : task.threads())
      for (const auto& [what, name] : {std::pair(KCMP_FS, "working folder"), std::pair(KCMP_FILES, "descriptor table")})
        if (tid != task.pid() && differs(task.pid(), tid, what))
          throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task) + " has a " + name + " of its own",
                        "this cannot be moved yet");
  });
  for (size_t i = 0; i < living.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      for (const auto& [what, name] : {std::pair(KCMP_VM, "memory"), std::pair(KCMP_FS, "working folder"),
                                       std::pair(KCMP_FILES, "descriptor table")})
        if (shares(living[i], living[j], what) && goes_on_sharing(living[i], living[j], what))
          throw Refusal(
              "tasks " + std::to_string(living[j]) + " and " + std::to_string(living[i]) + " share their " + name,
              "try again when one of them has ended or executed a program; that cannot be moved yet");
  refuse_outside_sharing(living, inside);
}

}  // namespace migrate
