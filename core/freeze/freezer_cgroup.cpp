#include "core/freeze/freezer_cgroup.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

struct Hierarchy {
  CgroupMount mount;
  bool v2;
};

Hierarchy find_hierarchy(CgroupVersion version) {
  const std::string mountinfo = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  for (const bool v2 : {true, false}) {
    if (version == (v2 ? CgroupVersion::v1 : CgroupVersion::v2)) continue;
    if (auto mount = find_cgroup_mount(mountinfo, v2)) return {std::move(*mount), v2};
  }
  throw Refusal("no cgroup hierarchy that can freeze tasks is mounted",
                "mount cgroup2, or cgroup v1 with the freezer controller");
}

/// One write(2), as cgroup files want it. Returns 0 or the errno.
int write_file(const std::string& path, std::string_view text) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return errno;
  return ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : errno;
}

void demand_write(const std::string& path, std::string_view text) {
  if (const int err = write_file(path, text); err != 0) throw Error("write to", path, err);
}

std::vector<Pid> members_of(const std::string& folder) {
  std::vector<Pid> pids;
  try {
    std::istringstream in(read_file_at(AT_FDCWD, folder + "/cgroup.procs"));
    for (pid_t pid; in >> pid;) {
      if (pid > 0) pids.emplace_back(pid);  // 0: a task outside of our pid namespace
    }
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ENODEV) throw;
  }
  return pids;
}

void refuse_threaded(const std::string& folder) {
  std::string type;
  try {
    type = read_file_at(AT_FDCWD, folder + "/cgroup.type");
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ENODEV) throw;
    return;  // the root cgroup has no such file
  }
  if (type.find("threaded") != std::string::npos) {
    throw Refusal("cgroup " + folder + " is threaded", "move its tasks to a domain cgroup");
  }
}

void make_folder(const std::string& folder) { check(::mkdir(folder.c_str(), 0755), "make cgroup", folder); }

bool folder_frozen(const std::string& folder, bool v2) {
  if (v2) return read_file_at(AT_FDCWD, folder + "/cgroup.events").find("frozen 1") != std::string::npos;
  return read_file_at(AT_FDCWD, folder + "/freezer.state").starts_with("FROZEN");
}

std::string parent_of(const std::string& folder) { return folder.substr(0, folder.rfind('/')); }

std::string below(const std::string& folder, const std::string& name) { return folder + "/" + name; }

void move_task(Pid pid, const std::string& folder) {
  const int err = write_file(folder + "/cgroup.procs", std::to_string(pid.get()));
  if (err != 0 && err != ESRCH) throw Error("move task " + std::to_string(pid.get()) + " to cgroup", folder, err);
}

/// SIGKILL to each member that still is one when we hold it: a number that was read may be another's by then.
void kill_members(const std::string& folder) {
  std::vector<std::pair<Pid, Fd>> held;
  for (const Pid pid : members_of(folder)) {
    if (std::optional<Fd> pidfd = open_pidfd(pid.get())) held.emplace_back(pid, std::move(*pidfd));
  }
  const std::vector<Pid> still = members_of(folder);
  for (const auto& [pid, pidfd] : held) {
    if (std::find(still.begin(), still.end(), pid) == still.end()) continue;
    ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
  }
}

/// Waits a little for something to change in the cgroups, without a signal.
void nap() { ::usleep(300); }

}  // namespace

FreezerCgroup::Record FreezerCgroup::plan(const std::vector<Pid>& pids, const std::string& name,
                                          CgroupVersion version) {
  if (name.empty() || name.find('/') != std::string::npos) throw Error("bad cgroup name " + name);
  const Hierarchy hierarchy = find_hierarchy(version);
  Record record{.v2 = hierarchy.v2, .folders = {}, .came_from = {}};
  for (const Pid pid : pids) {
    const std::string from = cgroup_folder(hierarchy.mount, pid.get(), hierarchy.v2);
    if (record.v2) refuse_threaded(from);
    record.came_from[pid.get()] = from;
    const std::string folder = below(from, name);
    if (std::find(record.folders.begin(), record.folders.end(), folder) == record.folders.end()) {
      record.folders.push_back(folder);
    }
  }
  return record;
}

std::string FreezerCgroup::own_folder(CgroupVersion version) {
  const Hierarchy hierarchy = find_hierarchy(version);
  return cgroup_folder(hierarchy.mount, ::getpid(), hierarchy.v2);
}

FreezerCgroup::Record FreezerCgroup::plan_create(const std::string& name, CgroupVersion version) {
  Record record = plan({Pid(::getpid())}, name, version);
  record.came_from.clear();
  return record;
}

