// Descriptors of a child are dumped while it is stopped, restored by this process as coordinator, and installed in
// another child, which then checks that they behave as before.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#undef sigmask

#include "core/files/dump_files.h"
#include "core/files/image_tables.h"
#include "core/files/restore_files.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

using Work = std::function<void()>;

/// In a child: what must hold. Exceptions end it with a message on the report pipe.
void must(bool condition, const std::string& what) {
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

StoppedTask task_of(pid_t pid) {
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
          install_descriptors(images, 1, kCoordinator, restorer->opened(), *log);
          ::close(kCoordinator);
        },
        check_all);
    ASSERT_TRUE(shell.stopped()) << shell.text();
    before_gate();
    EXPECT_EQ(restorer->after_gate(), std::vector<std::string>());
    restorer.reset();
    EXPECT_EQ(shell.finish(), "");
  }
  void refused(const Work& setup, const std::string& part, const FileDumpOptions& options = {}) {
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
};

std::string read_some(int fd) {
  std::string s(65536, '\0');
  const ssize_t n = ::read(fd, s.data(), s.size());
  s.resize(n < 0 ? 0 : static_cast<size_t>(n));
  return s;
}
void say(int fd, const std::string& text) {
  MUST(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}
void place_at(int fd, int number, int flags = 0) {
  if (fd == number) return;
  MUST(::dup3(fd, number, flags) == number);
  ::close(fd);
}
std::string link_of(int fd) { return read_link_at(AT_FDCWD, "/proc/self/fd/" + std::to_string(fd)); }

TEST_F(Files, RegularFilesKeepOffsetFlagsAndSharing) {
  const auto images = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 5);
    say(5, "hello world");
    ::lseek(5, 6, SEEK_SET);
    MUST(::dup3(5, 7, O_CLOEXEC) == 7);
    place_at(::open(at("a").c_str(), O_WRONLY | O_APPEND | O_NONBLOCK), 20);
    place_at(::open(at("").c_str(), O_RDONLY | O_DIRECTORY), 21);
    place_at(::open("/dev/null", O_WRONLY), 22);
    place_at(::open("/dev/urandom", O_RDONLY), 23);
    place_at(::open(at("a").c_str(), O_PATH), 24);
  });
  restore(images, [&] {
    MUST(::fcntl(5, F_GETFD) == 0);
    MUST(::fcntl(7, F_GETFD) == FD_CLOEXEC);
    MUST(::lseek(5, 0, SEEK_CUR) == 6);
    MUST(read_some(7) == "world");
    MUST(::lseek(5, 0, SEEK_CUR) == 11);
    MUST((::fcntl(20, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_WRONLY | O_APPEND | O_NONBLOCK));
    MUST((::fcntl(5, F_GETFL) & O_NONBLOCK) == 0);
    say(20, "!");
    MUST(link_of(21) + "/" == at(""));
    MUST(link_of(22) == "/dev/null");
    MUST(read_some(23).size() > 100);
    MUST((::fcntl(24, F_GETFL) & O_PATH) != 0);
    MUST(::fcntl(6, F_GETFD) == -1);
  });
  EXPECT_EQ(read_file_at(AT_FDCWD, at("a")), "hello world!");
}

