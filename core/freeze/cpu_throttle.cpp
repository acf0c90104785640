#include "core/freeze/cpu_throttle.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

constexpr double kLeastCpus = 0.02;
constexpr double kTelling = 0.1;  ///< seconds of watching that tell the usage
constexpr auto kDissolveTime = std::chrono::seconds(5);
constexpr std::string_view kPrefix = "migrate-cpu-";

/// Seconds of CPU that a task has used; nothing if it is gone. proc(5): fields 14 and 15, counted from the state as 3.
std::optional<double> cpu_seconds(pid_t pid) {
  try {
    const std::string text = read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid) + "/stat");
    size_t at = text.rfind(')');
    for (int field = 2; field < 14 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
    if (at == std::string::npos) return std::nullopt;
    char* end = nullptr;
    const double user = std::strtod(text.c_str() + at, &end);
    return (user + std::strtod(end, nullptr)) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

int write_cgroup_file(const std::string& path, const std::string& text) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return errno;
  return ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : errno;
}

void demand_write_cgroup_file(const std::string& path, const std::string& text) {
  if (const int err = write_cgroup_file(path, text); err != 0) throw Error("write " + text + " to", path, err);
}

std::set<pid_t> pids_in(const std::string& path) {
  std::set<pid_t> pids;
  const std::string text = read_file_at(AT_FDCWD, path);
  for (const char* at = text.c_str(); *at != 0;) {
    char* end = nullptr;
    const long pid = std::strtol(at, &end, 10);
    if (end == at) break;
    if (pid > 0) pids.insert(static_cast<pid_t>(pid));
    at = end;
  }
  return pids;
}

std::string parent_cgroup(const std::string& folder) { return folder.substr(0, folder.rfind('/')); }
std::string cgroup_name(const std::string& folder) { return folder.substr(folder.rfind('/') + 1); }

void remove_cgroup(const std::string& folder) {
  const Deadline deadline = Deadline::in(kDissolveTime);
  for (;;) {
    std::set<pid_t> members;
    try {
      members = pids_in(folder + "/cgroup.procs");
    } catch (const Error& e) {
      if (e.code() == ENOENT || e.code() == ENODEV) return;
      throw;
    }
    for (const pid_t pid : members) write_cgroup_file(parent_cgroup(folder) + "/cgroup.procs", std::to_string(pid));
    if (::rmdir(folder.c_str()) == 0 || errno == ENOENT) return;
    if (errno != EBUSY || deadline.passed()) throw Error("remove cgroup", folder, errno);
    ::usleep(300);
  }
}

std::set<pid_t> tasks_of_tree(Pid root) {
  std::set<pid_t> all;
  std::vector<pid_t> todo{root.get()};
  while (!todo.empty()) {
    const pid_t pid = todo.back();
    todo.pop_back();
    if (all.count(pid) != 0) continue;
    try {
      const ProcDir proc(pid);
      const std::vector<pid_t> children = proc.children();
      todo.insert(todo.end(), children.begin(), children.end());
      // A zombie uses no time, and cannot be moved.
      if (const char state = proc.stat().state; state != 'Z' && state != 'X') all.insert(pid);
    } catch (const Error& e) {
      if (e.code() != ENOENT && e.code() != ESRCH) throw;
    }
  }
  return all;
}

CpuUsage::CpuUsage(Pid root) : since_(std::chrono::steady_clock::now()) {
  for (const pid_t pid : tasks_of_tree(root)) {
    if (const auto seconds = cpu_seconds(pid)) before_[pid] = *seconds;
  }
}

double CpuUsage::cpus(const std::set<pid_t>& tasks) const {
  const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - since_).count();
  const double all = static_cast<double>(std::max(1u, std::thread::hardware_concurrency()));
  if (passed < kTelling) return all;
  double used = 0;
  for (const pid_t pid : tasks) {
    const auto before = before_.find(pid);
    if (const auto now = cpu_seconds(pid)) used += *now - (before == before_.end() ? 0 : before->second);
  }
  return std::clamp(used / passed, kLeastCpus, all);
}

CpuQuota cpu_quota(double cpus) {
  constexpr double kLeastQuota = 1000, kShortPeriod = 10'000, kLongPeriod = 1'000'000;
  const double period = std::clamp(std::ceil(kLeastQuota / std::max(cpus, 1e-6)), kShortPeriod, kLongPeriod);
  const double quota = std::max(kLeastQuota, std::round(period * cpus));
  return {static_cast<uint64_t>(quota), static_cast<uint64_t>(period)};
}

std::unique_ptr<Throttle> Throttle::for_tree(Pid root, const std::string& name, Method method) {
  const bool good = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
  });
  if (!good) throw Error("bad cgroup name " + name);
  const std::string whole = std::string(kPrefix) + name;
  switch (method) {
    case Method::v1:
      return throttle_v1(root, whole);
    case Method::v2:
      return throttle_v2(root);
    case Method::pauses:
      return throttle_pauses(root, whole);
    case Method::any:
      break;
  }
  std::string why;
  for (const Method each : {Method::v1, Method::v2, Method::pauses}) {
    try {
      return for_tree(root, name, each);
    } catch (const Error& e) {
      why += (why.empty() ? "" : "; ") + std::string(e.what());
    }
  }
  throw Refusal("task " + std::to_string(root.get()) + " cannot be slowed down here (" + why + ")",
                "choose another --on-no-convergence");
}

void Throttle::lift_left_over(Pid task, const std::string& name) {
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  struct Way {
    bool v2;
    const char* controller;
  };
  for (const Way way : {Way{false, "cpu"}, Way{false, "freezer"}, Way{true, ""}}) {
    const auto mount = find_cgroup_mount(mounts, way.v2, way.controller);
    if (!mount) continue;
    const std::string folder = cgroup_folder(*mount, task.get(), way.v2, way.controller);
    const std::string found = cgroup_name(folder);
    if (!found.starts_with(kPrefix) || (!name.empty() && found != std::string(kPrefix) + name)) continue;
    // Whichever of these it has.
    write_cgroup_file(folder + "/cpu.cfs_quota_us", "-1");
    write_cgroup_file(folder + "/freezer.state", "THAWED");
    write_cgroup_file(folder + "/cgroup.freeze", "0");
    remove_cgroup(folder);
  }
}

}  // namespace migrate
