// What the lazy host of a session does while it lives: takes the copy's memories from the guardian and streams from
// agents, brings pages, and says when nothing is missing any more.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "core/base/log.h"
#include "lazypages/feed/page_fetcher.h"
#include "lazypages/feed/wanted_pages.h"
#include "lazypages/lazy_host.h"
#include "migrate/session/base/options.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/journal/journal.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/wire/connector.h"
#include "migration.pb.h"

namespace migrate {

struct LazyServerOptions {
  SessionId session{};
  std::string peer_name;  ///< of the source's certificate
  LinkOptions link;
  Timeouts timeouts;
  std::string path;  ///< of the socket that it listens on, which goes with it
  /// Asked now and then when there is nothing left to hold, and the guardian is gone: whether the host may leave.
  /// None: it stays until it is told.
  std::function<bool(const PagesEnd& end)> settle_alone;
};

/// One process's time as the daemon. Three threads of its own besides those of the fetcher: this one talks, one serves
/// faults, one a feed.
class LazyServer {
 public:
  LazyServer(LazyHost& host, const LazyServerOptions& options, Logger& log);
  ~LazyServer();
  /// Until the session is settled, or others must be made anew (LazyHost::alone).
  void run();

 private:
  struct Peer {
    PacketSocket socket;
    bool guardian = false;
  };
  /// One feed: its streams, as they come, and the thread that takes them. What several threads use, under the lock.
  struct Feed {
    uint32_t streams = 0;
    CodecSet codecs;
    bool waits = false;
    std::deque<Fd> sockets;
    bool ends = false;
    PageFetcher* fetcher = nullptr;
    StopEvent stop;
    std::shared_ptr<Feed> before;  ///< which may take its time to end, and which `thread` waits for
    std::thread thread;
  };

  /// Both holders are gone while pages are missing.
  bool alone() const;
  bool is_lost() const;
  void turn();
  bool serve(Peer& peer);
  void adopt(Peer& peer);
  void reply_state(Peer& peer) const;
  void tell_guardian();
  void look_without_guardian();

  LazyMemories::Wanted wanted();
  void begin_serving(std::unique_ptr<LazyMemories> memories);
  void serve_faults();
  void end_whole();
  void end_lost(const std::string& why);
  void give_up(MemoryId memory);
  void lose_given_up();
  void note_given_up(MemoryId memory);
  void remember(char word);
  void recall();

  void begin_feed(const wire::Feed& feed);
  void tell_feed_to_end();
  void run_feed(Feed& feed);
  FeedStreams accept_streams(Feed& feed);
  std::optional<Fd> next_socket(Feed& feed, const Deadline& deadline);
  bool wait_for_memories(const Feed& feed);

  LazyHost& host_;
  const LazyServerOptions& options_;
  Logger& log_;
  std::list<Peer> peers_;
  bool over_ = false, guardian_told_ = false;
  std::chrono::steady_clock::time_point look_again_;
  StopEvent ended_;                     ///< all is whole, or lost
  std::atomic<bool> discarded_{false};  ///< the copy is none: over when nothing is missing any more

  WantedPages wanted_;
  std::unique_ptr<LazyMemories> memories_;  ///< set once, under the lock
  std::atomic<bool> stop_{false}, whole_{false};
  std::thread faults_;

  std::atomic<unsigned> feeds_{0};  ///< that have not ended

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Feed> feed_;            ///< the latest; of the thread that talks
  std::string lose_, lost_;               ///< why pages are to be given up; why they were
  std::set<MemoryId> given_up_, losing_;  ///< tasks that have ended at the source; whose pages are not given up yet
};

}  // namespace migrate
