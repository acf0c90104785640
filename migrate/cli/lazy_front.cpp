#include "migrate/cli/lazy_front.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <new>

#include "core/base/error.h"
#include "migrate/cli/daemon.h"

namespace migrate::cli {

/// Shared by all of them.
struct FrontMemory {
  std::atomic<bool> adopted{false}, killed{false};
  std::atomic<int> code{-1};  ///< -1: not ended; written after `why`
  std::array<char, 2000> why{};
};

namespace {

constexpr char kReady = 'r', kAdopted = 'a', kSocket[] = "front";

void to_null_device() {
  const Fd null = open_path("/dev/null", O_RDWR);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
}

/// Whoever ends us in the middle would make pages zeros.
void hold_on() {
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGPIPE}) ::signal(signal, SIG_IGN);
}

FrontMemory& make_memory() {
  void* at = ::mmap(nullptr, sizeof(FrontMemory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw Error("map", "memory for lazy-pages", errno);
  return *new (at) FrontMemory;
}

class Front {
 public:
  /// `first`: of those that hold the pages; it leads a process group, which all who follow are in.
  Front(const CoreOptions& options, FrontMemory& memory, pid_t first, Fd socket, Fd parent)
      : options_(options), memory_(memory), first_(first), socket_(std::move(socket)), parent_(std::move(parent)) {}

  int run() {
    const Fd children = children_ended();
    for (;;) {
      std::array<pollfd, 2> waited{pollfd{socket_.get(), POLLIN, 0}, pollfd{children.get(), POLLIN, 0}};
      if (::poll(waited.data(), waited.size(), -1) < 0 && errno != EINTR) throw Error("wait for", "lazy-pages", errno);
      if (waited[1].revents != 0) reap(children.get());
      if (waited[0].revents != 0 && !hear()) break;
    }
    // Their table of descriptors is gone, and so are they. Who has executed us may have left us other children, which
    // go on; and `first` may have been killed before it had a group.
    ::waitpid(first_, nullptr, __WALL);
    while (::waitpid(-first_, nullptr, __WALL) > 0) continue;
    return tell();
  }

 private:
  static Fd children_ended() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    return Fd(check(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "wait for", "processes"));
  }
  static void reap(int children) {
    signalfd_siginfo info{};
    while (::read(children, &info, sizeof info) > 0) continue;
    while (::waitpid(-1, nullptr, WNOHANG | __WALL) > 0) continue;
  }
  /// False: all have left.
  bool hear() {
    char word = 0;
    const ssize_t n = ::recv(socket_.get(), &word, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    if (n <= 0) return false;
    if (word == kAdopted) hold_on();
    if (word == kReady && !std::exchange(ready_, true)) be_ready();
    return true;
  }
  void be_ready() {
    write_pidfile(options_, ::getpid());
    tell_status(options_);
    if (!parent_) return;
    to_null_device();
    write_full(parent_.get(), std::as_bytes(std::span(&kReady, 1)), "the command");
    parent_.reset();
  }
  int tell() const {
    if (memory_.code < 0) {
      std::cerr << "migrate: all processes of lazy-pages were killed"
                << (memory_.adopted ? ": pages that were missing are lost, and read as zeros" : "") << "\n";
      return 1;
    }
    if (memory_.why[0] != '\0') std::cerr << "migrate: " << memory_.why.data() << "\n";
    return memory_.code;
  }

  const CoreOptions& options_;
  FrontMemory& memory_;
  const pid_t first_;
  Fd socket_, parent_;  ///< parent_: of the command with --daemon
  bool ready_ = false;
};

/// For sentences of whoever has no logger: some in processes that have only just been made.
void say(const CoreOptions& options, const std::string& sentence) noexcept {
  try {
    make_logger(options, true)->warn("{}", sentence);
  } catch (const std::exception&) {
    return;  // not worth a page
  }
}

[[noreturn]] void hold(const CoreOptions& options, FrontMemory& memory, std::map<std::string, Fd> kept,
                       const std::function<void(LazyHost&, const BehindFront&)>& serve) {
  ::setsid();
  hold_on();
  const BehindFront front(memory, kept.at(kSocket).get(), options.daemon);
  HoldOptions hold{.kept = std::move(kept)};
  hold.placed = [](unsigned place, unsigned) { ::prctl(PR_SET_NAME, place == 0 ? "migrate-lazy" : "migrate-hold"); };
  hold.step = [front](const char* name) { front.step(name); };
  hold.say = [&options](const std::string& sentence) { say(options, sentence); };
  ::prctl(PR_SET_NAME, "migrate-lazy");
  try {
    hold_lazily(std::move(hold), [&](LazyHost& host) { serve(host, front); });
  } catch (const std::exception& e) {
    front.ended(1, e.what());
    ::_exit(1);
  }
}

/// In the process that goes on; in its parent, which has waited until that is ready, the exit code.
std::optional<int> go_on_in_background(Fd& parent) {
  std::array<int, 2> pipe{};
  check(::pipe2(pipe.data(), O_CLOEXEC), "make", "a pipe");
  Fd ready(pipe[0]);
  parent = Fd(pipe[1]);
  const pid_t pid = check(::fork(), "go on", "in the background");
  if (pid == 0) {
    ::setsid();
    return {};
  }
  parent.reset();
  std::array<std::byte, 1> word{};
  if (read_full(ready.get(), word, "the daemon") == 1) return 0;
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) throw Error("the daemon was killed");
  return WEXITSTATUS(status);
}

}  // namespace

void BehindFront::ready() const {
  if (daemon_) to_null_device();
  ::send(socket_, &kReady, sizeof kReady, MSG_NOSIGNAL);
}

void BehindFront::adopted() const {
  memory_.adopted = true;
  ::send(socket_, &kAdopted, sizeof kAdopted, MSG_NOSIGNAL);
}

void BehindFront::step(std::string_view name) const {
  const char* at = std::getenv("MIGRATE_LAZY_STEP");
  if (at != nullptr && name == at && !memory_.killed.exchange(true)) ::kill(::getpid(), SIGKILL);
}

void BehindFront::ended(int code, const std::string& why) const {
  if (memory_.code >= 0) return;
  memory_.why = {};
  std::ranges::copy(why.substr(0, memory_.why.size() - 1), memory_.why.begin());
  memory_.code = code;
}

int run_behind_front(const CoreOptions& options, std::map<std::string, Fd> kept,
                     const std::function<void(LazyHost&, const BehindFront&)>& serve) {
  Fd parent;
  if (options.daemon) {
    if (const auto code = go_on_in_background(parent)) return *code;
  }
  FrontMemory& memory = make_memory();
  std::array<int, 2> sockets{};
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()), "make", "a socket");
  Fd ours(sockets[0]), theirs(sockets[1]);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  std::cerr.flush();
  const pid_t pid = check(::fork(), "make", "the processes that bring pages");
  if (pid == 0) {
    kept.emplace(kSocket, std::move(theirs));
    hold(options, memory, std::move(kept), serve);
  }
  theirs.reset();
  kept.clear();
  return Front(options, memory, pid, std::move(ours), std::move(parent)).run();
}

}  // namespace migrate::cli
