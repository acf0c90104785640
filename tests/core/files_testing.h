// For the tests of descriptors: those of a child are dumped while it is stopped, restored by the test process as
// coordinator, and installed in another child, which then checks that they behave as before.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#undef sigmask

#include "core/files/dump_files.h"
#include "core/files/image_tables.h"
#include "core/files/restore_files.h"
#include "core/image/magic.h"

namespace migrate::files_testing {

inline constexpr uid_t kUser = 65534;

using Work = std::function<void()>;

/// In a child: what must hold. Exceptions end it with a message on the report pipe.
inline void must(bool condition, const std::string& what) {
  if (!condition) throw Error(what + " (" + std::strerror(errno) + ")");
}
#define MUST(x) must((x), #x)

constexpr int kReport = 900;

/// A child without descriptors of ours that runs `work`, then stops itself, then runs `later`.
class Child {
 public:
  explicit Child(
      const Work& work, const Work& later = [] {}) {
    int ends[2];
    check(::pipe2(ends, O_CLOEXEC), "make", "a pipe");
    report_.reset(ends[0]);
    Fd write(ends[1]);
    pid_ = check(::fork(), "fork", "a child");
    if (pid_ == 0) run(write.get(), work, later);
  }
  ~Child() {
    if (pid_ > 0 && !reaped_) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// True when it has done `work`.
  bool stopped() {
    int status = 0;
    check(::waitpid(pid_, &status, WUNTRACED), "wait for", "a child");
    if (WIFSTOPPED(status)) return true;
    reaped_ = true;
    return false;
  }
  /// Runs `later`; empty if all was well.
  std::string finish() {
    ::kill(pid_, SIGCONT);
    int status = 0;
    check(::waitpid(pid_, &status, 0), "wait for", "a child");
    reaped_ = true;
    return text() + (WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : " status " + std::to_string(status));
  }
  std::string text() {
    std::string s(4096, '\0');
    s.resize(read_full(report_.get(), std::as_writable_bytes(std::span(s)), "a report"));
    return s;
  }
  pid_t pid() const { return pid_; }

 private:
  [[noreturn]] static void run(int report, const Work& work, const Work& later) {
    try {
      check(::dup3(report, kReport, O_CLOEXEC), "keep", "the report pipe");
      ::syscall(SYS_close_range, 0, kReport - 1, 0);
      ::syscall(SYS_close_range, kReport + 1, ~0U, 0);
      work();
      // Dumped without the report pipe, whose other end is ours.
      ::raise(SIGSTOP);
      later();
    } catch (const std::exception& e) {
      if (::write(kReport, e.what(), std::strlen(e.what())) < 0) ::_exit(2);
      ::_exit(1);
    }
    ::_exit(0);
  }

  pid_t pid_ = -1;
  bool reaped_ = false;
  Fd report_;
};

inline StoppedTask task_of(pid_t pid) {
  return StoppedTask{.pid = Pid(pid), .pidfd = std::move(*open_pidfd(pid)), .proc = ProcDir(pid), .threads = {}};
}

class Files : public testing::Test {
 protected:
  void SetUp() override {
    dir = std::filesystem::temp_directory_path() / ("files-test-" + std::to_string(::getpid()));
    std::filesystem::create_directories(dir);
  }
  void TearDown() override { std::filesystem::remove_all(dir); }
  std::string at(const std::string& name) const { return (dir / name).string(); }

