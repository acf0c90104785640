#include "core/files/unix_address.h"

#include <linux/mount.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstddef>
#include <cstring>
#include <exception>
#include <thread>

#include "core/base/fd.h"

namespace migrate {

UnixAddress::UnixAddress(const std::string& bytes) {
  const std::string name = clean_name(bytes);
  if (name.empty() || name.size() > sizeof raw.sun_path ||
      (!abstract_name(name) && name.find('\0') != std::string::npos))
    throw Corrupt("files.img", "the name of a Unix socket is impossible");
  raw.sun_family = AF_UNIX;
  std::memcpy(raw.sun_path, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
}

std::string clean_name(const std::string& name) {
  if (abstract_name(name)) return name;
  std::string path = name;
  while (!path.empty() && path.back() == '\0') path.pop_back();
  return path;
}

namespace {

/// `enter` goes to the new root; only this thread's root folder changes.
void in_thread(const std::function<Fd()>& enter, const std::function<void()>& work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      check(::unshare(CLONE_FS), "get a root folder of its own for", "a thread");
      const Fd root = enter();
      check(::fchdir(root.get()), "enter", "a root folder");
      check(::chroot("."), "change to", "a root folder");
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

void with_root(int root, const std::function<void()>& work) {
  in_thread([&] { return Fd(check(::fcntl(root, F_DUPFD_CLOEXEC, 0), "duplicate", "a root folder")); }, work);
}

void backstage(const std::function<void()>& work) {
  const auto enter = [] {
    const Fd context(static_cast<int>(check(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), "open", "a tmpfs")));
    check(::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), "create", "a tmpfs");
    // A mount that is attached nowhere: it goes with its last user.
    return Fd(static_cast<int>(check(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0), "mount", "a tmpfs")));
  };
  in_thread(enter, work);
}

void make_folders(const std::string& path) {
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (!part.empty() && ::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) throw Error("make folder", part, errno);
    if (slash == std::string::npos) return;
  }
}

}  // namespace migrate
