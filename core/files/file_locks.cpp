#include "core/files/file_locks.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "core/base/proc_values.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

int64_t offset(const std::string& word) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size() || value < 0)
    throw Corrupt("fdinfo", "'" + word + "' is no offset of a lock");
  return value;
}

/// "1: POSIX  ADVISORY  WRITE 4242 08:01:1234 0 EOF" (fs/locks.c, lock_get_status)
FileLock parse_line(std::string_view line) {
  std::istringstream words{std::string(line)};
  std::string number, kind, mode, type, pid, inode, start, end;
  words >> number >> kind >> mode >> type >> pid >> inode >> start >> end;
  if (!words) throw Corrupt("fdinfo", "a lock's line is too short");
  FileLock lock;
  if (mode == "ADVISORY") {
    if (kind == "POSIX") lock.kind = kLockPosix;
    if (kind == "FLOCK") lock.kind = kLockFlock;
    if (kind == "OFDLCK") lock.kind = kLockDescription;
  }
  if (lock.kind == 0) return lock;
  if (type != "READ" && type != "WRITE") throw Corrupt("fdinfo", "a lock of type " + type);
  lock.type = type == "READ" ? F_RDLCK : F_WRLCK;
  lock.start = offset(start);
  if (end == "EOF") return lock;
  const int64_t last = offset(end);
  if (last < lock.start || last == INT64_MAX) throw Corrupt("fdinfo", "a lock's range is impossible");
  lock.length = last - lock.start + 1;
  return lock;
}

/// The task's number in its own pid namespace, as the images have it.
pid_t image_pid(const ProcDir& task) {
  const auto status = task.status();
  const auto list = status.find("NSpid");
  if (list == status.end()) return task.pid();
  return innermost(list->second);
}

}  // namespace

std::vector<FileLock> parse_file_locks(const FdInfo& info) {
  constexpr std::string_view kKey = "lock:";
  std::vector<FileLock> locks;
  std::string_view rest(info.text);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.starts_with(kKey)) locks.push_back(parse_line(line.substr(kKey.size())));
  }
  return locks;
}

void check_file_locks(const OpenFile& file, const FileDumpOptions& options) {
  for (const FileLock& lock : parse_file_locks(file.info)) {
    if (lock.kind == 0)
      throw Refusal(file.who() + ", the file " + file.link + ", with a lease on it",
                    "leases cannot be moved: let the program give it up (F_UNLCK) first");
    if (!options.file_locks)
      throw Refusal(file.who() + ", the file " + file.link + ", with a lock on it",
                    options.advice == Advice::all ? "use --file-locks to take the lock again at the restore"
                                                  : "let the program release it first");
  }
}

void LockDumper::add(const ProcDir& task, int fd, uint32_t files_id, uint32_t file_id, const FdInfo& info) {
  for (const FileLock& lock : parse_file_locks(info)) {
    // A POSIX lock belongs to a table and an inode, the others to a description: several descriptors may show one.
    const bool posix = lock.kind == kLockPosix;
    const uint64_t mount = static_cast<uint64_t>(info.mnt_id) << 32;
    const Key key(lock.kind, posix ? mount | files_id : file_id, posix ? info.ino : 0, lock.start);
    const auto [known, fresh] = seen_.emplace(key, static_cast<uint32_t>(seen_.size()));
    const auto has_it = [&](const HeldLock& h) { return h.number == known->second && h.pid.get() == task.pid(); };
    if (fresh || std::ranges::none_of(held_, has_it)) hold(task, fd, known->second, lock);
    if (!fresh) continue;
    img::file_lock_entry entry;
    entry.set_flag(lock.kind);
    entry.set_type(lock.type);
    entry.set_pid(image_pid(task));
    entry.set_fd(fd);
    entry.set_start(lock.start);
    entry.set_len(lock.length);
    context_.images.write("filelocks.img", magic::kFileLocks).entry(entry);
  }
}

void LockDumper::hold(const ProcDir& task, int fd, uint32_t number, const FileLock& lock) {
  const std::string name = "fd/" + std::to_string(fd);
  struct stat st {};
  check(::fstatat(task.fd(), name.c_str(), &st, 0), "stat", name);
  held_.push_back({number, Pid(task.pid()), fd, lock, st.st_dev, st.st_ino, task.link(name)});
}

}  // namespace migrate
