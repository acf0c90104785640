#include "core/base/procfs.h"

#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>

#include "core/base/proc_values.h"

namespace migrate {

ProcStat parse_stat(std::string_view text) {
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');  // comm may hold ')' itself; no later field can
  if (open == std::string_view::npos || close == std::string_view::npos || close < open)
    throw Corrupt("/proc/PID/stat", "no command name in parentheses");
  ProcStat s;
  s.comm = text.substr(open + 1, close - open - 1);
  std::vector<std::string_view> f;
  for (std::string_view rest = text.substr(close + 1);;) {
    const size_t start = rest.find_first_not_of(" \n");
    if (start == std::string_view::npos) break;
    const size_t end = std::min(rest.find_first_of(" \n", start), rest.size());
    f.push_back(rest.substr(start, end - start));
    rest.remove_prefix(end);
  }
  if (f.size() < 50) throw Corrupt("/proc/PID/stat", "too few fields");
  // f[0] is field 3 of proc(5).
  const auto number = [&](int field) {
    const std::string_view w = f[static_cast<size_t>(field - 3)];
    if (w.front() != '-') return parse_number(w, "/proc/PID/stat");
    return static_cast<uint64_t>(parse_number<int64_t>(w, "/proc/PID/stat"));
  };
  const auto small = [&](int field) { return static_cast<int>(static_cast<int64_t>(number(field))); };
  s.state = f[0][0];
  s.ppid = small(4);
  s.pgid = small(5);
  s.sid = small(6);
  s.tty_nr = small(7);
  s.flags = static_cast<uint32_t>(number(9));
  s.start_time = number(22);
  s.start_code = number(26);
  s.end_code = number(27);
  s.start_stack = number(28);
  // -1: while another thread executes a program. clone(2) takes any byte, of which most are no signals.
  const int exit_signal = small(38);
  s.exit_signal = exit_signal < 0 ? SIGCHLD : exit_signal < NSIG ? exit_signal : 0;
  s.start_data = number(45);
  s.end_data = number(46);
  s.start_brk = number(47);
  s.arg_start = number(48);
  s.arg_end = number(49);
  s.env_start = number(50);
  s.env_end = number(51);
  s.exit_code = small(52);
  return s;
}

std::string ProcDir::link(const std::string& name) const {
  try {
    return read_link_at(dir_.get(), name);
  } catch (const Error& e) {
    if (e.code() != ENAMETOOLONG) throw;
    throw Refusal("task " + std::to_string(pid_) + " has as " + name + " a file whose path is longer than 4095 bytes",
                  "have the program close it, or leave that folder");
  }
}

ProcDir::ProcDir(pid_t pid) : pid_(pid), dir_(open_path("/proc/" + std::to_string(pid), O_RDONLY | O_DIRECTORY)) {}

ProcDir ProcDir::thread(pid_t tid) const {
  return ProcDir(tid, open_at(dir_.get(), "task/" + std::to_string(tid), O_RDONLY | O_DIRECTORY));
}

std::map<std::string, std::string> ProcDir::status() const { return parse_status(read("status")); }

void for_entries(int dirfd, const std::string& path, const std::function<void(const dirent&)>& what) {
  Fd fd = open_at(dirfd, path, O_RDONLY | O_DIRECTORY);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(fd.get()), &::closedir);
  if (!dir) throw Error("list", path, errno);
  (void)fd.release();
  for (;;) {
    errno = 0;  // readdir(3): nothing else tells an end from a failure
    const dirent* e = ::readdir(dir.get());
    if (e == nullptr && errno != 0) throw Error("list", path, errno);
    if (e == nullptr) return;
    if (e->d_name[0] != '.') what(*e);
  }
}

std::vector<int> numeric_entries(int dirfd, const std::string& path) {
  std::vector<int> numbers;
  for_entries(dirfd, path, [&](const dirent& e) {
    const std::string_view name(e.d_name);
    int n;
    const auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), n);
    if (ec == std::errc() && end == name.data() + name.size()) numbers.push_back(n);
  });
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

bool task_is_gone(const Error& reading) { return reading.code() == ESRCH || reading.code() == ENOENT; }

bool descriptor_is_gone(const Error& reading) { return task_is_gone(reading) || reading.code() == EBADF; }

bool cannot_be_seen(const Error& reading) {
  return task_is_gone(reading) || reading.code() == EACCES || reading.code() == EPERM;
}

std::vector<pid_t> ProcDir::threads() const {
  std::vector<pid_t> tids = numeric_entries(dir_.get(), "task");
  const auto leader = std::find(tids.begin(), tids.end(), pid_);
  if (leader != tids.end()) std::rotate(tids.begin(), leader, leader + 1);
  return tids;
}

std::vector<pid_t> ProcDir::children() const {
  // The children of a thread that ends go to another one, which may have been read already: then all are read again.
  constexpr int kTries = 20;
  std::vector<pid_t> all;
  for (int tries = 0; tries < kTries; ++tries) {
    bool whole = true;
    all.clear();
    for (const pid_t tid : threads()) {
      try {
        const auto list = parse_numbers<pid_t>(read("task/" + std::to_string(tid) + "/children"), "/proc/PID/children");
        all.insert(all.end(), list.begin(), list.end());
      } catch (const Error& e) {
        if (e.code() != ENOENT && e.code() != ESRCH) throw;
        whole = false;
      }
    }
    if (whole) break;
  }
  return all;
}

std::vector<int> ProcDir::descriptors() const { return numeric_entries(dir_.get(), "fd"); }

std::optional<Fd> open_pidfd(pid_t pid) {
  const long fd = ::syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0 && errno == ESRCH) return std::nullopt;
  return Fd(static_cast<int>(check(fd, "open a pidfd of task", std::to_string(pid))));
}

Fd get_remote_fd(int pidfd, int remote_fd) {
  return Fd(static_cast<int>(
      check(::syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0), "get descriptor", std::to_string(remote_fd))));
}

bool same_description(pid_t a, int fd_a, pid_t b, int fd_b) {
  return check(::syscall(SYS_kcmp, a, b, KCMP_FILE, fd_a, fd_b), "compare descriptors of task", std::to_string(a)) == 0;
}

void show_as(std::string_view text) noexcept {
  try {
    // Not by our number, which may be another's in the namespace of that /proc.
    const ProcStat self = parse_stat(read_file_at(AT_FDCWD, "/proc/self/stat"));
    if (self.arg_start == 0 || self.arg_end <= self.arg_start + 1) return;
    char* const arguments = reinterpret_cast<char*>(self.arg_start);
    const size_t room = self.arg_end - self.arg_start;
    std::memset(arguments, 0, room);
    std::memcpy(arguments, text.data(), std::min(text.size(), room - 1));
  } catch (const std::exception&) {
    // It is but a name.
  }
}

}  // namespace migrate
