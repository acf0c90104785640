// Which codec the page streams of a session use, by measured gain (README.md, "Compression").
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "pageserver/page_codec.h"
#include "pageserver/socket_queue.h"

namespace migrate {

/// What one record took, in seconds of its stream's thread.
struct RecordCost {
  CodecChoice tried;
  uint64_t raw = 0;                                ///< bytes of pages
  uint64_t packed = 0;                             ///< what `tried` made of them; `raw` if it saved too little
  uint64_t wire = 0;                               ///< bytes sent
  SocketQueue::Left left;                          ///< the socket meanwhile
  std::chrono::steady_clock::time_point oldest{};  ///< of what is in the socket
  double read = 0;                                 ///< until the pages were there
  double pack = 0;
  double send = 0;   ///< encrypting and writing
  double wait = 0;   ///< for the socket
  double limit = 0;  ///< for the bandwidth limit
};

/// A change of the choice, with the numbers behind it. Rates are bytes a second of one stream.
struct CodecChange {
  CodecChoice from, to;
  std::string why;         ///< part of a sentence
  double ratio = 1;        ///< wire bytes a raw byte, of the codec in question
  double pack_rate = 0;    ///< raw bytes a second of CPU that the codec takes in; 0: raw
  double link_rate = 0;    ///< wire bytes that a stream gets through; 0: more than it has
  double rate_before = 0;  ///< raw bytes that went through with `from` ...
  double rate_after = 0;   ///< ... and that are expected (or were measured) with `to`
};

/// One a session, since its streams share link and processors. A stream's thread reads, packs and sends in turn while
/// the socket's buffer drains, so that raw bytes go through at
///     1 / max(read + pack + ratio × send, ratio ÷ link)
/// for each codec. What predicts clearly more than now is tried, and kept if it measures more. Any thread.
class CodecChooser {
 public:
  /// `clock` for tests.
  using Clock = std::chrono::steady_clock;
  CodecChooser() = default;  ///< everything raw
  /// Before the first record.
  void configure(const Compression& wanted, CodecSet allowed);

  /// For the next record. A codec that is only sampled is packed and sent like any other.
  CodecChoice next();
  void add(const RecordCost& cost) { add(cost, Clock::now()); }
  void add(const RecordCost& cost, Clock::time_point now);
  std::vector<CodecChange> take_changes();
  CodecChoice current() const;
  bool automatic() const { return automatic_; }

  /// Raw bytes a second through one stream if it had that much of the link; 0: not known yet.
  double rate_at(double link_rate) const;
  /// From here on a stream has that much of the link (the bandwidth limit was lifted): chooses anew.
  void set_link(double link_rate);

 private:
  static constexpr size_t kCandidates = 3;
  static constexpr unsigned kSamples = 8;
  static constexpr unsigned kWarmUp = 4;  ///< windows: connections and receivers start slowly
  static constexpr std::chrono::seconds kFirstBan{4};
  /// Sums of costs since some moment.
  struct Sums {
    uint64_t raw = 0, wire = 0, wire_left = 0, raw_left = 0, records = 0;
    double read = 0, pack = 0, send = 0, wait = 0;
    Clock::time_point oldest = Clock::time_point::max();  ///< that was in a socket
    double time() const { return read + pack + send + wait; }
    double rate() const { return time() > 0 ? static_cast<double>(raw_left) / time() : 0; }
  };
  /// What is known of a candidate.
  struct Known {
    CodecChoice choice;
    bool allowed = false;
    double raw = 0, packed = 0, seconds = 0;  ///< of records packed with it, older ones weigh less
    Clock::time_point banned_until{};
    std::chrono::seconds ban = kFirstBan;  ///< next time
    unsigned samples = 0;
    bool known() const { return samples >= kSamples; }
    double ratio() const { return packed / raw; }
    double pack() const { return seconds / raw; }
  };
  struct Trial {
    size_t before;
    double rate_before;
    Clock::time_point since;  ///< sockets may hold records of before
  };

  double rate_of(const Known& candidate, double link) const;
  void end_window(Clock::time_point now);
  void learn_base();
  void decide(Clock::time_point now);
  bool judge_trial(Clock::time_point now);
  /// `measured`: what goes through with the current choice; 0: not known.
  void choose(Clock::time_point now, double measured);
  void change(size_t to, const char* why, double rate_before, double rate_after, size_t subject);

  bool automatic_ = false;
  mutable std::mutex mutex_;
  std::array<Known, kCandidates> known_{Known{.allowed = true, .raw = 1, .packed = 1, .samples = kSamples}};
  size_t current_ = 0;
  Sums window_;
  unsigned windows_ = 0;        ///< up to kWarmUp
  double read_ = 0, send_ = 0;  ///< seconds a raw byte, seconds a wire byte
  double link_ = 0;             ///< wire bytes a second of a stream; 0: more than it has
  std::optional<Trial> trial_;
  uint64_t records_ = 0, sample_every_ = 64, next_sample_ = 1;
  size_t sample_ = 0;
  bool probing_ = false;  ///< a window of raw pages, to see how much the link takes
  Clock::time_point probed_{};
  std::chrono::seconds probe_every_{2};
  std::vector<CodecChange> changes_;
};

}  // namespace migrate
