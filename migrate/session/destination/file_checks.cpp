#include "migrate/session/destination/file_checks.h"

#include <limits.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>

#include "core/files/file_locks.h"
#include "core/files/paths.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/wire/content_hash.h"

namespace migrate {
namespace {

constexpr uint32_t kFuse = 0x65735546;
constexpr uint32_t kNobodysGroup = 65534;

std::string type_name(uint32_t type) {
  switch (type) {
    case S_IFREG:
      return "a regular file";
    case S_IFDIR:
      return "a folder";
    case S_IFCHR:
      return "a character device";
    case S_IFBLK:
      return "a block device";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    default:
      return "something else";
  }
}

/// Whether a lock can be had; nothing is locked afterwards. Where both hosts see one file and its locks, it is the
/// program's own that is in the way: nobody else can have one that excludes it.
bool can_lock(int fd, const wire::Check::Lock& lock) {
  if (lock.type() != F_RDLCK && lock.type() != F_WRLCK) return true;
  if (lock.kind() == kLockFlock) {
    const bool got = ::flock(fd, (lock.type() == F_RDLCK ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0;
    if (got) ::flock(fd, LOCK_UN);
    return got || errno != EWOULDBLOCK;
  }
  struct flock wanted {};
  wanted.l_type = static_cast<short>(lock.type());
  wanted.l_whence = SEEK_SET;
  wanted.l_start = lock.start();
  wanted.l_len = lock.length();
  return ::fcntl(fd, F_OFD_GETLK, &wanted) != 0 || wanted.l_type == F_UNLCK;
}

/// As whom a program may come, as far as the peer says and the receiver allows.
Holders allowed_users(const wire::Check& check, const IdentityPolicy& policy) {
  std::vector<uint32_t> groups;
  for (const uint32_t gid : check.gids())
    if (policy.takes_gid(gid) && groups.size() < NGROUPS_MAX) groups.push_back(gid);
  sort_once(groups);
  const uint32_t gid = groups.empty() ? kNobodysGroup : groups.front();
  Holders who;
  // Later questions leave out the users that were told before.
  for (const uint32_t uid : policy.allow_uids) {
    const bool meant =
        check.uids().empty() || std::find(check.uids().begin(), check.uids().end(), uid) != check.uids().end();
    if (meant) add_holder(who, {uid, gid, groups, check.capabilities() & ~policy.deny_capabilities});
  }
  return who;
}

}  // namespace

FileChecks::FileChecks(const wire::Check& check, const IdentityPolicy& policy, int root) : root_(root) {
  if (policy.takes_uid(0)) return;
  who_ = allowed_users(check, policy);
  paths_.emplace(root_, false);
  batch_.emplace(*paths_);
}

std::string FileChecks::why_not(const wire::Check::File& file) {
  try {
    if (!paths_) return look(file);
    std::string why;
    paths_->attempt(who_, file.path(), [&](Right) { why = look(file); });
    return why;
  } catch (const Refusal& e) {
    return e.what();
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ENOTDIR && e.code() != ELOOP && e.code() != ENAMETOOLONG &&
        e.code() != EINVAL)
      return std::string(e.what()) + " at the destination";
    return file.path() + " does not exist at the destination; put it there";
  }
}

/// O_PATH: nothing happens by that.
Fd FileChecks::find(const std::string& path, bool follow) {
  if (!paths_) return open_below(root_, path, follow ? O_PATH : O_PATH | O_NOFOLLOW);
  return follow ? paths_->find_followed(Right::task, path) : paths_->find(Right::task, path);
}

/// For reading; empty where that may do something, or wait: opening files of the kernel's, and for a user's own server.
Fd FileChecks::open_content(const Fd& found) const {
  struct statfs fs {};
  if (on_kernel_file_system(found.get()) || ::fstatfs(found.get(), &fs) != 0) return {};
  if (paths_ && static_cast<uint32_t>(fs.f_type) == kFuse) return {};
  return reopen(found.get(), O_RDONLY | O_NONBLOCK | O_NOCTTY, "a file");
}

bool FileChecks::probe_seen(const wire::Check::File& file, uint64_t inode) {
  if (file.probe_path().empty() || file.probe_content().empty() || inode != file.inode()) return false;
  try {
    const Fd found = find(file.probe_path(), false);
    struct stat st {};
    if (::fstat(found.get(), &st) != 0 || !S_ISREG(st.st_mode)) return false;
    const Fd fd = open_content(found);
    if (!fd) return false;
    std::string content(file.probe_content().size() + 1, '\0');
    const size_t n = read_full(fd.get(), std::as_writable_bytes(std::span(content)), "a probe");
    return content.substr(0, n) == file.probe_content();
  } catch (const Error&) {
    return false;
  }
}

std::string FileChecks::look(const wire::Check::File& file) {
  const std::string& path = file.path();
  const Fd found = find(path, true);
  struct stat st {};
  check(::fstat(found.get(), &st), "stat", path);
  if ((st.st_mode & S_IFMT) != file.type()) {
    return path + " is " + type_name(file.type()) + " at the source and " + type_name(st.st_mode & S_IFMT) +
           " at the destination";
  }
  if (paths_ && file.writable() && !TaskPaths::may(found.get(), W_OK)) throw Denied("it may not write to it");
  // Opening anything else may do something.
  if (!S_ISREG(st.st_mode)) return {};
  const bool shared = file.shared() || probe_seen(file, st.st_ino);
  if (shared) shared_.push_back(path);
  if (file.writable() && file.has_probe_path() && !shared) {
    return path +
           " is written by the program and is not shown to be the same file on both hosts; put it on a shared file "
           "system, or say --files-shared if it is";
  }
  if (file.mapped() && static_cast<uint64_t>(st.st_size) != file.size())
    return path + " has another size at the destination; install the same version";
  if (file.locks_size() == 0 && (!file.mapped() || file.content() == 0)) return {};
  const Fd content = open_content(found);
  if (!content) return {};
  for (const auto& lock : file.locks()) {
    if (!shared && !can_lock(content.get(), lock)) {
      return path +
             " is locked by the program, and another process at the destination has that lock; end it there, or say "
             "--files-shared if it is one file on both hosts";
    }
  }
  if (file.mapped() && file.content() != 0 && content_hash(content.get()) != file.content())
    return path + " has another content at the destination; install the same version";
  return {};
}

}  // namespace migrate
