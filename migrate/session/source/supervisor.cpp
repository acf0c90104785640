// Who would notice that a tree goes away. The parent of the tree's root gets its exit status when it is killed after
// the move; a supervisor would start it again, and then it would run twice.
#include <algorithm>
#include <array>

#include "core/base/procfs.h"
#include "migrate/session/source/inventory.h"

namespace migrate {
namespace {

constexpr std::array kSupervisors = {
    "systemd", "supervisord", "runsv", "s6-supervise",    "monit",  "daemontools", "supervise",      "circusd", "god",
    "pm2",     "immortal",    "perpd", "containerd-shim", "conmon", "docker-init", "start-stop-daem"};
constexpr std::array kShells = {"sh", "bash", "dash", "zsh", "fish", "ksh", "mksh", "tcsh", "csh", "ash", "busybox"};

template <class List>
bool among(const List& list, const std::string& comm) {
  return std::find(list.begin(), list.end(), comm) != list.end();
}

/// The systemd unit whose process this is: the last component of its path in the hierarchy that systemd uses.
std::string service_unit(const ProcDir& proc) {
  const std::string text = proc.read("cgroup");
  for (const char* key : {"0::", "name=systemd:"}) {
    const size_t at = text.find(key);
    if (at == std::string::npos) continue;
    std::string path = text.substr(at + std::string_view(key).size());
    path = path.substr(0, path.find('\n'));
    const std::string unit = path.substr(path.rfind('/') + 1);
    if (unit.ends_with(".service")) return unit;
  }
  return {};
}

/// The init of a received tree's namespaces: a process of ours, which starts nothing and waits for nothing but its end.
bool is_init_of_ours(const ProcDir& proc) {
  const std::string pids = proc.status()["NSpid"];
  return pids.substr(pids.find_last_of(" \t") + 1) == "1" && proc.read("cmdline").starts_with(kTreeInit);
}

}  // namespace

void check_supervisor(Pid root, bool shell_job, bool may_notice) {
  const std::string name = "task " + std::to_string(root.get());
  for (pid_t up = ::getpid(); up > 1; up = ProcDir(up).stat().ppid) {
    if (up == root.get())  // as the preflight says it, for one of the two to be told
      throw Refusal(name + " is this process or an ancestor of it", "run this from outside the tree");
  }
  if (root.get() == 1)
    throw Refusal("task 1 is the init of this pid namespace",
                  "name the program itself; containers cannot be moved yet");
  const ProcDir proc(root.get());
  const pid_t parent_pid = proc.stat().ppid;
  if (may_notice || parent_pid == 0) return;
  const ProcStat parent = ProcDir(parent_pid).stat();
  const std::string who = name + " is supervised by " + parent.comm + " (pid " + std::to_string(parent_pid) + ")";
  if (is_init_of_ours(ProcDir(parent_pid))) return;
  if (parent_pid == 1) {
    const std::string unit = parent.comm == "systemd" ? service_unit(proc) : "";
    if (unit.empty()) return;
    throw Refusal(name + " belongs to the systemd unit " + unit + ", which may start it again when it goes",
                  "stop supervising it first, or say --parent-may-notice if the unit has Restart=no");
  }
  if (among(kSupervisors, parent.comm)) {
    throw Refusal(who + ", which would start it again when it goes", "take it out of its supervisor first");
  }
  const bool interactive = among(kShells, parent.comm) && parent.tty_nr != 0 && parent.sid == parent_pid;
  if (interactive || (shell_job && among(kShells, parent.comm))) return;
  throw Refusal(name + " has the parent " + parent.comm + " (pid " + std::to_string(parent_pid) +
                    "), which will see it exit and may start it again",
                "start it detached (setsid --fork), or say --parent-may-notice if the parent does not care");
}

}  // namespace migrate