FreezerCgroup FreezerCgroup::hold(Record planned) {
  FreezerCgroup held(std::move(planned));
  std::vector<std::string> made;
  try {
    for (const std::string& folder : held.record_.folders) {
      make_folder(folder);
      made.push_back(folder);
    }
    for (const auto& [pid, from] : held.record_.came_from) {
      const std::string prefix = from + "/";
      const auto folder =
          std::find_if(made.begin(), made.end(), [&](const std::string& f) { return parent_of(f) + "/" == prefix; });
      if (folder == made.end()) throw Error("no cgroup was planned below " + from);
      move_task(Pid(pid), *folder);
    }
  } catch (const Error&) {
    held.record_.folders = made;  // a folder of that name that was there before is not ours
    held.dissolve();
    throw;
  }
  return held;
}

FreezerCgroup FreezerCgroup::hold(const std::vector<Pid>& pids, const std::string& name, CgroupVersion version) {
  return hold(plan(pids, name, version));
}

FreezerCgroup FreezerCgroup::create(const std::string& name, CgroupVersion version) {
  return hold(plan_create(name, version));
}

FreezerCgroup FreezerCgroup::create_below(const std::vector<std::string>& parents, const std::string& name) {
  Record record = plan_create(name);
  const std::string& point = find_hierarchy(CgroupVersion::any).mount.point;
  for (const std::string& parent : parents)
    if (parent == point || parent.starts_with(point + "/")) record.folders = {below(parent, name)};
  return hold(std::move(record));
}

FreezerCgroup FreezerCgroup::adopt(Record record) { return FreezerCgroup(std::move(record)); }

void FreezerCgroup::add(Pid pid) {
  if (record_.folders.empty()) throw Error("add a task to", "a cgroup that is dissolved");
  const Hierarchy hierarchy = find_hierarchy(record_.v2 ? CgroupVersion::v2 : CgroupVersion::v1);
  const std::string from = cgroup_folder(hierarchy.mount, pid.get(), record_.v2);
  if (from == record_.folders.front()) return;
  record_.came_from.emplace(pid.get(), from);
  move_task(pid, record_.folders.front());
}

void FreezerCgroup::freeze(std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::in(timeout);
  try {
    for (const std::string& folder : record_.folders) {
      demand_write(folder + (record_.v2 ? "/cgroup.freeze" : "/freezer.state"), record_.v2 ? "1" : "FROZEN");
    }
    for (const std::string& folder : record_.folders) {
      for (int tries = 0; !folder_frozen(folder, record_.v2); ++tries) {
        if (deadline.passed()) throw Error("cgroup " + folder + " does not freeze in time");
        // v1 may stay FREEZING for a task that slept unfreezably at the first attempt.
        if (!record_.v2 && tries % 32 == 31) write_file(folder + "/freezer.state", "FROZEN");
        nap();
      }
    }
  } catch (const Error&) {
    thaw();
    throw;
  }
}

void FreezerCgroup::thaw() {
  for (const std::string& folder : record_.folders) {
    const int err =
        write_file(folder + (record_.v2 ? "/cgroup.freeze" : "/freezer.state"), record_.v2 ? "0" : "THAWED");
    if (err != 0 && err != ENOENT && err != ENODEV) throw Error("thaw cgroup", folder, err);
  }
}

bool FreezerCgroup::frozen() const {
  return !record_.folders.empty() && std::all_of(record_.folders.begin(), record_.folders.end(),
                                                 [&](const std::string& f) { return folder_frozen(f, record_.v2); });
}

std::vector<Pid> FreezerCgroup::members() const {
  std::vector<Pid> all;
  for (const std::string& folder : record_.folders) {
    const auto some = members_of(folder);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

void FreezerCgroup::kill_all(std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::in(timeout);
  for (;;) {
    const auto pids = members();
    if (pids.empty()) return;
    for (const std::string& folder : record_.folders) {
      // cgroup.kill (Linux 5.14) needs no numbers.
      if (!record_.v2 || write_file(folder + "/cgroup.kill", "1") != 0) kill_members(folder);
    }
    // v1: the signals take effect once thawed, and nothing else runs before them. v2: at once.
    if (!record_.v2) thaw();
    if (deadline.passed()) throw Error("task " + std::to_string(pids.front().get()) + " does not die of SIGKILL");
    nap();
  }
}

void FreezerCgroup::dissolve() {
  thaw();
  const Deadline deadline = Deadline::in(std::chrono::seconds(5));
  for (const std::string& folder : record_.folders) {
    // Running tasks may fork while they are moved, and dying ones keep the folder busy for a moment.
    for (;;) {
      for (const Pid pid : members_of(folder)) {
        const auto from = record_.came_from.find(pid.get());
        const std::string parent = parent_of(folder);
        const std::string target = from == record_.came_from.end() ? parent : from->second;
        const std::string number = std::to_string(pid.get());
        if (write_file(target + "/cgroup.procs", number) != 0 && target != parent) {
          write_file(parent + "/cgroup.procs", number);
        }
      }
      if (::rmdir(folder.c_str()) == 0 || errno == ENOENT) break;
      if (errno != EBUSY || deadline.passed()) throw Error("remove cgroup", folder, errno);
      nap();
    }
  }
  record_.folders.clear();
}

}  // namespace migrate
