// Missing pages that a lazy dump on another machine has kept, asked for by CRIU's page server protocol.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/base/log.h"
#include "core/memory/page_io.h"
#include "lazypages/fill_order.h"
#include "pageserver/criu_get_client.h"

namespace migrate::cli {

/// Pages that tasks wait for are asked for first; the rest meanwhile, several requests ahead, but no more than the
/// connection carries: the server answers in order, and who waits for a page waits for all that was asked for before.
///
/// A connection that is lost, or a server that breaks the protocol, ends nothing: it connects again, waiting longer
/// each time, and asks for what has not come. Who touches a missing page waits meanwhile.
class RemoteOrigin {
 public:
  /// Connects, or throws.
  using Connect = std::function<std::unique_ptr<Stream>()>;
  struct Options {
    Connect connect;
    std::string run_id;  ///< of the dump; a server of ours that has another one is refused
    /// After the first answer on a connection: throws if such a server is not to be believed.
    std::function<void(const Stream&)> trust = [](const Stream&) {};
    /// A task has ended there while pages of it were missing: they never come. Once each; by a thread of the origin's,
    /// or claim().
    std::function<void(MemoryId memory)> gone = [](MemoryId) {};
    /// How long connecting is tried, each time; none: for ever, once there was claim().
    std::optional<std::chrono::milliseconds> recover;
    std::chrono::milliseconds unclaimed{10'000};  ///< in place of `recover` before that: no task needs a page yet
    std::chrono::milliseconds patience{30'000};   ///< a server that owes an answer and says nothing for so long is lost
    std::chrono::milliseconds first_delay{100}, longest_delay{5'000};  ///< between tries to connect
    std::chrono::milliseconds ending{10'000};                          ///< how long close() tries
    /// Goes on for a process that is gone, and that had claimed the pages: connects in start(), as after a cut.
    bool resumes = false;
  };

  /// Connects, unless it resumes. Throws what Options::connect throws, and Refusal if the pages of another dump are
  /// there.
  RemoteOrigin(Options options, Logger& log);
  ~RemoteOrigin() { stop(); }
  RemoteOrigin(const RemoteOrigin&) = delete;
  RemoteOrigin& operator=(const RemoteOrigin&) = delete;

  /// For LazyMemories::Wanted. Any thread, also before start().
  void want(MemoryId memory, uint64_t address);
  /// Before claim(), which may be long after: for poll(2), which tells when the connection is cut. -1: there is none.
  int fd() const { return client_ ? client_->stream().fd() : -1; }
  /// When it is cut, and again after the time that this returned: connects again. nullopt: it has. Throws Error if the
  /// server was not reached in time, and Refusal as the constructor does.
  std::optional<std::chrono::milliseconds> reconnect_unclaimed();
  /// Before the tree runs: one page of `order` comes (none if there are none; then it is close()). From then on the
  /// server holds its tree, which never runs again by itself. Throws if it cannot be had: nothing may run here then.
  void claim(PageSink& sink, FillOrder order);
  /// There was nothing to claim.
  bool closed() const { return closed_; }
  /// What is left to bring, in place of claim() when it resumes.
  void resume(FillOrder order) { order_ = std::move(order); }
  /// Pages go to `sink` from now on, until finish(). After claim(), or resume().
  void start(PageSink& sink);
  /// Throws what has ended it for good: nobody was reached in time, or a page could not be put in.
  void check() const;
  /// Cuts the connection.
  void stop();
  /// Nothing is missing any more: takes what is still on its way, and ends.
  void finish();
  /// Tells the server that its tree may be killed; after finish(). Throws Error if it does not hear that.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  struct Asked : AskedPages {
    bool fault = false;
    Clock::time_point at;
  };

  void run(PageSink& sink);
  void converse(PageSink& sink);
  std::optional<Asked> oldest();
  void ask_on(CriuGetClient& client);
  std::optional<Asked> next_wish();
  bool may_ask() const;
  bool on_its_way(MemoryId memory, uint64_t address) const;
  bool claim_page(const AskedPages& asked, std::span<std::byte> page);
  void came(const Asked& asked, uint64_t pages);
  void never_comes(MemoryId memory);
  void widen_or_narrow(const Asked& asked);
  void take_back();
  bool reconnect();
  void give_up_in_time(const Error& reason, std::optional<std::chrono::milliseconds> after) const;
  void ask_again(MemoryId memory, uint64_t address, uint64_t bytes);
  void connect();
  void disconnect();
  void rest();
  void wake_up();

  const Options options_;
  Logger& log_;
  std::optional<Clock::time_point> lost_since_;
  Clock::time_point connected_at_;
  std::chrono::milliseconds delay_{};
  bool closed_ = false;

  mutable std::mutex mutex_;
  std::unique_ptr<CriuGetClient> client_;  ///< changed by the thread that takes answers
  std::condition_variable wakeup_;         ///< something is to be asked for, or was asked for, or it ends
  std::deque<std::pair<MemoryId, uint64_t>> wanted_;
  FillOrder order_;
  std::deque<Asked> asked_;  ///< oldest first
  uint64_t bytes_asked_ = 0;
  uint64_t window_;                                     ///< most bytes that are on their way
  Clock::duration least_round_{};                       ///< of an answer; 0: none yet
  std::set<std::pair<MemoryId, uint64_t>> waited_for_;  ///< wanted, and not here
  std::set<MemoryId> gone_;
  bool broken_ = false;  ///< the connection, as the asking thread found
  bool ending_ = false, cancelled_ = false;
  std::exception_ptr failure_;
  pid_t taker_ = 0;  ///< thread that takes answers
  bool idle_ = false;
  Clock::time_point started_;
  std::thread thread_;
};

}  // namespace migrate::cli
