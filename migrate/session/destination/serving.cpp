#include "migrate/session/destination/serving.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "core/base/error.h"
#include "core/base/procfs.h"

namespace migrate {

struct ServingProcesses::Process {
  Process(ServingEnd e, std::string n) : end(std::move(e)), peer_name(std::move(n)) {}
  pid_t pid = 0;
  Fd pidfd;
  ServingEnd end;
  std::string peer_name;
  bool migration = false;
  EventLoop::Watch life, talk;
  ~Process() {
    // A watch goes before its descriptor.
    life = {};
    talk = {};
  }
};

ServingProcesses::ServingProcesses(EventLoop& loop, Limits limits, Outcomes outcomes, Logger& log)
    : loop_(loop), limits_(limits), outcomes_(std::move(outcomes)), log_(log) {}

ServingProcesses::~ServingProcesses() = default;

size_t ServingProcesses::migrations() const {
  return static_cast<size_t>(std::ranges::count_if(all_, [](const auto& one) { return one->migration; }));
}

std::string ServingProcesses::admit(const std::string& peer_name) const {
  size_t without = 0, same = 0;
  for (const auto& one : all_) {
    if (one->migration) continue;
    ++without;
    if (one->peer_name == peer_name) ++same;
  }
  if (same >= limits_.of_a_peer) return "it has " + std::to_string(same) + " connections of that name that say nothing";
  if (without >= limits_.questions) return "it has " + std::to_string(without) + " connections that say nothing";
  return {};
}

void ServingProcesses::start(std::unique_ptr<Stream> stream, std::vector<int> keep) {
  auto [ours, theirs] = ServingEnd::pair();
  auto process = std::make_unique<Process>(std::move(ours), stream->peer_name());
  std::cout.flush();
  std::fflush(nullptr);
  const pid_t pid = check(::fork(), "start", "a process for a connection");
  if (pid == 0) {
    keep.push_back(stream->fd());
    keep.push_back(theirs.get());
    // The daemon's other connections, its listener and its loop are no business of the child's.
    close_all_but(std::move(keep), 3);
    int code = 1;
    try {
      code = outcomes_.serve(std::move(stream), std::move(theirs));
    } catch (const std::exception& e) {
      log_.error("{}", e.what());
    }
    std::cout.flush();
    std::fflush(nullptr);
    ::_exit(code);  // the daemon's objects are not ours to destroy
  }
  process->pid = pid;
  const Place place = all_.insert(all_.end(), std::move(process));
  try {
    watch(place);
  } catch (...) {
    // Unwatched it would never be reaped, take a place for ever, and keep the daemon from ending.
    ::kill(pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    all_.erase(place);
    throw;
  }
}

void ServingProcesses::watch(Place place) {
  Process& one = **place;
  std::optional<Fd> pidfd = open_pidfd(one.pid);
  if (!pidfd) throw Error("watch", "a process for a connection", ESRCH);
  one.pidfd = std::move(*pidfd);
  one.life = loop_.when_readable(one.pidfd.get(), [this, place] { ended(place); });
  one.talk = loop_.when_readable(one.end.fd(), [this, place] { heard(place); });
}

/// Empty: there is one.
std::string ServingProcesses::why_no_place() const {
  if (!no_more_.empty() || migrations() < limits_.migrations) return no_more_;
  return "it receives " + std::to_string(limits_.migrations) +
         (limits_.migrations == 1 ? " migration" : " migrations") +
         " already; try again when one is done, or start it with a greater --max-sessions";
}

void ServingProcesses::heard(Place place) {
  Process& one = **place;
  const std::optional<ServingRequest> request = one.end.receive();
  if (!request) return;
  for (const StreamToken& token : request->tokens) tokens_[token] = &one;
  if (request->wants_place) {
    const std::string refusal = why_no_place();
    one.migration = one.migration || refusal.empty();
    one.end.answer_place(refusal);
  } else if (request->tokens.empty()) {
    one.talk = {};  // it hung up; its end comes next
  }
}

void ServingProcesses::ended(Place place) {
  Process& one = **place;
  int status = 0;
  if (::waitpid(one.pid, &status, WNOHANG) != one.pid) return;
  std::erase_if(tokens_, [&](const auto& entry) { return entry.second == &one; });
  const bool migration = one.migration;
  all_.erase(place);
  outcomes_.ended(migration, WIFEXITED(status) ? std::optional(WEXITSTATUS(status)) : std::nullopt);
}

void ServingProcesses::pass_stream(const StreamToken& token, Fd socket) {
  const auto found = tokens_.find(token);
  if (found == tokens_.end()) {
    log_.debug("a page stream of no session here");
    return;
  }
  Process* const process = found->second;
  tokens_.erase(found);
  if (!process->end.pass_stream(socket)) log_.debug("a page stream that its session does not take");
}

void ServingProcesses::terminate() {
  for (const auto& one : all_) ::syscall(SYS_pidfd_send_signal, one->pidfd.get(), SIGTERM, nullptr, 0);
}

}  // namespace migrate
