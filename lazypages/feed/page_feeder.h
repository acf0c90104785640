// The source's side of post-copy: pages of a frozen tree go to a destination where it runs already.
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
#include <string>
#include <thread>
#include <vector>

#include "core/memory/page_io.h"
#include "lazypages/feed/feed_streams.h"
#include "lazypages/feed/feed_waits.h"
#include "lazypages/feed/gone_memories.h"
#include "lazypages/fill_order.h"
#include "pageserver/page_stream.h"
#include "pageserver/stop_event.h"

namespace migrate {

struct FeederOptions {
  Compression compression;       ///< of the fill; what is asked for goes raw
  CodecSet codecs;               ///< that were agreed upon
  uint64_t bandwidth_limit = 0;  ///< of the fill, bytes a second; 0: none
  bool tells_gone = false;       ///< the destination understands FeedPacket::Kind::gone
  size_t most_gone = 0;          ///< tasks have ended before: so many memories that no source has may be theirs
  /// Whether any task is left: else the feed fails. Any thread of the feeder.
  std::function<bool()> some_live = [] { return true; };
  std::chrono::milliseconds silence = kFeedSilence;
  bool idle = true;  ///< the fill's threads run when nothing else wants the processor
};

/// Readable by any thread at any time.
struct FeederCounters {
  PageCounters fill;
  std::atomic<uint64_t> requested{0};  ///< pages that were asked for and sent
};

class FeedLink;
class FillPace;
struct FeedPacket;
class RecordWriter;
struct SendShared;

/// One connection's. After a cut a new one goes on, with new streams, the same sources and the same order: the
/// destination says what is missing then.
class PageFeeder {
 public:
  /// `sources`: all that was announced to the destination as missing, each memory once; they outlive this. Only these
  /// pages are ever read. `order`: which of them are needed soon (higher ranks first); what it leaves out comes last,
  /// what it has beyond `sources` is left out.
  PageFeeder(FeedStreams streams, std::span<const PageSource> sources, const std::vector<RankedRun>& order,
             const FeederOptions& options = {});
  ~PageFeeder();

  /// May be long after it was made. Sends until the destination says that it is whole. From then on nobody needs the
  /// sources. Anything else is thrown, and the streams are cut: Disconnected, TimedOut (connect again), Cancelled,
  /// Corrupt (the peer breaks the protocol), PeerFailed, Error (pages cannot be read here).
  void run();
  /// Any thread, also a signal handler.
  void cancel() noexcept;
  /// cancel() by somebody who tells the destination why. Any thread.
  void leave(const std::string& why) { fail(std::make_exception_ptr(Error(why))); }

  const FeederCounters& counters() const { return counters_; }
  /// As the destination told last, a fifth of a second ago at most.
  FeedWaits waits() const;
  /// That the fill has yet to take up.
  uint64_t pages_left() const;
  /// Tasks that have ended here while the destination needed their memory, and how many pages of each never come.
  std::map<MemoryId, uint64_t> gone() const { return gone_.pages(); }
  CodecChoice codec() const;
  std::vector<CodecChange> take_codec_changes();

 private:
  struct Memory;

  void serve();
  void begin(const FeedPacket& packet);
  void take_missing(const FeedPacket& packet);
  void take_waits(const FeedPacket& packet);
  void end_of_list(uint64_t pages);
  void start_fill();
  void end_whole();
  void answer(const FeedPacket& packet);
  void send_answers(const FeedPacket& packet, std::span<const uint64_t> addresses);
  bool is_gone(MemoryId memory);
  void note_gone(MemoryId memory, uint64_t pages);
  void count_gone();
  void tell_gone();
  void wait_until_noted() const;
  std::span<std::byte> receive_body(const FeedPacket& packet);
  void leave_out_until(MemoryId memory, uint64_t address);
  void fill(size_t index);
  void send_piece(RecordWriter& writer, const FillPiece& piece, std::span<std::byte> pages);
  void tell_failure() noexcept;
  void end_streams();
  bool next_pieces(std::vector<FillPiece>& pieces);
  void fail(std::exception_ptr why) noexcept;
  bool is_announced(MemoryId memory, uint64_t address, uint64_t pages) const;
  Corrupt corrupt(const char* why) const;

  FeedStreams streams_;
  const FeederOptions options_;
  FeederCounters counters_;
  StopEvent stop_, fill_stop_;
  std::map<MemoryId, Memory> memories_;
  uint64_t announced_ = 0;
  /// As in a pass of pages: with their headers they fill TLS records.
  static constexpr uint64_t kBatchPages = 63;
  uint64_t batch_pages_ = kBatchPages;
  std::unique_ptr<FeedLink> link_;
  std::unique_ptr<SendShared> shared_;
  std::vector<std::unique_ptr<RecordWriter>> writers_;  ///< one a fill stream

  mutable std::mutex mutex_;  ///< of what follows
  FillOrder order_;
  FeedWaits waits_;
  FeedFailure failure_;
  bool whole_ = false;
  std::vector<bool> filled_;  ///< fill streams that have said their end
  GoneMemories gone_;

  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  // Of the thread that serves requests.
  enum class Stage : uint8_t { new_, begun, started } stage_ = Stage::new_;
  uint64_t asked_ = 0;             ///< pages that were asked for
  size_t unknown_ = 0;             ///< memories that no source has, and that are missing there
  uint64_t missing_ = 0;           ///< as the destination said at first ...
  uint64_t listed_ = 0;            ///< ... and of these, pages that it has listed
  MemoryId listing_;               ///< of which it lists pages
  uint64_t listed_until_ = 0;      ///< and up to where
  std::vector<std::byte> answer_;  ///< headers and pages
  std::vector<std::byte> body_;    ///< of the packet that is being read
  std::unique_ptr<FillPace> pace_;
  std::vector<std::thread> threads_;
};

}  // namespace migrate