TEST_F(Files, DeletedFilesBecomeGhosts) {
  const auto images = dump([&] {
    place_at(::open(at("gone (deleted)").c_str(), O_RDWR | O_CREAT, 0640), 3);
    say(3, "ghost");
    place_at(::open(at("gone (deleted)").c_str(), O_RDONLY), 4);
    ::unlink(at("gone (deleted)").c_str());
    place_at(::open(at("sparse").c_str(), O_RDWR | O_CREAT, 0600), 5);
    MUST(::pwrite(5, "end", 3, 50 << 20) == 3);
    ::unlink(at("sparse").c_str());
    place_at(::open(at("real (deleted)").c_str(), O_RDWR | O_CREAT, 0600), 6);
  });
  std::filesystem::create_directory(at("gone (deleted)"));  // the name is taken
  restore(images, [&] {
    MUST(read_some(4) == "ghost");
    say(3, "s");
    MUST(read_some(4) == "s");
    struct stat st {};
    MUST(::fstat(3, &st) == 0 && st.st_nlink == 0 && (st.st_mode & 07777) == 0640);
    char end[4] = {};
    MUST(::pread(5, end, 3, 50 << 20) == 3 && std::string(end) == "end");
    MUST(::fstat(5, &st) == 0 && st.st_size == (50 << 20) + 3 && st.st_blocks < 1000);
    MUST(link_of(6) == at("real (deleted)"));
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 2);
  refused(
      [&] {
        place_at(::open(at("big").c_str(), O_RDWR | O_CREAT, 0600), 3);
        say(3, std::string(2 << 20, 'x'));
        ::unlink(at("big").c_str());
      },
      "raise --ghost-limit");
}

TEST_F(Files, RemovedNamesOfLivingFilesNeedLinkRemap) {
  const Work setup = [&] {
    place_at(::open(at("one").c_str(), O_RDWR | O_CREAT, 0600), 3);
    say(3, "linked");
    ::link(at("one").c_str(), at("two").c_str());
    ::unlink(at("one").c_str());
  };
  refused(setup, "--link-remap");
  std::filesystem::remove(at("two"));
  const auto images = dump(setup, {.link_remap = true});
  restore(images, [&] {
    char text[7] = {};
    MUST(::pread(3, text, 6, 0) == 6 && std::string(text) == "linked");
    MUST(link_of(3) == at("one") + " (deleted)");
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
}

TEST_F(Files, PipesAndFifosKeepTheirData) {
  const std::string big(100'000, 'p');
  const auto images = dump([&] {
    int p[2];
    MUST(::pipe2(p, O_NONBLOCK) == 0);
    MUST(::fcntl(p[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
    say(p[1], big);
    MUST(p[0] == 0 && p[1] == 1);
    MUST(::mkfifo(at("fifo").c_str(), 0600) == 0);
    place_at(::open(at("fifo").c_str(), O_RDWR), 5);
    place_at(::open(at("fifo").c_str(), O_WRONLY), 6);
    say(6, "in a fifo");
    MUST(::pipe(p) == 0);
    place_at(p[0], 8);
    ::close(p[1]);  // end of file
  });
  restore(images, [&] {
    MUST(::fcntl(0, F_GETPIPE_SZ) == 1 << 17);
    std::string got;
    for (std::string part; !(part = read_some(0)).empty();) got += part;
    MUST(got == big);
    say(1, "more");
    MUST(read_some(0) == "more");
    ::close(1);
    char c;
    MUST(::read(0, &c, 1) == 0);
    MUST(read_some(5) == "in a fifo");
    MUST((::fcntl(6, F_GETFL) & O_ACCMODE) == O_WRONLY);
    MUST(::read(8, &c, 1) == 0);
  });
}

TEST_F(Files, EventTimerSignalDescriptors) {
  const auto images = dump([] {
    place_at(::eventfd(41, EFD_NONBLOCK), 3);
    place_at(::eventfd(3, EFD_SEMAPHORE), 4);
    place_at(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 5);
    itimerspec t{{500, 0}, {1000, 0}};
    MUST(::timerfd_settime(5, 0, &t, nullptr) == 0);
    place_at(::timerfd_create(CLOCK_REALTIME, 0), 6);
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    t = {{0, 0}, {now.tv_sec + 1000, 0}};
    MUST(::timerfd_settime(6, TFD_TIMER_ABSTIME, &t, nullptr) == 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    place_at(::signalfd(-1, &set, SFD_NONBLOCK), 7);
    place_at(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 8);
    t = {{1000, 0}, {0, 1}};
    MUST(::timerfd_settime(8, 0, &t, nullptr) == 0);
    pollfd p{8, POLLIN, 0};
    MUST(::poll(&p, 1, 5000) == 1);
  });
  restore(images, [] {
    uint64_t n = 0;
    MUST(::read(3, &n, 8) == 8 && n == 41);
    MUST(::read(4, &n, 8) == 8 && n == 1);
    itimerspec t{};
    MUST(::timerfd_gettime(5, &t) == 0 && t.it_interval.tv_sec == 500 && t.it_value.tv_sec > 900 &&
         t.it_value.tv_sec <= 1000);
    MUST(::timerfd_gettime(6, &t) == 0 && t.it_value.tv_sec > 900 && t.it_value.tv_sec <= 1001);
    MUST(::read(8, &n, 8) == 8 && n == 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    ::raise(SIGUSR1);
    signalfd_siginfo info{};
    MUST(::read(7, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
  });
}

TEST_F(Files, EpollKeepsItsInterestList) {
  const auto images = dump([] {
    place_at(::epoll_create1(EPOLL_CLOEXEC), 9);
    place_at(::eventfd(0, 0), 10);
    place_at(::eventfd(1, 0), 11);
    epoll_event e{};
    e.events = EPOLLIN;
    e.data.u64 = 0x1122334455667788;
    MUST(::epoll_ctl(9, EPOLL_CTL_ADD, 10, &e) == 0);
    e.events = EPOLLIN | EPOLLET;
    e.data.u64 = 11;
    MUST(::epoll_ctl(9, EPOLL_CTL_ADD, 11, &e) == 0);
  });
  restore(images, [] {
    epoll_event e{};
    MUST(::epoll_wait(9, &e, 1, 5000) == 1 && e.data.u64 == 11);
    const uint64_t one = 1;
    MUST(::write(10, &one, 8) == 8);
    MUST(::epoll_wait(9, &e, 1, 5000) == 1 && e.data.u64 == 0x1122334455667788);
    MUST(::epoll_ctl(9, EPOLL_CTL_MOD, 10, &e) == 0);
    MUST(::epoll_ctl(9, EPOLL_CTL_DEL, 11, nullptr) == 0);
    MUST(::epoll_ctl(9, EPOLL_CTL_DEL, 11, nullptr) == -1 && errno == ENOENT);
  });
  refused(
      [] {
        place_at(::epoll_create1(0), 9);
        place_at(::eventfd(0, 0), 10);
        epoll_event e{};
        MUST(::epoll_ctl(9, EPOLL_CTL_ADD, 10, &e) == 0);
        MUST(::dup2(10, 12) == 12);
        place_at(::eventfd(0, 0), 11);
        MUST(::dup2(11, 10) == 10);
      },
      "under number 10");
}

TEST_F(Files, MemfdsKeepNameSealsAndSize) {
  const auto images = dump([] {
    place_at(::memfd_create("a (deleted)", MFD_ALLOW_SEALING), 3);
    MUST(::ftruncate(3, 12345) == 0);
    MUST(::fcntl(3, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    MUST(::dup2(3, 4) == 4);
    MUST(::lseek(3, 77, SEEK_SET) == 77);
    place_at(::open("/proc/self/fd/3", O_RDONLY), 5);
  });
  ASSERT_EQ(objects.size(), 1U);
  EXPECT_EQ(objects[0].shmid, 1U);
  restore(images, [] {
    struct stat st {};
    MUST(::fstat(3, &st) == 0 && st.st_size == 12345);
    MUST(::fcntl(3, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW));
    MUST(::lseek(4, 0, SEEK_CUR) == 77 && ::lseek(5, 0, SEEK_CUR) == 0);
    MUST(link_of(3) == "/memfd:a (deleted) (deleted)");
    MUST((::fcntl(5, F_GETFL) & O_ACCMODE) == O_RDONLY);
    struct stat other {};
    MUST(::fstat(5, &other) == 0 && other.st_ino == st.st_ino);
  });
}

sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}
uint16_t port_of(int fd) {
  sockaddr_in a{};
  socklen_t length = sizeof a;
  MUST(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length) == 0);
  return ntohs(a.sin_port);
}
int bind_to(int fd, uint16_t port) {
  const sockaddr_in a = loopback(port);
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a);
}
int connect_to(int fd, uint16_t port) {
  const sockaddr_in a = loopback(port);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a);
}
/// A free port: nobody holds it when this returns.
uint16_t free_port(int type) {
  const Fd fd(::socket(AF_INET, type, 0));
  MUST(bind_to(fd.get(), 0) == 0);
  return port_of(fd.get());
}

TEST_F(Files, TcpListensOnlyAfterTheGate) {
  const uint16_t port = free_port(SOCK_STREAM);
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 3);
    const int one = 1, idle = 99;
    ::setsockopt(3, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    ::setsockopt(3, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ::setsockopt(3, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    MUST(bind_to(3, port) == 0 && ::listen(3, 17) == 0);
    place_at(::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), 4);
    ::setsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  });
  restore(
      images,
      [&] {
        int value = 0;
        socklen_t length = sizeof value;
        MUST(::getsockopt(3, SOL_SOCKET, SO_REUSEADDR, &value, &length) == 0 && value == 0);
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length) == 0 && value == 99);
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value != 0);
        MUST(::getsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length) == 0 && value == 1);
        MUST((::fcntl(4, F_GETFL) & O_NONBLOCK) != 0);
        tcp_info info{};
        length = sizeof info;
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state == 10 &&
             info.tcpi_sacked == 17);
        MUST(port_of(3) == port);
        const Fd client(::socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(client.get(), port) == 0);
        MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
      },
      [&] {
        const Fd client(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        connect_to(client.get(), port);
        pollfd p{client.get(), POLLOUT, 0};
        EXPECT_EQ(::poll(&p, 1, 100), 0) << "connected before the gate";
      });
}

TEST_F(Files, TcpConnectionsAreRefusedOrDropped) {
  const uint16_t port = free_port(SOCK_STREAM);
  const Work setup = [&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 3);
    const int one = 1;
    ::setsockopt(3, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    MUST(bind_to(3, port) == 0 && ::listen(3, 5) == 0);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 4);
    MUST(connect_to(4, port) == 0);
    place_at(::accept(3, nullptr, nullptr), 5);
  };
  refused(setup, "an established TCP connection to 127.0.0.1:" + std::to_string(port));
  const auto images = dump(setup, {.tcp_close = true});
  restore(images, [&] {
    char c;
    MUST(::read(4, &c, 1) == -1 && errno == ENOTCONN);
    MUST(port_of(5) == 0);
    MUST(port_of(3) == port);
  });
}

TEST_F(Files, UdpIsDeafUntilTheGate) {
  const uint16_t port = free_port(SOCK_DGRAM);
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), 3);
    MUST(bind_to(3, port) == 0);
    sock_filter pass[] = {{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0}, {BPF_RET | BPF_A, 0, 0, 0}};
    sock_fprog program{2, pass};
    MUST(::setsockopt(3, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    place_at(::socket(AF_INET, SOCK_DGRAM, 0), 4);
    MUST(connect_to(4, port) == 0);
  });
  const Fd outside(::socket(AF_INET, SOCK_DGRAM, 0));
  restore(
      images,
      [&] {
        say(4, "after");
        pollfd p{3, POLLIN, 0};
        MUST(::poll(&p, 1, 5000) == 1);
        MUST(read_some(3) == "after");
        sock_filter code[16];
        socklen_t count = 16;
        MUST(::getsockopt(3, SOL_SOCKET, SO_GET_FILTER, code, &count) == 0 && count == 2);
      },
      [&] {
        connect_to(outside.get(), port);
        EXPECT_EQ(::send(outside.get(), "early", 5, 0), 5);
      });
}

int unix_at(const std::string& name, int type, bool connecting) {
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
std::string name_of(int fd) {
  sockaddr_un a{};
  socklen_t length = sizeof a;
  MUST(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length) == 0);
  const size_t n = length - offsetof(sockaddr_un, sun_path);
  return std::string(a.sun_path, a.sun_path[0] == '\0' ? n : ::strnlen(a.sun_path, n));
}

TEST_F(Files, UnixPairsKeepQueuesAndShutdown) {
  const std::string big(150'000, 'u');
  const auto images = dump([&] {
    int p[2];
    MUST(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p) == 0);  // 0, 1
    say(1, big);
    MUST(::shutdown(1, SHUT_WR) == 0);
    MUST(::socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);  // 2, 3
    say(2, "one");
    say(2, "two");
    MUST(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p) == 0);  // 4, 5
    say(5, "packet");
    MUST(::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);  // 6, 7
    say(7, "last words");
    ::close(7);
  });
  restore(images, [&] {
    std::string got;
    for (std::string part; !(part = read_some(0)).empty();) got += part;
    MUST(got == big);
    say(0, "back");
    MUST(read_some(1) == "back");
    MUST(::send(1, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    MUST(read_some(3) == "one");
    MUST(read_some(3) == "two");
    MUST(read_some(4) == "packet");
    MUST(read_some(6) == "last words");
    char c;
    MUST(::read(6, &c, 1) == 0);
  });
}

TEST_F(Files, UnixServersListenAndKeepConnections) {
  const std::string path = at("server");
  const std::string abstract = std::string(1, '\0') + "files-test-" + std::to_string(::getpid());
  const Work setup = [&] {
    place_at(unix_at(path, SOCK_STREAM, false), 3);
    MUST(::listen(3, 7) == 0 && ::chmod(path.c_str(), 0640) == 0);
    place_at(unix_at(path, SOCK_STREAM, true), 4);
    place_at(::accept(3, nullptr, nullptr), 5);
    say(4, "to server");
    say(5, "to client");
    place_at(unix_at(abstract, SOCK_STREAM, false), 6);
    MUST(::listen(6, 3) == 0);
    place_at(unix_at(abstract, SOCK_STREAM, true), 7);
    place_at(::accept(6, nullptr, nullptr), 8);
    place_at(unix_at(at("log"), SOCK_DGRAM, false), 10);
    place_at(unix_at(at("log"), SOCK_DGRAM, true), 11);
    say(11, "line");
  };
  const auto images = dump(setup);
  restore(
      images,
      [&] {
        MUST(read_some(5) == "to server" && read_some(4) == "to client");
        MUST(name_of(3) == path && name_of(5) == path && name_of(4).empty());
        MUST(name_of(6) == abstract && name_of(8) == abstract);
        say(7, "abstract");
        MUST(read_some(8) == "abstract");
        const Fd client(unix_at(path, SOCK_STREAM, true));
        MUST(client.get() >= 0);
        MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
        struct stat st {};
        MUST(::stat(path.c_str(), &st) == 0 && (st.st_mode & 07777) == 0640);
        MUST(read_some(10) == "line");
        say(11, "next");
        MUST(read_some(10) == "next");
        const Fd other(unix_at(at("log"), SOCK_DGRAM, true));
        say(other.get(), "third");
        MUST(read_some(10) == "third");
      },
      [&] { EXPECT_EQ(Fd(unix_at(path, SOCK_STREAM, true)).get(), -1) << "published before the gate"; });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 2);
}

TEST_F(Files, UnixNamesRelativeAndUnlinked) {
  const auto images = dump([&] {
    MUST(::chdir(dir.c_str()) == 0);
    place_at(unix_at("relative", SOCK_STREAM, false), 3);
    MUST(::listen(3, 1) == 0);
    place_at(unix_at(at("unlinked"), SOCK_STREAM, false), 4);
    MUST(::listen(4, 1) == 0);
    ::unlink(at("unlinked").c_str());
  });
  std::filesystem::remove(at("relative"));
  restore(images, [&] {
    MUST(name_of(3) == "relative" && name_of(4) == at("unlinked"));
    const Fd client(unix_at(at("relative"), SOCK_STREAM, true));
    MUST(client.get() >= 0);
    MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
}

TEST_F(Files, UnixNamesInUseAreNotTaken) {
  const auto images = dump([&] {
    place_at(unix_at(at("busy"), SOCK_STREAM, false), 3);
    MUST(::listen(3, 1) == 0);
  });
  std::filesystem::remove(at("busy"));
  const Fd other(unix_at(at("busy"), SOCK_STREAM, false));
  ASSERT_EQ(::listen(other.get(), 1), 0);
  FileRestorer restorer(images, {}, *log);
  try {
    restorer.open_all();
    FAIL() << "bound over a living socket";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EADDRINUSE) << e.what();
  }
  EXPECT_GE(Fd(unix_at(at("busy"), SOCK_STREAM, true)).get(), 0);
}

TEST_F(Files, TerminalsNeedShellJob) {
  const Fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!master) GTEST_SKIP() << "needs a devpts mount";
  ASSERT_EQ(::grantpt(master.get()), 0);
  ASSERT_EQ(::unlockpt(master.get()), 0);
  const std::string name = ::ptsname(master.get());
  const Work setup = [&] { place_at(::open(name.c_str(), O_RDWR | O_NOCTTY), 0); };
  refused(setup, "--shell-job");
  const auto images = dump(setup, {.shell_job = true});
  FileRestorer restorer(images, {.shell_job = true}, *log);
  restorer.open_all();
  ASSERT_EQ(restorer.opened().size(), 1U);
  EXPECT_EQ(link_of(restorer.opened().begin()->second), name);
}

TEST_F(Files, WhatWasRestoredCanBeDumpedAgain) {
  const uint16_t port = free_port(SOCK_STREAM);
  auto images = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 3);
    int p[2];
    MUST(::pipe(p) == 0 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    say(p[0], "queued");
    place_at(unix_at(at("server"), SOCK_STREAM, false), 10);
    MUST(::listen(10, 7) == 0);
    place_at(unix_at(at("server"), SOCK_STREAM, true), 11);
    place_at(::accept(10, nullptr, nullptr), 12);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 13);
    MUST(bind_to(13, port) == 0 && ::listen(13, 5) == 0);
    place_at(::epoll_create1(0), 14);
    epoll_event e{};
    e.events = EPOLLIN;
    for (const int fd : {10, 11, 12, 13}) MUST(::epoll_ctl(14, EPOLL_CTL_ADD, fd, &e) == 0);
    place_at(::open(at("ghost").c_str(), O_RDWR | O_CREAT, 0644), 15);
    say(15, "boo");
    ::unlink(at("ghost").c_str());
  });
  const auto shape = [](const ImageSet& set) {
    std::map<std::string, size_t> sizes;
    for (const auto& [name, bytes] : set.images()) sizes[name] = bytes.size();
    sizes.erase("files.img");  // inode numbers vary in length
    return sizes;
  };
  const auto before = shape(images);
  for (int round = 0; round < 3; ++round) {
    auto restorer = std::make_unique<FileRestorer>(images, FileRestoreOptions{}, *log);
    restorer->open_all();
    const pid_t us = ::getpid();
    Child shell([&] {
      Fd pidfd = std::move(*open_pidfd(us));
      const int high = check(::fcntl(pidfd.get(), F_DUPFD, 950), "keep", "a pidfd");
      ::close(kReport);
      pidfd.reset();
      install_descriptors(images, 1, high, restorer->opened(), *log);
      ::close(high);
    });
    ASSERT_TRUE(shell.stopped());
    EXPECT_EQ(restorer->after_gate(), std::vector<std::string>());
    restorer.reset();
    images = dump_tasks({shell.pid()});
    EXPECT_EQ(shape(images), before);
  }
}

