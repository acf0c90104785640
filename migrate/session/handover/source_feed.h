// The source's end of a feed: pages of the frozen tree go to the destination, where it runs already. By the agent that
// moved it, or, when that has died, by whoever looks after the session.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lazypages/feed/page_feeder.h"
#include "migrate/session/journal/journal.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/connector.h"

namespace migrate {

/// What a feed needs; all outlive it.
struct FeedParts {
  const Connector& connector;
  std::string address;
  SessionId session{};
  Timeouts timeouts;
  FeederOptions options;
  int streams = 1;  ///< that fill
  Events& events;
  std::function<bool()> some_live{};  ///< any task of the tree; of a thread of the feed
  /// Which of the pages will be needed soon (PageFeeder); empty: not known. Called by a thread of the feed.
  std::function<std::vector<RankedRun>(std::span<const PageSource>)> order{};
};

/// One thread, besides the feeder's.
class SourceFeed {
 public:
  explicit SourceFeed(FeedParts parts) : parts_(std::move(parts)) {}

  /// Asks over `channel` for a feed and connects its streams. False: the destination is whole, and has said so.
  bool connect(ControlChannel& channel);
  bool connected() const { return streams_.has_value() || next_.valid(); }
  /// Once connected: makes ready, in a thread of its own, what feed() of these pages would begin with; they stay as
  /// they are until then.
  void prepare(std::span<const PageSource> late);
  /// Until the destination has said over `channel` that it is whole. `late`: all that may be missing there. `beat` is
  /// called five times a second, and may throw to end it. Throws when it is cut (connect again), or fails.
  void feed(ControlChannel& channel, std::span<const PageSource> late, const std::function<void()>& beat);

  /// In `beat`, before it throws: the destination hears why.
  void tell_why_it_ends(const std::string& why);

  /// That had not been sent when the last feed was.
  uint64_t pages_left() const { return left_; }
  uint64_t pages_pushed() const { return pushed_; }
  uint64_t pages_requested() const { return requested_; }
  /// What tasks have ended here while they were needed there, and what that means; empty: none.
  std::string gone_text() const;
  uint64_t pages_gone() const;
  /// How long was waited there; of several processes that served, one after the other, the distribution is the last's.
  FeedWaits waits() const;
  std::string waits_text() const;
  EventFields waits_fields() const;  ///< as the session's README names them

 private:
  void note_waits(const FeedWaits& now);
  void note_gone(const PageFeeder& feeder);

  FeedParts parts_;
  std::optional<FeedStreams> streams_;
  std::future<std::unique_ptr<PageFeeder>> next_;
  PageFeeder* feeding_ = nullptr;
  bool tells_waits_ = false, knows_gone_ = false;  ///< the destination
  std::map<MemoryId, uint64_t> gone_;              ///< as seen here ...
  std::string given_up_;                           ///< ... and as the destination says in the end
  uint64_t pushed_ = 0, requested_ = 0, left_ = 0;
  FeedWaits waits_, waits_before_;  ///< of the process that serves there, of those before
};

/// Whether any of its tasks has its memory still.
bool some_live(const JournalEntry& entry);

FeederOptions feeder_options(const FeedSettings& settings);
/// Of so many streams as the operator allows for a pass.
int fill_streams(int streams);

/// All private pages of what lives of a tree that its journal holds frozen, and all of its shared memory, as its images
/// number them. Throws Error if nothing lives.
std::vector<PageSource> pages_of_held_tree(const JournalEntry& entry);

/// For a committed session whose agent and guardian are gone, as its journal says: one connection's time. Returns when
/// the destination is whole; throws when it was cut.
void feed_from_held_tree(const JournalEntry& entry, const FeedParts& parts);

}  // namespace migrate
