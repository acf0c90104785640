// The connections of a feed.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "pageserver/stream.h"

namespace migrate {

/// Connected, and used for nothing else before. Time-outs and stop events that are set become the feed's.
struct FeedStreams {
  std::unique_ptr<Stream> urgent;             ///< requests and answers
  std::vector<std::unique_ptr<Stream>> fill;  ///< one at least

  /// Two at least, the urgent one first.
  static FeedStreams of(std::vector<std::unique_ptr<Stream>> streams) {
    FeedStreams feed;
    feed.urgent = std::move(streams.front());
    feed.fill.assign(std::make_move_iterator(streams.begin() + 1), std::make_move_iterator(streams.end()));
    return feed;
  }
};

/// Whoever says nothing on the urgent stream for so long is gone. A feed says something five times as often.
inline constexpr std::chrono::milliseconds kFeedSilence{10000};

/// What is on its way in a fill stream is in the way of what is asked for, on the same processors and the same link.
inline constexpr int kFillBuffer = 256 << 10;

/// A fill stream may be silent for as long as a list of missing pages takes, or a sink that waits for a task: whether
/// anybody is there is told by the urgent stream, and whether the connection lives by TCP's own time-outs.
inline constexpr std::chrono::hours kFillPatience{24};

/// `option`: SO_SNDBUF at the source, SO_RCVBUF at the destination.
void set_up_fill_stream(Stream& stream, int option) noexcept;

/// The peer says what failed there.
class PeerFailed : public Error {
 public:
  using Error::Error;
};

/// Why a feed ended: what is first, but a cut is only told if nobody says why.
class FeedFailure {
 public:
  void note(std::exception_ptr why) noexcept;
  explicit operator bool() const { return failure_ != nullptr; }
  /// A cut, whose reason the peer may still say.
  bool is_cut() const { return kind_ == Kind::cut; }
  /// Whether the peer is to be told: the connection is not what failed, nor has the peer said so itself.
  bool is_ours() const { return kind_ == Kind::ours; }
  std::string sentence() const;
  [[noreturn]] void rethrow() const { std::rethrow_exception(failure_); }

 private:
  enum class Kind : uint8_t { none, cut, other, ours } kind_ = Kind::none;
  std::exception_ptr failure_;
};

}  // namespace migrate
