// The processes that serve one authenticated connection each: a migration, or a question about a session. Forked from
// the receiver's daemon, not executed: a TLS connection cannot be handed to another program.
#pragma once

#include <sys/types.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/base/log.h"
#include "migrate/session/destination/daemon_link.h"
#include "migrate/session/loop/event_loop.h"
#include "pageserver/stream.h"

namespace migrate {

/// The daemon's side. One thread.
class ServingProcesses {
 public:
  struct Limits {
    size_t migrations = 8;  ///< at a time (--max-sessions)
    size_t questions = 32;  ///< processes without a migration, in all
    size_t of_a_peer = 8;   ///< of these, with the same certificate name
  };
  struct Outcomes {
    /// Runs in the new process, which ends with this exit code.
    std::function<int(std::unique_ptr<Stream>, Fd link)> serve;
    /// A process ended; `code` is nullopt if a signal killed it.
    std::function<void(bool migration, std::optional<int> code)> ended;
  };
  ServingProcesses(EventLoop& loop, Limits limits, Outcomes outcomes, Logger& log);
  ~ServingProcesses();  ///< lets them go on

  /// A sentence that refuses a connection of that peer, or "".
  std::string admit(const std::string& peer_name) const;
  /// Throws Error, with no process left, if there is none to be had. `keep`: descriptors, besides 0 to 2, that the
  /// process needs.
  void start(std::unique_ptr<Stream> stream, std::vector<int> keep);
  /// To the process whose token that is; else the socket is closed.
  void pass_stream(const StreamToken& token, Fd socket);
  /// From now on no migration gets a place, and its peer is told why; questions and feeds are served.
  void take_no_more(std::string why) { no_more_ = std::move(why); }
  /// SIGTERM to all: migrations that are not ready yet are given up.
  void terminate();
  bool empty() const { return all_.empty(); }

 private:
  struct Process;
  using Place = std::list<std::unique_ptr<Process>>::iterator;
  size_t migrations() const;
  std::string why_no_place() const;
  void watch(Place place);
  void heard(Place place);
  void ended(Place place);

  EventLoop& loop_;
  const Limits limits_;
  const Outcomes outcomes_;
  Logger& log_;
  std::list<std::unique_ptr<Process>> all_;
  std::map<StreamToken, Process*> tokens_;
  std::string no_more_;  ///< why no migration gets a place; empty: it may
};

}  // namespace migrate
