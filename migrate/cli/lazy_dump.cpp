#include "migrate/cli/lazy_dump.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <iostream>
#include <thread>

#include "core/base/procfs.h"
#include "core/dump/preflight.h"
#include "core/files/reset_connections.h"
#include "core/freeze/quick_moves.h"
#include "core/ipc/left_behind.h"
#include "migrate/cli/daemon.h"
#include "migrate/session/telling/interrupt.h"

namespace migrate::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kEnding(10'000);
/// Between a client's coming and its first request a restore does its work.
constexpr seconds kSoon(10);
constexpr milliseconds kAgain(100);
constexpr seconds kLook(1);  ///< whether the tree is still there

void refuse_with(const CoreOptions& o) {
  const auto refuse = [](const char* option, const char* remedy) {
    throw Refusal(std::string("--lazy-pages and ") + option + " exclude each other", remedy);
  };
  if (o.leave_running) refuse("--leave-running", "a tree whose pages are given away does not run on");
  if (o.leave_stopped) refuse("--leave-stopped", "a tree whose pages are given away ends when it has none left");
  if (o.page_server) refuse("--page-server", "a lazy dump is a page server itself: give its --address and --port");
  if (o.ps_socket >= 0) refuse("--ps-socket", "a connection that is cut must be made again: give --address and --port");
}

/// Threads that are traced stay until their tracer waits for them, so that a pidfd tells nothing.
bool has_ended(const StoppedTask& task) {
  try {
    const char state = task.proc.stat().state;
    return state == 'Z' || state == 'X';
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return true;
  }
}

/// What was killed while it stood here is not to run elsewhere.
void expect_alive(Dump& dump) {
  for (const StoppedTask& task : dump.tree().tasks()) {
    if (task.state == TaskState::zombie || !has_ended(task)) continue;
    throw Error("task " + std::to_string(task.pid.get()) +
                " has ended while it was held: nothing of its tree runs elsewhere");
  }
}

}  // namespace

/// What both processes know; in memory that they share.
struct LazyDump::Shared {
  std::atomic<bool> closed = false;  ///< the client has all that it needs
  std::atomic<uint64_t> given = 0;
};

LazyDump::LazyDump(const CoreOptions& o, Logger& log)
    : options_((refuse_with(o), o)), log_(log), server_(o, log), cgroup_("migrate-dump-" + std::to_string(::getpid())) {
  check_freezer();
}

/// Of a running tree, whose members come and go.
void LazyDump::check_freezer() const {
  for (const ProcDir& task : collect_tree(Pid(options_.tree))) {
    try {
      FreezerCgroup::plan({Pid(task.pid())}, cgroup_);
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
    }
  }
}

PagesByMemory LazyDump::keep_back(std::vector<PageSource>& sources, const PagesByMemory& lazy) {
  PagesByMemory kept;
  GivenMemories given;
  for (PageSource& source : sources) {
    const auto may = lazy.find(source.memory);
    if (may == lazy.end()) continue;
    PageSet pages = pages_of(source.runs) & may->second;
    if (pages.empty()) continue;
    source.runs = runs_without(source.runs, pages);
    given.emplace(source.memory, GivenMemory{pages, source.fd.dup()});
    kept.emplace(source.memory, std::move(pages));
  }
  server_.give(std::move(given));
  return kept;
}

/// The tree is stopped by ptrace meanwhile: if we die, it runs on.
CriuRequest LazyDump::await_first(Dump& dump) {
  const InterruptWatch interrupt;
  std::optional<QuickMoves> quick_moves;
  server_.when_connected([&] { quick_moves.emplace(kSoon); });
  std::optional<Deadline> deadline;
  if (options_.client_timeout_seconds > 0) deadline = Deadline::in(seconds(options_.client_timeout_seconds));
  std::cerr << "dump: listening on " + server_.addresses() + "\n";
  tell_status(options_);
  for (;;) {
    try {
      const CriuRequest first = server_.next(&interrupt.stop(), Deadline::in(kLook));
      server_.when_connected([] {});
      return first;
    } catch (const Cancelled&) {
      throw Error("interrupted before anybody had asked for a page: " + tree() + " runs on here");
    } catch (const TimedOut&) {
      if (deadline && deadline->passed())
        throw Error("nobody has asked for a page in " + std::to_string(options_.client_timeout_seconds) +
                    " s: " + tree() + " runs on here");
      expect_alive(dump);
    }
  }
}

