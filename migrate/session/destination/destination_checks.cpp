#include "migrate/session/destination/destination_checks.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/base/fd.h"
#include "core/files/file_locks.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/wire/content_hash.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

/// A source takes no more than 1000, of 4096 bytes each (check_bounds).
constexpr size_t kMaxReasons = 50;
constexpr size_t kMaxReason = 4096;

/// Opens a peer's path below the root folder, without magic links; blocking files are not waited for.
Fd open_inside(int root, const std::string& path, int flags) {
  open_how how{};
  // openat2(2) refuses flags that O_PATH would ignore.
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC | ((flags & O_PATH) != 0 ? 0 : O_NONBLOCK | O_NOCTTY));
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return Fd(static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how)));
}

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

bool probe_seen(int root, const wire::Check::File& file, uint64_t inode) {
  if (file.probe_path().empty() || file.probe_content().empty() || inode != file.inode()) return false;
  const Fd fd = open_inside(root, file.probe_path(), O_RDONLY | O_NOFOLLOW);
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) return false;
  std::string content(file.probe_content().size() + 1, '\0');
  const size_t n = read_full(fd.get(), std::as_writable_bytes(std::span(content)), "a probe");
  return content.substr(0, n) == file.probe_content();
}

/// Whether a lock can be had; nothing is locked afterwards. Where both hosts see one file and its locks, the source's
/// own is in the way until the tree has gone.
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

std::string check_locks(int root, const wire::Check::File& file) {
  if (file.locks_size() == 0 || file.type() != S_IFREG) return {};
  const Fd fd = open_inside(root, file.path(), O_RDONLY);
  if (!fd) return {};
  for (const auto& lock : file.locks()) {
    if (!can_lock(fd.get(), lock)) {
      return file.path() +
             " is locked by the program, and the lock cannot be had at the destination: another process there, or the "
             "program itself through a shared file system, holds it; let the program release it first";
    }
  }
  return {};
}

std::string check_file(int root, const wire::Check::File& file) {
  const Fd path = open_inside(root, file.path(), O_PATH);
  struct stat st {};
  if (!path || ::fstat(path.get(), &st) != 0) return file.path() + " does not exist at the destination; put it there";
  if ((st.st_mode & S_IFMT) != file.type()) {
    return file.path() + " is " + type_name(file.type()) + " at the source and " + type_name(st.st_mode & S_IFMT) +
           " at the destination";
  }
  if (file.writable() && file.type() == S_IFREG && file.has_probe_path() && !probe_seen(root, file, st.st_ino)) {
    return file.path() +
           " is written by the program and is not shown to be the same file on both hosts; put it on a shared file "
           "system, or say --files-shared if it is";
  }
  if (std::string why = check_locks(root, file); !why.empty()) return why;
  if (!file.mapped()) return {};
  if (static_cast<uint64_t>(st.st_size) != file.size()) {
    return file.path() + " has another size at the destination; install the same version";
  }
  const Fd content = open_inside(root, file.path(), O_RDONLY);
  if (file.content() != 0 && (!content || content_hash(content.get()) != file.content())) {
    return file.path() + " has another content at the destination; install the same version";
  }
  return {};
}

/// Tries to bind as the program will; a port of another program says EADDRINUSE.
std::string check_port(const wire::Check::Port& port) {
  const int family = static_cast<int>(port.family());
  const int type = static_cast<int>(port.type());
  if ((family != AF_INET && family != AF_INET6) || (type != SOCK_STREAM && type != SOCK_DGRAM)) return {};
  const Fd socket(::socket(family, type | SOCK_CLOEXEC, 0));
  if (!socket) return "the destination has no sockets of family " + std::to_string(family);
  const int one = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (family == AF_INET6) ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  sockaddr_storage storage{};
  socklen_t length = 0;
  if (family == AF_INET) {
    if (port.address().size() != 4) return "a port's address does not fit its family";
    auto* in = reinterpret_cast<sockaddr_in*>(&storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<uint16_t>(port.port()));
    std::memcpy(&in->sin_addr, port.address().data(), 4);
    length = sizeof *in;
  } else {
    if (port.address().size() != 16) return "a port's address does not fit its family";
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(static_cast<uint16_t>(port.port()));
    std::memcpy(&in6->sin6_addr, port.address().data(), 16);
    length = sizeof *in6;
  }
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&storage), length) == 0) {
    if (type == SOCK_DGRAM || ::listen(socket.get(), 1) == 0) return {};
  }
  return std::string(type == SOCK_DGRAM ? "UDP" : "TCP") + " port " + std::to_string(port.port()) +
         " cannot be used at the destination: " + std::strerror(errno);
}

void check_policy(const wire::Check& check, const ReceiveOptions& options, std::vector<std::string>& reasons) {
  for (const uint32_t uid : check.uids()) {
    if (reasons.size() >= kMaxReasons) break;
    const auto& allowed = options.allow_uids;
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), uid) == allowed.end()) {
      reasons.push_back("a task runs as uid " + std::to_string(uid) +
                        ", which the receiver does not allow (--allow-uid)");
    }
  }
  if ((check.capabilities() & options.deny_capabilities) != 0) {
    reasons.push_back("a task has capabilities that the receiver denies (--deny-caps)");
  }
}

}  // namespace

std::vector<std::string> what_is_in_the_way(const wire::Check& check, const ReceiveOptions& options) {
  std::vector<std::string> reasons;
  check_policy(check, options, reasons);
  const wire::Hello here = host_facts();
  if (check.memory() > here.memory_available()) {
    reasons.push_back("the program has " + std::to_string(check.memory() >> 20) +
                      " MiB in memory and the destination " + std::to_string(here.memory_available() >> 20) +
                      " MiB free");
  }
  if (options.max_memory != 0 && check.memory() > options.max_memory) {
    reasons.push_back("the program has " + human_bytes(check.memory()) + " in memory, and the receiver takes " +
                      human_bytes(options.max_memory) + " (--max-memory)");
  }
  if (static_cast<uint64_t>(check.pids_size()) > options.max_tasks) {
    reasons.push_back("the program has " + std::to_string(check.pids_size()) + " tasks, and the receiver takes " +
                      std::to_string(options.max_tasks) + " (--max-tasks)");
  }
  for (const uint32_t pid : check.pids()) {
    if (reasons.size() >= kMaxReasons) break;
    if (pid >= here.pid_max()) {
      reasons.push_back("pid " + std::to_string(pid) + " is beyond the destination's kernel.pid_max; raise that");
    }
  }
  const Fd root = open_path(options.root.empty() ? "/" : options.root, O_PATH | O_DIRECTORY);
  for (const auto& file : check.files()) {
    if (reasons.size() >= kMaxReasons) break;
    if (std::string why = check_file(root.get(), file); !why.empty()) reasons.push_back(std::move(why));
  }
  for (const auto& port : check.ports()) {
    if (reasons.size() >= kMaxReasons) break;
    if (std::string why = check_port(port); !why.empty()) reasons.push_back(std::move(why));
  }
  for (std::string& reason : reasons) reason.resize(std::min(reason.size(), kMaxReason));
  return reasons;
}

}  // namespace migrate
