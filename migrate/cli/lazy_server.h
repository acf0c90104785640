// The page server of `dump --lazy-pages`: gives the pages of a tree that stands still to one client at a time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "migrate/cli/core_options.h"
#include "pageserver/criu_get_server.h"
#include "pageserver/handshake.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate::cli {

/// Clients that break the protocol are told off in the log and cut. A new client takes the place of one that has left,
/// or that has said nothing for a while: a client whose connection was cut comes again before its end is noticed here.
/// Strangers that do not get through their handshake hold up nobody.
class LazyServer {
 public:
  /// Listens. Throws Refusal if other machines would get plain text without --insecure.
  LazyServer(const CoreOptions& options, Logger& log);
  std::string addresses() const { return listener_.addresses(); }
  void give(GivenMemories memories) { memories_ = std::move(memories); }
  /// Of the dump: whoever asks for the pages of another one is told.
  void set_run_id(std::string run_id) { run_id_ = std::move(run_id); }
  /// Called when a client has come. Must not throw.
  void when_connected(std::function<void()> connected) { connected_ = std::move(connected); }

  /// The next request that may be answered. Throws Cancelled (`stop`), TimedOut.
  CriuRequest next(const StopEvent* stop, std::optional<Deadline> deadline = {});
  /// Answers what next() gave, and returns how many pages that were. A client that does not take its answer is cut.
  /// Throws Error if pages cannot be read, or the task is gone and the client does not understand that.
  uint64_t answer(const CriuRequest& request);
  /// Closes our descriptors of connections, which another process has too: nobody is told.
  void forget_clients();

  uint64_t pages() const { return announced_pages(memories_); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Stranger {
    std::unique_ptr<Handshake> handshake;
    Handshake::Want want;
    Deadline deadline;
  };

  bool wait(const StopEvent* stop, const std::optional<Deadline>& deadline);
  std::optional<CriuRequest> hear();
  void accept(int listening);
  bool go_on(Stranger& stranger);
  void admit(std::unique_ptr<Stream> stream);
  void change_client();
  uint64_t give(const CriuRequest& get);
  void cut(const std::string& why);

  Logger& log_;
  bool insecure_;
  std::optional<TlsContext> tls_;
  Listener listener_;
  GivenMemories memories_;
  std::string run_id_;
  std::function<void()> connected_ = [] {};
  std::vector<Stranger> strangers_;
  std::unique_ptr<Stream> client_, next_client_;
  Clock::time_point heard_;
  bool asked_ = false, understands_ = false;  ///< the client: that a task is gone
  std::set<MemoryId> gone_;
};

}  // namespace migrate::cli