  /// The report pipe is closed before a dump, so set-up failures show as an early exit.
  ImageSet dump(const Work& setup, const FileDumpOptions& options = {}) {
    Child child([&] {
      setup();
      ::close(kReport);
    });
    if (!child.stopped()) throw std::runtime_error("set-up failed: " + child.text());
    return dump_tasks({child.pid()}, options);
  }
  ImageSet dump_tasks(const std::vector<pid_t>& pids, const FileDumpOptions& options = {}) {
    ImageSet images;
    std::vector<StoppedTask> tasks;
    for (const pid_t pid : pids) tasks.push_back(task_of(pid));
    FileDumper dumper(tasks, options, images, *log);
    dumper.dump_descriptors();
    objects = dumper.take_shared_objects();
    dumper.finish();
    if (keep_links) dumper.keep_links();
    return images;
  }
  /// Installs in a child; there `check_all` runs after the gate opened and the coordinator is gone.
  void restore(
      const ImageSet& images, const Work& check_all, const Work& before_gate = [] {}) {
    auto restorer = std::make_unique<FileRestorer>(images, FileRestoreOptions{}, *log);
    restorer->open_all();
    const pid_t us = ::getpid();
    Child shell(
        [&] {
          constexpr int kCoordinator = 950;
          {
            const Fd pidfd = std::move(*open_pidfd(us));
            check(::dup3(pidfd.get(), kCoordinator, O_CLOEXEC), "keep", "a pidfd");
          }
          install_descriptors(images, 1, kCoordinator, restorer->opened(), {}, *log);
          ::close(kCoordinator);
        },
        check_all);
    ASSERT_TRUE(shell.stopped()) << shell.text();
    before_gate();
    EXPECT_EQ(restorer->after_gate(), std::vector<std::string>());
    restorer.reset();
    EXPECT_EQ(shell.finish(), "");
  }
  /// As `migrate dump` refuses, which has the options that are advised.
  void refused(const Work& setup, const std::string& part, FileDumpOptions options = {}) {
    options.advice = Advice::all;
    try {
      dump(setup, options);
      FAIL() << "not refused: " << part;
    } catch (const Refusal& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("has fd "), std::string::npos) << e.what();
    }
  }

  std::filesystem::path dir;
  LoggerPtr log = null_logger();
  std::vector<SharedObject> objects;
  bool keep_links = true;  ///< as a dump does that was stored
};

inline std::string read_some(int fd) {
  std::string s(65536, '\0');
  const ssize_t n = ::read(fd, s.data(), s.size());
  s.resize(n < 0 ? 0 : static_cast<size_t>(n));
  return s;
}
inline void say(int fd, const std::string& text) {
  MUST(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}
inline void place_at(int fd, int number, int flags = 0) {
  if (fd == number) return;
  MUST(::dup3(fd, number, flags) == number);
  ::close(fd);
}
inline std::string link_of(int fd) { return read_link_at(AT_FDCWD, fd_link(fd)); }

inline sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}
inline uint16_t port_of(int fd) {
  sockaddr_in a{};
  socklen_t length = sizeof a;
  MUST(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length) == 0);
  return ntohs(a.sin_port);
}
inline int bind_to(int fd, uint16_t port) {
  const sockaddr_in a = loopback(port);
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a);
}
inline int connect_to(int fd, uint16_t port) {
  const sockaddr_in a = loopback(port);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a);
}
/// A free port: nobody holds it when this returns.
inline uint16_t free_port(int type) {
  const Fd fd(::socket(AF_INET, type, 0));
  MUST(bind_to(fd.get(), 0) == 0);
  return port_of(fd.get());
}

inline int unix_at(const std::string& name, int type, bool connecting) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::memcpy(a.sun_path, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  const int fd = ::socket(AF_UNIX, type, 0);
  const auto* address = reinterpret_cast<const sockaddr*>(&a);
  if ((connecting ? ::connect(fd, address, length) : ::bind(fd, address, length)) == 0) return fd;
  ::close(fd);
  return -1;
}
inline std::string name_of(int fd) {
  sockaddr_un a{};
  socklen_t length = sizeof a;
  MUST(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length) == 0);
  const size_t n = length - offsetof(sockaddr_un, sun_path);
  return std::string(a.sun_path, a.sun_path[0] == '\0' ? n : ::strnlen(a.sun_path, n));
}

}  // namespace migrate::files_testing
