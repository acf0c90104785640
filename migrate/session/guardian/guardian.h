// The guardians: small processes that hold a tree while agents may come and go. Each serves one agent over a
// PacketSocket and settles alone when that agent is gone. See migrate/session/README.md for the rules.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "core/base/log.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/journal/journal.h"
#include "migrate/session/journal/trees.h"
#include "migration.pb.h"
#include "pageserver/stop_event.h"

namespace migrate {

/// How a guardian gets its hands on trees; tests pass fakes.
struct GuardianParts {
  std::function<std::unique_ptr<HeldTree>(const DumpOptions&)> held_tree;
  std::function<std::unique_ptr<RestoredTree>(RestoreOptions)> restored_tree;
  std::shared_ptr<TreeKeeper> keeper;
  /// Starts the lazy host of a session at the other end of a socket; agents come to `listener`. None: no pages may come
  /// late.
  std::function<void(PacketSocket& end, const Fd& listener, const wire::GuardianRequest::StartDestination& start)>
      lazy_host;
  /// Starts a watch over a session at the source that begins as soon as what it returns, and this
  /// process, are gone. None: the
  /// guardian settles alone.
  std::function<std::shared_ptr<void>(const wire::GuardianRequest::StartSource& start, const SessionId& id)> watch;
  /// Starts a process that makes huge pages again (start_huge_again). None: they stay small.
  std::function<void(const SessionId& id, const wire::HugeAgain& tasks, const std::string& wait_in)> huge_again;
};

/// Serves until the session is settled or left to a later agent. Returns the process's exit status.
int serve_source_guardian(PacketSocket agent, const GuardianParts& parts, Logger& log);
int serve_destination_guardian(PacketSocket agent, const GuardianParts& parts, Logger& log);

/// A guardian as its agent sees it.
class Guardian {
 public:
  /// Starts a process of its own session that runs `serve` at the other end of a socket pair.
  using Spawn = std::function<pid_t(Fd guardian_end)>;
  explicit Guardian(const Spawn& spawn);
  Guardian(Guardian&&) noexcept = default;
  ~Guardian();  ///< as let_go()

  /// Sends `request` and waits for its reply; a `failed` reply is thrown as Error or Refusal. Throws GuardianGone when
  /// it dies, Error (ETIMEDOUT) at the deadline.
  /// Cancelled when `stop` is triggered; the reply comes all the same, and counts for the next await().
  wire::GuardianReply ask(const wire::GuardianRequest& request, const Deadline& deadline,
                          const StopEvent* stop = nullptr);
  void send(const wire::GuardianRequest& request) { socket_.send(request); }
  /// The second half of ask().
  wire::GuardianReply await(const Deadline& deadline, const StopEvent* stop = nullptr);
  /// A `failed` reply that came on its own accord is thrown.
  void check_alive();
  PacketSocket& socket() { return socket_; }
  /// Readable when it is dead; for poll(2).
  int death_fd() const { return pidfd_.get(); }
  /// Closes our end and waits until it has settled and left; kills it at the deadline.
  void leave(const Deadline& deadline);
  /// Closes our end and lets it hold what it holds.
  void let_go();

 private:
  /// SIGKILL and reap: for one that does not answer.
  void kill();
  wire::GuardianReply checked(wire::GuardianReply reply) const;
  bool dead() const;
  PacketSocket socket_;
  Fd pidfd_;
  pid_t pid_ = 0;
};

/// Executes this program again with the verb ("guardian-source").
Guardian::Spawn exec_guardian(const char* verb);

}  // namespace migrate
