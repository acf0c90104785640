#include "core/ipc/ipc_namespace.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include <future>

namespace migrate {

bool has_our_ipc_namespace(const ProcDir& task) {
  return task.link("ns/ipc") == read_link_at(AT_FDCWD, "/proc/self/ns/ipc");
}

void in_ipc_namespace(const ProcDir& task, const std::function<void()>& what) {
  if (has_our_ipc_namespace(task)) return what();
  const Fd ns = task.open("ns/ipc", O_RDONLY);
  // A namespace is joined by one thread, not by its process.
  std::async(std::launch::async, [&] {
    check(::setns(ns.get(), CLONE_NEWIPC), "join the IPC namespace of task", std::to_string(task.pid()));
    what();
  }).get();
}

Fd open_ipc_setting(const std::string& path, int flags) {
  const Fd context(static_cast<int>(check(::syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC), "make", "a mount of /proc")));
  check(::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), "make", "a mount of /proc");
  const Fd mount(
      static_cast<int>(check(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0), "make", "a mount of /proc")));
  return open_at(mount.get(), "sys/" + path, flags);
}

}  // namespace migrate