TEST_F(Files, UnixConnectionsOutOfTheTreeAreRefused) {
  const Fd server(unix_at(at("out"), SOCK_STREAM, false));
  ASSERT_EQ(::listen(server.get(), 5), 0);
  refused([&] { place_at(unix_at(at("out"), SOCK_STREAM, true), 3); }, "not accepted yet");
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Fd ours(pair[0]), theirs(pair[1]);
  const pid_t us = ::getpid();
  refused(
      [&] {
        const Fd pidfd = std::move(*open_pidfd(us));
        place_at(get_remote_fd(pidfd.get(), theirs.get()).release(), 30);
      },
      "has fd 30, a Unix socket connected to a process outside of the tree");
  const Fd log_server(unix_at(at("devlog"), SOCK_DGRAM, false));
  const Work setup = [&] { place_at(unix_at(at("devlog"), SOCK_DGRAM, true), 3); };
  refused(setup, "--ext-unix-sk");
  restore(dump(setup, {.ext_unix_sk = true}), [] { say(3, "hi"); });
  EXPECT_EQ(read_some(log_server.get()), "hi");
}

TEST_F(Files, TasksShareTablesAndDescriptions) {
  const auto start = [&](const std::string& file, bool share) {
    return [=] {
      place_at(::open(file.c_str(), O_RDWR | O_CREAT, 0600), 3);
      place_at(::epoll_create1(0), 4);
      place_at(::eventfd(0, 0), 5);
      epoll_event e{};
      e.events = EPOLLIN;
      MUST(::epoll_ctl(4, EPOLL_CTL_ADD, 5, &e) == 0);
      ::close(kReport);
      const long child = ::syscall(SYS_clone, SIGCHLD | (share ? CLONE_FILES : 0), nullptr, nullptr, nullptr, nullptr);
      MUST(child >= 0);
      if (child == 0)
        for (;;) ::pause();
      // Told by its name, since no descriptor may be left for it.
      MUST(::rename(file.c_str(), (file + "." + std::to_string(child)).c_str()) == 0);
    };
  };
  for (const bool share : {false, true}) {
    Child child(start(at("shared"), share));
    ASSERT_TRUE(child.stopped()) << child.text();
    const std::string name = std::filesystem::directory_iterator(dir)->path();
    const auto second = static_cast<pid_t>(std::stol(name.substr(name.rfind('.') + 1)));
    ImageSet images;
    std::vector<StoppedTask> tasks;
    tasks.push_back(task_of(child.pid()));
    tasks.push_back(task_of(second));
    FileDumper dumper(tasks, {}, images, *log);
    dumper.dump_descriptors();
    dumper.finish();
    EXPECT_EQ(dumper.files_id(Pid(child.pid())) == dumper.files_id(Pid(second)), share);
    EXPECT_EQ(table_ids(images).size(), share ? 1U : 2U);
    EXPECT_EQ(read_file_entries(images).size(), 3U);
    restore(images, [] {
      const uint64_t one = 1;
      MUST(::write(5, &one, 8) == 8);
      epoll_event e{};
      MUST(::epoll_wait(4, &e, 1, 5000) == 1);
    });
    ::kill(second, SIGKILL);
    std::filesystem::remove(name);
  }
}

