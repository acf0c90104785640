// The shell's side of restoring descriptors: numbers, close-on-exec, and what the kernel ties to a number or a task.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/base/procfs.h"
#include "core/files/epoll.h"
#include "core/files/epoll_fill.h"
#include "core/files/image_tables.h"
#include "core/files/restore_files.h"

namespace migrate {
namespace {

/// Descriptor numbers must lie below the soft limit while they are made; the task gets its own limit later.
class RoomForDescriptors {
 public:
  explicit RoomForDescriptors(int highest) {
    check(::getrlimit(RLIMIT_NOFILE, &before_), "read", "the limit of open files");
    // Temporary duplicates are in gaps, where the caller's own descriptors are too.
    const auto need = static_cast<rlim_t>(highest) + 1;
    if (before_.rlim_cur >= need) return;
    rlimit wider = before_;
    wider.rlim_cur = std::min(std::max<rlim_t>(need, before_.rlim_cur), before_.rlim_max);
    if (wider.rlim_cur < need)
      throw Error("descriptor " + std::to_string(highest) + " is above the hard limit of open files (" +
                  std::to_string(before_.rlim_max) + "); raise it (ulimit -Hn)");
    check(::setrlimit(RLIMIT_NOFILE, &wider), "raise", "the limit of open files");
    raised_ = true;
  }
  ~RoomForDescriptors() {
    if (raised_) ::setrlimit(RLIMIT_NOFILE, &before_);
  }
  RoomForDescriptors(const RoomForDescriptors&) = delete;
  RoomForDescriptors& operator=(const RoomForDescriptors&) = delete;

 private:
  rlimit before_{};
  bool raised_ = false;
};

void place(Fd fetched, int number, bool cloexec) {
  if (fetched.get() == number) {
    if (!cloexec) check(::fcntl(number, F_SETFD, 0), "set the flags of descriptor", std::to_string(number));
    (void)fetched.release();
    return;
  }
  check(::dup3(fetched.get(), number, cloexec ? O_CLOEXEC : 0), "install descriptor", std::to_string(number));
}

/// For as long as it lives we are another user: the kernel remembers who sets a file's owner, and lets the file send
/// signals to whomever that user may.
class AsUser {
 public:
  AsUser(uint32_t uid, uint32_t euid) {
    // The call, not glibc's wrapper: of this thread. The saved id of root leads back.
    check(::syscall(SYS_setresuid, uid, euid, 0), "become user", std::to_string(uid));
  }
  ~AsUser() { ::syscall(SYS_setresuid, 0, 0, 0); }
  AsUser(const AsUser&) = delete;
  AsUser& operator=(const AsUser&) = delete;
};

/// False if it is for another task that has the file to set it.
bool owner_is(const img::creds_entry& user, const img::fown_entry& owner) {
  if (user.euid() == 0) return true;
  const auto is = [&](uint32_t id) { return id == user.uid() || id == user.euid() || id == user.suid(); };
  return is(owner.uid()) && is(owner.euid());
}

void restore_owner(const img::file_entry& entry, int fd, const img::creds_entry& user, Logger& log) {
  const img::fown_entry* owner = owner_of(entry);
  if (owner == nullptr) return;
  if (owner->signum() != 0 && ::fcntl(fd, F_SETSIG, static_cast<int>(owner->signum())) != 0)
    log.warn("descriptor {}: its signal cannot be set: {}", fd, std::strerror(errno));
  if (owner->pid() != 0 && owner_is(user, *owner)) {
    const AsUser as(owner->uid(), owner->euid());
    const f_owner_ex wanted{static_cast<decltype(f_owner_ex::type)>(owner->pid_type()),
                            static_cast<pid_t>(owner->pid())};
    // The owner may be outside of the tree, or gone.
    if (::fcntl(fd, F_SETOWN_EX, &wanted) != 0) log.warn("descriptor {}: its owner {} is not there", fd, owner->pid());
  }
  if ((flags_of(entry) & O_ASYNC) != 0) {
    const int now = check(::fcntl(fd, F_GETFL), "read the flags of descriptor", std::to_string(fd));
    ::fcntl(fd, F_SETFL, now | O_ASYNC);
  }
}

}  // namespace

void install_descriptors(const ImageSet& images, uint32_t files_id, int coordinator_pidfd,
                         const std::map<uint32_t, int>& opened, const img::creds_entry& user, Logger& log) {
  const std::vector<img::fdinfo_entry> table = read_table(images, files_id);
  const std::map<uint32_t, img::file_entry> entries = read_file_entries(images);
  const RoomForDescriptors room(
      std::max(table.empty() ? -1 : static_cast<int>(table.back().fd()), highest_watched(table, entries)));
  std::map<uint32_t, int> here;
  for (const img::fdinfo_entry& e : table) {
    const int number = static_cast<int>(e.fd());
    const bool cloexec = (e.flags() & FD_CLOEXEC) != 0;
    const auto known = here.find(e.id());
    if (known != here.end()) {
      check(::dup3(known->second, number, cloexec ? O_CLOEXEC : 0), "install descriptor", std::to_string(number));
      continue;
    }
    const auto it = opened.find(e.id());
    const auto entry = entries.find(e.id());
    if (it == opened.end() || entry == entries.end() || entry->second.type() != e.type())
      throw Corrupt(image_name("fdinfo", files_id), "descriptor " + std::to_string(number) + " has no file");
    place(get_remote_fd(coordinator_pidfd, it->second), number, cloexec);
    here.emplace(e.id(), number);
  }
  fill_epolls(images, files_id, table, entries, [&](uint32_t id) {
    const auto it = opened.find(id);
    if (it == opened.end()) throw Corrupt(kWatchedFilesImage, "a file is not there");
    return get_remote_fd(coordinator_pidfd, it->second);
  });
  for (const auto& [id, fd] : here) restore_owner(entries.at(id), fd, user, log);
}

}  // namespace migrate