/// From the ptrace stops into a frozen cgroup, where it stands without us.
void LazyDump::hold(Dump& dump) {
  std::vector<Pid> living;
  for (const StoppedTask& task : dump.tree().tasks())
    if (task.state != TaskState::zombie) living.push_back(task.pid);
  FreezerCgroup held = FreezerCgroup::hold(living, cgroup_);
  try {
    held.freeze(seconds(options_.timeout_seconds));
  } catch (...) {
    held.dissolve();
    throw;
  }
  left_behind_ = dump.left_behind();
  dump.tree().release();
  held_.emplace(std::move(held));
}

void LazyDump::serve(Dump& dump, const std::string& run_id) {
  server_.set_run_id(run_id);
  const CriuRequest first = await_first(dump);
  expect_alive(dump);
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error("map", "memory for two processes", errno);
  Shared& shared = *new (memory) Shared;
  hold(dump);
  dump.keep_links();
  see_through(first, shared);
  log_.info("gave {} pages; {} were announced", shared.given.load(), pages());
  ::munmap(memory, sizeof(Shared));
}

/// A child gives the pages, another one if it is killed; if we are, it does the rest.
void LazyDump::see_through(const CriuRequest& first, Shared& shared) {
  ::signal(SIGCHLD, SIG_DFL);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  const Fd signals(check(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "watch", "signals"));
  for (const CriuRequest* request = &first;; request = nullptr) {
    log_.flush();  // or what is buffered would be written twice
    const pid_t child = ::fork();
    if (child == 0) ::prctl(PR_SET_NAME, "migrate-pages");
    if (child <= 0) give_pages(request, shared);  // there may be no room for another process
    if (child == 0) ::_exit(0);
    server_.forget_clients();
    int status = 0;
    const bool given_up = child > 0 && !wait_for(child, signals.get(), status);
    if (!given_up && !shared.closed && WIFSIGNALED(status)) {
      log_.warn("process {}, which gave the pages, was killed; another one goes on", child);
      std::this_thread::sleep_for(kAgain);
      continue;
    }
    end_tree();
    if (given_up)
      throw Error("given up: " + tree() + " was killed here after " + std::to_string(shared.given.load()) + " of " +
                  std::to_string(pages()) + " pages");
    if (!shared.closed)
      throw Error(tree() + " has ended here after " + std::to_string(shared.given.load()) + " of " +
                  std::to_string(pages()) + " pages were given; the others are lost");
    return;
  }
}

/// Until the client has all that it needs, and the tree is killed; or until nothing is left of that. Never throws.
void LazyDump::give_pages(const CriuRequest* first, Shared& shared) {
  std::optional<CriuRequest> request;
  if (first != nullptr) request = *first;
  for (;;) {
    try {
      if (!request) request = server_.next(nullptr, Deadline::in(kLook));
      if (request->command != CriuRequest::Command::get) shared.closed = true;
      shared.given += server_.answer(*request);
      request.reset();
      if (!shared.closed) continue;
      end_tree();
      return;
    } catch (const TimedOut&) {  // of next()
    } catch (const std::exception& e) {
      request.reset();
      log_.error("{}", e.what());
      if (shared.closed) return;
    }
    if (all_gone()) return;
  }
}

bool LazyDump::all_gone() const {
  try {
    return held_->members().empty();
  } catch (const Error&) {  // asked again soon
    return false;
  }
}

/// False: the operator gives the pages up, and the child was killed.
bool LazyDump::wait_for(pid_t child, int signals, int& status) {
  const auto pidfd = open_pidfd(child);
  std::array<pollfd, 2> polls{pollfd{signals, POLLIN, 0}, pollfd{pidfd ? pidfd->get() : -1, POLLIN, 0}};
  bool given_up = false;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    ::poll(polls.data(), polls.size(), pidfd ? -1 : 100);
    signalfd_siginfo info{};
    if (given_up || ::read(signals, &info, sizeof info) != sizeof info) continue;
    given_up = info.ssi_signo == SIGQUIT;
    if (given_up) {
      ::kill(child, SIGKILL);
    } else {
      log_.warn(
          "{} may run elsewhere with pages that are only here: it stays frozen, and they are given on; SIGQUIT "
          "gives them up and kills it",
          tree());
    }
  }
  return !given_up;
}

void LazyDump::end_tree() {
  for (const Pid task : held_->members()) reset_connections(task.get());
  held_->kill_all(kEnding);
  held_->dissolve();
  for (const std::string& stays : remove_left_behind(left_behind_)) log_.warn("{}", stays);
}

}  // namespace migrate::cli
