// The destination's side of post-copy: missing pages come, those first that somebody waits for.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/memory/page_io.h"
#include "lazypages/feed/feed_streams.h"
#include "lazypages/feed/feed_waits.h"
#include "lazypages/feed/wanted_pages.h"
#include "lazypages/intervals.h"
#include "pageserver/page_stream.h"
#include "pageserver/stop_event.h"

namespace migrate {

using MissingRuns = std::map<MemoryId, std::vector<PageRun>>;

struct FetcherOptions {
  CodecSet codecs;    ///< that were agreed upon
  bool waits = true;  ///< the source understands FeedPacket::Kind::waits
  /// A task has ended at the source: what is missing of its memory never comes. By a thread of the fetcher's, once a
  /// memory; must be quick. Without, the source may not say so.
  std::function<void(MemoryId memory)> gone{};
  std::chrono::milliseconds silence = kFeedSilence;
  bool idle = true;  ///< the fill's threads run when nothing else wants the processor
};

class FeedLink;
struct FeedPacket;

/// One connection's. After a cut, or when another process has taken over, a new one goes on with new streams.
class PageFetcher {
 public:
  /// `missing`, runs ascending: what is to come, at the source's addresses (LazyMemories::missing()); `all`: that is
  /// all that was announced, so that it need not be listed. `sink` and `wanted` outlive this. Pages that were not
  /// missing, came with the fill already, or were never asked for do not reach the sink.
  PageFetcher(FeedStreams streams, PageSink& sink, WantedPages& wanted, const MissingRuns& missing, bool all,
              const FetcherOptions& options = {});
  ~PageFetcher();

  /// Receives until whole() was said and the source has heard it. Anything else is thrown, and the streams are cut:
  /// Disconnected, TimedOut (connect again), Cancelled, Corrupt (the peer breaks the protocol), PeerFailed, what the
  /// sink threw. After whole() a failure only means that the source has yet to hear of it.
  void run();
  /// Nothing is missing any more, or nobody is left who would miss it. Any thread.
  void whole() noexcept;
  /// Any thread, also a signal handler.
  void cancel() noexcept;

  /// With the fill. What came as answers is in `wanted`'s statistics.
  const PageCounters& fill() const;
  /// The fill has brought all that it will bring.
  bool filled() const { return filled_; }

 private:
  class FillSink;

  void request();
  void send_waits(bool last);
  std::chrono::steady_clock::time_point next_words() const;
  void send_wanted();
  void send_missing();
  void receive_answers();
  void take_answer(const FeedPacket& packet);
  void take_gone(MemoryId memory);
  void note_gone();
  void receive_fill();
  void fail(std::exception_ptr why) noexcept;
  void tell_failure() noexcept;
  void end_streams();
  Corrupt corrupt(const char* why) const;

  std::unique_ptr<Stream> urgent_;
  PageSink& sink_;
  WantedPages& wanted_;
  const MissingRuns missing_;
  const bool all_;
  const FetcherOptions options_;
  StopEvent stop_;
  std::unique_ptr<FeedLink> link_;
  std::unique_ptr<FillSink> fill_sink_;
  std::unique_ptr<PageReceiver> receiver_;
  std::atomic<bool> whole_{false}, filled_{false};
  std::atomic<bool> said_whole_{false};
  std::mutex mutex_;
  FeedFailure failure_;
  std::vector<MemoryId> to_note_;  ///< that are gone, and the source is to hear that this is known
  uint64_t answered_ = 0;          ///< pages
  FeedWaits told_waits_;
  std::chrono::steady_clock::time_point waits_due_{};
  std::vector<std::byte> answer_;
};

}  // namespace migrate