TEST_F(Files, RefusalsNameTheDescriptor) {
  refused([] { place_at(::inotify_init1(0), 7); }, "has fd 7, an inotify instance");
  refused([] { place_at(::socket(AF_NETLINK, SOCK_RAW, 0), 7); }, "a netlink socket");
  refused([] { place_at(::open("/proc/self/ns/net", O_RDONLY), 7); }, "network namespace");
  refused(
      [&] {
        place_at(::open(at("locked").c_str(), O_RDWR | O_CREAT, 0600), 7);
        MUST(::flock(7, LOCK_EX) == 0);
      },
      "with a lock");
  refused(
      [] {
        int p[2];
        MUST(::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
        char byte = 'x';
        iovec iov{&byte, 1};
        msghdr m{};
        m.msg_iov = &iov;
        m.msg_iovlen = 1;
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        cmsghdr* c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(c), &p[0], sizeof(int));
        MUST(::sendmsg(p[0], &m, 0) == 1);
      },
      "SCM_RIGHTS");
}

TEST_F(Files, PipesToTheOutsideAreRefused) {
  Child child([] {
    // Its report pipe, kept open, leads to this process.
  });
  ASSERT_TRUE(child.stopped());
  try {
    dump_tasks({child.pid()});
    FAIL();
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("has fd 900, the write end of a pipe"), std::string::npos) << e.what();
  }
}

