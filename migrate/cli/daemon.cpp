#include "migrate/cli/daemon.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <filesystem>

#include "core/base/error.h"
#include "core/base/fd.h"

namespace migrate::cli {

void write_pidfile(const CoreOptions& o, pid_t pid) {
  if (o.pidfile.empty()) return;
  std::filesystem::path path(o.pidfile);
  if (path.is_relative()) path = std::filesystem::path(o.effective_work_dir()) / path;
  const Fd fd = open_path(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  write_full(fd.get(), as_bytes_of(std::to_string(pid)), o.pidfile);
}

void tell_status(const CoreOptions& o) {
  constexpr std::array<std::byte, 1> kReady{};
  if (o.status_fd >= 0) write_full(o.status_fd, kReady, "the status descriptor");
}

bool begin_serving(const CoreOptions& o, Logger& log) {
  if (!o.daemon) {
    write_pidfile(o, ::getpid());
    tell_status(o);
    return false;
  }
  log.flush();  // or what is buffered would be written twice
  const pid_t pid = check(::fork(), "go on", "in the background");
  if (pid != 0) {
    write_pidfile(o, pid);
    tell_status(o);
    return true;
  }
  ::setsid();
  const Fd null = open_path("/dev/null", O_RDWR);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
  return false;
}

}  // namespace migrate::cli
