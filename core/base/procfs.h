// Reading /proc. A task is held by its pidfd and its open /proc folder: a pid that was reused in between is noticed
// (reads fail with ESRCH) instead of being read by mistake.
#pragma once

#include <dirent.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {

/// /proc/PID/stat, the fields used here (proc(5) gives the numbers).
struct ProcStat {
  std::string comm;
  char state = '?';
  pid_t ppid = 0;
  pid_t pgid = 0;
  pid_t sid = 0;
  int tty_nr = 0;
  uint32_t flags = 0;       ///< PF_*
  uint64_t start_time = 0;  ///< field 22, clock ticks since boot (as the reader's time namespace sees it)
  uint64_t start_code = 0, end_code = 0, start_stack = 0;
  uint64_t start_data = 0, end_data = 0, start_brk = 0;
  uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  int exit_signal = 0;  ///< what its parent gets at its end (clone(2)); 0: nothing
  int exit_code = 0;    ///< as wait(2) would give it
};

/// Parses the text of /proc/PID/stat; a comm may hold spaces, parentheses and newlines. Throws Corrupt.
ProcStat parse_stat(std::string_view text);

/// The open /proc folder of a task (or of a thread).
class ProcDir {
 public:
  /// `pid` as the mounted /proc numbers it.
  explicit ProcDir(pid_t pid);
  /// The folder of one of its threads.
  ProcDir thread(pid_t tid) const;

  pid_t pid() const { return pid_; }
  int fd() const { return dir_.get(); }
  std::string read(const std::string& name) const { return read_file_at(dir_.get(), name, 256 << 20); }
  /// Refusal for a path that is longer than any system call takes (PATH_MAX).
  std::string link(const std::string& name) const;
  Fd open(const std::string& name, int flags) const { return open_at(dir_.get(), name, flags); }
  ProcStat stat() const { return parse_stat(read("stat")); }
  /// /proc/PID/status as key → value (text after the tab).
  std::map<std::string, std::string> status() const;
  /// Thread ids, the leader's first; the rest ascending.
  std::vector<pid_t> threads() const;
  /// Pids of all living and zombie children of all its threads.
  std::vector<pid_t> children() const;
  /// Descriptor numbers, ascending.
  std::vector<int> descriptors() const;

 private:
  ProcDir(pid_t pid, Fd dir) : pid_(pid), dir_(std::move(dir)) {}
  pid_t pid_;
  Fd dir_;
};

/// Whether /proc could not be read because the task, or the thread, is gone. Whatever else fails (no descriptor, no
/// memory is left) says nothing of it: who took that for its end would take a living tree for a dead one.
bool task_is_gone(const Error& reading);
/// The same of a descriptor, which may also have been closed, and of its task.
bool descriptor_is_gone(const Error& reading);
/// Of tasks that are none of the tree's: gone, or one that we may not look at.
bool cannot_be_seen(const Error& reading);

/// pidfd_open(2); nullopt if there is no such process. Close-on-exec.
std::optional<Fd> open_pidfd(pid_t pid);
/// pidfd_getfd(2): a duplicate of another task's descriptor.
Fd get_remote_fd(int pidfd, int remote_fd);
/// kcmp(2) with KCMP_FILE: whether two descriptors are one open file description.
bool same_description(pid_t a, int fd_a, pid_t b, int fd_b);

/// Calls `what` with each entry of a folder, those that begin with a point left out. Throws if not all can be read; a
/// folder that is removed meanwhile has no more.
void for_entries(int dirfd, const std::string& path, const std::function<void(const dirent&)>& what);
/// The numbers in a folder's entry names, ascending.
std::vector<int> numeric_entries(int dirfd, const std::string& path);

/// The name that the init of a restored tree's namespaces goes by.
inline constexpr std::string_view kTreeInit = "migrate: init of a moved tree";

/// What ps(1) and top(1) show for this process from now on, cut to the room that its arguments have. One that goes on
/// under the command line of the program that forked it is taken for it, and ended with it. No effect where that cannot
/// be had.
void show_as(std::string_view text) noexcept;

}  // namespace migrate