TEST_F(Files, PreflightRefusesWithoutStopping) {
  Child child([] { place_at(::inotify_init1(0), 7); });
  ASSERT_TRUE(child.stopped());
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child.pid());
  EXPECT_THROW(FileDumper::preflight(tasks, {}, *log), Refusal);
}

TEST_F(Files, FlagsThatOnlyAnOpenGives) {
  const auto remember = [&] {
    std::string text;
    for (int fd = 3; fd < 10; ++fd) text += std::to_string(::fcntl(fd, F_GETFL)) + " ";
    return text;
  };
  std::filesystem::create_directory(at("gone"));
  const auto images = dump([&] {
    ::close(::open(at("f").c_str(), O_CREAT | O_WRONLY, 0600));
    place_at(::open(at("f").c_str(), O_PATH), 3);
    place_at(::open(at("").c_str(), O_TMPFILE | O_RDWR | O_EXCL | O_NOFOLLOW, 0600), 4);
    say(4, "nameless");
    place_at(::open("/proc/self/fd/4", O_RDONLY), 5);
    place_at(::open(at("gone/x").c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_APPEND, 0600), 6);
    say(6, "folderless");
    place_at(::open(at("named").c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW, 0600), 7);
    int p[2];
    MUST(::pipe(p) == 0);
    place_at(p[1], 9);
    place_at(p[0], 8);
    place_at(::open(at("flags").c_str(), O_WRONLY | O_CREAT, 0600), 20);
    const std::string text = remember();
    MUST(::write(20, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    ::unlink(at("gone/x").c_str());
    ::rmdir(at("gone").c_str());
  });
  restore(images, [&] {
    MUST(remember() == read_file_at(AT_FDCWD, at("flags")));
    MUST(read_some(5) == "nameless");
    MUST(::lseek(4, 0, SEEK_CUR) == 8);
    char text[11] = {};
    MUST(::pread(6, text, 10, 0) == 10 && std::string(text) == "folderless");
    MUST(::access(at("gone").c_str(), F_OK) != 0);
  });
}

TEST_F(Files, PacketsStayApart) {
  const auto images = dump([] {
    int p[2];
    MUST(::pipe2(p, O_DIRECT) == 0);  // 0, 1
    for (const size_t n : {1, 10, 4096, 7}) say(1, std::string(n, 'p'));
    MUST(::pipe2(p, O_DIRECT) == 0);  // 2, 3
    say(3, "x");
    MUST(::pipe(p) == 0);  // 4, 5
    say(5, "abc");
    say(5, "def");
  });
  restore(images, [] {
    for (const size_t n : {1, 10, 4096, 7}) MUST(read_some(0).size() == n);
    MUST((::fcntl(1, F_GETFL) & O_DIRECT) != 0 && (::fcntl(5, F_GETFL) & O_DIRECT) == 0);
    say(3, "y");
    MUST(read_some(2) == "x" && read_some(2) == "y");
    MUST(read_some(4) == "abcdef");
  });
  refused(
      [] {
        int p[2];
        MUST(::pipe(p) == 0);
        say(p[1], std::string(4096, 's'));  // a full page: nothing is merged into it
        MUST(::fcntl(p[1], F_SETFL, O_DIRECT) == 0);
        say(p[1], "packet");
        say(p[1], "packet");
      },
      "among ordinary data");
}

TEST_F(Files, DeliveredOneShotStaysDisarmed) {
  const auto images = dump([] {
    place_at(::eventfd(1, 0), 3);
    place_at(::epoll_create1(0), 4);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = 7;
    MUST(::epoll_ctl(4, EPOLL_CTL_ADD, 3, &event) == 0);
    MUST(::epoll_wait(4, &event, 1, 0) == 1);
  });
  restore(images, [] {
    epoll_event event{};
    MUST(::epoll_wait(4, &event, 1, 0) == 0);
    MUST(read_file_at(AT_FDCWD, "/proc/self/fdinfo/4").find("events: 40000000 data:                7") !=
         std::string::npos);
  });
}

TEST_F(Files, ExpiredPeriodicTimersGoOn) {
  const auto images = dump([] {
    place_at(::timerfd_create(CLOCK_MONOTONIC, 0), 3);
    const itimerspec often{{0, 5'000'000}, {0, 5'000'000}};
    MUST(::timerfd_settime(3, 0, &often, nullptr) == 0);
    pollfd p{3, POLLIN, 0};
    MUST(::poll(&p, 1, 10'000) == 1);
  });
  restore(images, [] {
    MUST(read_some(3).size() == 8);
    pollfd p{3, POLLIN, 0};
    MUST(::poll(&p, 1, 10'000) == 1);
  });
}

TEST_F(Files, PreflightFindsWhoIsOutside) {
  const auto refusal = [&](pid_t pid, const FileDumpOptions& options) -> std::string {
    std::vector<ProcDir> tasks;
    tasks.emplace_back(pid);
    try {
      FileDumper::preflight(tasks, options, *log);
    } catch (const Refusal& e) {
      return e.what();
    }
    return "";
  };
  int pipe_ends[2], pair[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const auto only = [us = ::getpid()](int fd) {
    place_at(get_remote_fd(open_pidfd(us)->get(), fd).release(), 5);
    ::close(kReport);
  };
  Child reader([&] { only(pipe_ends[0]); });
  Child writer([&] { only(pipe_ends[1]); });
  Child left([&] { only(pair[0]); });
  Child right([&] { only(pair[1]); });
  Child ghost([&] {
    ::close(kReport);
    place_at(::open(at("").c_str(), O_TMPFILE | O_RDWR, 0600), 3);
    say(3, std::string(8192, 'x'));
  });
  for (Child* c : {&reader, &writer, &left, &right, &ghost}) ASSERT_TRUE(c->stopped());
  for (const int fd : {pipe_ends[0], pipe_ends[1], pair[0], pair[1]}) ::close(fd);
  EXPECT_NE(refusal(reader.pid(), {}).find("is held by process " + std::to_string(writer.pid())), std::string::npos);
  EXPECT_NE(refusal(left.pid(), {}).find("connected to process " + std::to_string(right.pid())), std::string::npos);
  EXPECT_NE(refusal(ghost.pid(), {.ghost_limit = 4096}).find("raise --ghost-limit"), std::string::npos);
  EXPECT_EQ(refusal(ghost.pid(), {}), "");
}

TEST_F(Files, FiveThousandDescriptors) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  constexpr int kFirst = 1000, kFiles = 4000, kCopies = 1000;
  if (limit.rlim_max < kFirst + kFiles + kCopies) GTEST_SKIP() << "needs a hard limit of 6000 open files (ulimit -Hn)";
  const auto images = dump([&] {
    limit.rlim_cur = limit.rlim_max;
    MUST(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < kFiles; ++i) place_at(i % 2 != 0 ? ::eventfd(0, 0) : ::open("/dev/null", O_RDWR), kFirst + i);
    for (int i = 0; i < kCopies; ++i) MUST(::dup2(kFirst + i, kFirst + kFiles + i) >= 0);
  });
  EXPECT_EQ(read_table(images, 1).size(), 5000U);
  EXPECT_EQ(read_file_entries(images).size(), 4000U);
  EXPECT_EQ(highest_fd(images, 1), 5999);
  restore(images, [] {
    const uint64_t seven = 7;
    MUST(::write(1001, &seven, 8) == 8);
    uint64_t n = 0;
    MUST(::read(5001, &n, 8) == 8 && n == 7);
    MUST(link_of(5000) == "/dev/null");
  });
}

/// Damaged images end in exceptions. Runs in a child, since a file the images name may be opened.
TEST_F(Files, DamagedImagesThrow) {
  const auto good = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 3);
    int p[2];
    MUST(::pipe(p) == 0 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    place_at(::eventfd(1, 0), 20);
    place_at(::memfd_create("m", 0), 21);
    place_at(unix_at(at("sock"), SOCK_DGRAM, false), 22);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 23);
  });
  std::filesystem::remove(at("sock"));
  std::mt19937 random(1);
  for (int round = 0; round < 1500; ++round) {
    ImageSet bad;
    auto victim = random() % good.images().size();
    for (const auto& [name, bytes] : good.images()) {
      auto copy = bytes;
      if (victim-- == 0 && copy.size() > 8)
        for (unsigned n = 1 + random() % 3; n > 0; --n)
          copy[8 + random() % (copy.size() - 8)] = static_cast<std::byte>(random());
      bad.adopt(name, std::move(copy));
    }
    try {
      FileRestorer restorer(bad, {}, *log);
      restorer.open_all();
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace migrate
