#include "core/files/open_file.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include "core/image/magic.h"

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

namespace migrate {

void OpenFile::take(Fd duplicate) {
  ours = std::move(duplicate);
  st = stat_cached(ours.get(), "", AT_EMPTY_PATH, who());
  if (!link.starts_with("socket:[")) return;
  socklen_t length = sizeof domain;
  check(::getsockopt(ours.get(), SOL_SOCKET, SO_DOMAIN, &domain, &length), "ask the domain of socket", who());
}

std::string OpenFile::who() const {
  if (!waits_at.empty()) return waits_at + " and, on its way there (SCM_RIGHTS)";
  return "task " + std::to_string(proc->pid()) + " has fd " + std::to_string(fd);
}

InodeKey inode_of(const struct statx& st) { return {st.stx_dev_major, st.stx_dev_minor, st.stx_ino}; }

struct statx stat_cached(int dirfd, const std::string& path, int flags, std::string_view what) {
  struct statx st {};
  check(::statx(dirfd, path.c_str(), flags | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &st), "stat", what);
  return st;
}

struct statx stat_opened(int fd, std::string_view what) {
  return stat_cached(fd, "", AT_EMPTY_PATH, what);
}

void DumpContext::emit(const img::file_entry& entry) { images.write("files.img", magic::kFiles).entry(entry); }

void describe_owner(const OpenFile& file, img::fown_entry& out) {
  out.set_uid(0);
  out.set_euid(0);
  out.set_signum(0);
  out.set_pid_type(0);
  out.set_pid(0);
  f_owner_ex owner{};
  // An O_PATH descriptor has no owner: EBADF.
  if (!file.ours || ::fcntl(file.ours.get(), F_GETOWN_EX, &owner) != 0) return;
  const int signum = ::fcntl(file.ours.get(), F_GETSIG);
  if (signum > 0) out.set_signum(static_cast<uint32_t>(signum));
  if (owner.pid <= 0) return;
  out.set_pid_type(static_cast<uint32_t>(owner.type));
  out.set_pid(static_cast<uint32_t>(owner.pid));
  uid_t uids[2] = {0, 0};
  if (::fcntl(file.ours.get(), F_GETOWNER_UIDS, uids) == 0) {
    out.set_uid(uids[0]);
    out.set_euid(uids[1]);
  }
}

void raise_descriptor_limit() {
  rlimit limit{};
  check(::getrlimit(RLIMIT_NOFILE, &limit), "read", "the limit of open files");
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

img::file_entry entry_of(img::fd_types type, uint32_t id) {
  img::file_entry entry;
  entry.set_type(type);
  entry.set_id(id);
  return entry;
}

}  // namespace migrate
