#include "pageserver/codec_chooser.h"

#include <algorithm>
#include <utility>

namespace migrate {
namespace {

constexpr size_t kRaw = 0;
constexpr double kWindow = 0.1;  ///< seconds of a stream's thread
constexpr double kLongWindow = 2;
constexpr uint64_t kWindowRecords = 8;  ///< at least
constexpr double kWaiting = 0.1;        ///< of the time: more, and the link is what bounds the rate
constexpr double kTryGain = 1.3;        ///< predicted, to try a codec
constexpr double kKeepGain = 1.05;      ///< measured, to keep it; predicted, to go back to raw
constexpr double kForgetting = 0.7;     ///< a window of what was known of a codec
constexpr double kEnough = 1 << 20;     ///< bytes of samples
constexpr uint64_t kMostSeldom = 512;   ///< records between samples when compressing promises nothing
constexpr uint64_t kOften = 64;
constexpr uint64_t kFirst = 4;
constexpr std::chrono::seconds kLongest{64};

}  // namespace

void CodecChooser::configure(const Compression& wanted, CodecSet allowed) {
  const std::lock_guard lock(mutex_);
  automatic_ = wanted.mode == Compression::Mode::automatic && allowed.any();
  known_[1] = {.choice = {PageCodec::lz4, 0}, .allowed = automatic_ && allowed.lz4};
  known_[2] = {.choice = {PageCodec::zstd, 1}, .allowed = automatic_ && allowed.zstd};
  current_ = kRaw;
  if (wanted.mode != Compression::Mode::fixed || !allowed.contains(wanted.fixed.codec)) return;
  known_[1] = {.choice = wanted.fixed, .allowed = true};
  current_ = 1;
}

CodecChoice CodecChooser::next() {
  if (!automatic_) return known_[current_].choice;
  const std::lock_guard lock(mutex_);
  const size_t use = probing_ ? kRaw : current_;
  if (++records_ < next_sample_) return known_[use].choice;
  do sample_ = (sample_ + 1) % kCandidates;
  while (sample_ == kRaw || !known_[sample_].allowed);
  const bool all_known =
      std::all_of(known_.begin(), known_.end(), [](const Known& k) { return !k.allowed || k.known(); });
  next_sample_ = records_ + (all_known ? sample_every_ : kFirst);
  return known_[sample_].choice;
}

void CodecChooser::add(const RecordCost& cost, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  for (Known& known : known_) {
    if (known.choice != cost.tried || cost.tried.codec == PageCodec::raw) continue;
    ++known.samples;
    known.raw += static_cast<double>(cost.raw);
    known.packed += static_cast<double>(cost.packed);
    known.seconds += cost.pack;
  }
  window_.raw += cost.raw;
  window_.wire += cost.wire;
  window_.wire_left += cost.left.wire;
  window_.raw_left += cost.left.raw;
  window_.oldest = std::min(window_.oldest, cost.oldest);
  window_.records += cost.raw > 0 ? 1 : 0;
  window_.read += cost.read;
  window_.pack += cost.pack;
  window_.send += cost.send;
  window_.wait += cost.wait + cost.limit;
  // While a socket's buffer fills, what leaves it tells nothing about the link.
  const bool steady = 2 * window_.wire_left >= window_.wire || window_.time() >= kLongWindow;
  if (window_.time() >= kWindow && window_.records >= kWindowRecords && steady) end_window(now);
}

double CodecChooser::rate_of(const Known& candidate, double link) const {
  const double busy = read_ + candidate.pack() + candidate.ratio() * send_;
  const double on_link = link > 0 ? candidate.ratio() / link : 0;
  const double longest = std::max(busy, on_link);
  return longest > 0 ? 1 / longest : 0;
}

void CodecChooser::learn_base() {
  read_ = window_.read / static_cast<double>(window_.raw);
  send_ = window_.send / static_cast<double>(window_.wire);
  const double through = static_cast<double>(window_.wire_left) / window_.time();
  if (window_.wait > kWaiting * window_.time()) {
    link_ = through;
  } else if (known_[probing_ ? kRaw : current_].choice.codec == PageCodec::raw) {
    link_ = 0;
  } else if (link_ > 0) {
    link_ = std::max(link_, through);  // was measured before it was compressed
  }
}

/// Whether another choice may follow at once.
bool CodecChooser::judge_trial(Clock::time_point now) {
  if (window_.oldest < trial_->since) return false;
  const Trial trial = *trial_;
  trial_.reset();
  if (window_.rate() >= trial.rate_before * kKeepGain) {
    known_[current_].ban = kFirstBan;
    return true;
  }
  Known& failed = known_[current_];
  failed.banned_until = now + failed.ban;
  failed.ban = std::min(2 * failed.ban, kLongest);
  change(trial.before, "which measured better", window_.rate(), trial.rate_before, current_);
  return false;
}

void CodecChooser::end_window(Clock::time_point now) {
  learn_base();
  if (windows_ < kWarmUp) ++windows_;
  if (automatic_ && windows_ == kWarmUp) decide(now);
  for (Known& known : known_) {
    if (known.choice.codec == PageCodec::raw || known.raw < kEnough) continue;
    known.raw *= kForgetting;
    known.packed *= kForgetting;
    known.seconds *= kForgetting;
  }
  window_ = {};
}

void CodecChooser::decide(Clock::time_point now) {
  const bool probe_ends = std::exchange(probing_, false);
  if (!trial_ || judge_trial(now)) choose(now, probe_ends ? 0 : window_.rate());
  if (probe_ends) {
    probe_every_ = known_[current_].choice.codec == PageCodec::raw ? std::chrono::seconds(2)
                                                                   : std::min(2 * probe_every_, kLongest);
    probed_ = now;
  } else if (!trial_ && current_ != kRaw && window_.wait <= kWaiting * window_.time() && now - probed_ > probe_every_) {
    probing_ = true;
  }
}

void CodecChooser::choose(Clock::time_point now, double measured) {
  size_t best = current_;
  double best_rate = std::max(rate_of(known_[current_], link_), measured);
  const double current_rate = best_rate;
  for (size_t i = 0; i < kCandidates; ++i) {
    if (!known_[i].allowed || !known_[i].known() || now < known_[i].banned_until) continue;
    const double rate = rate_of(known_[i], link_);
    if (rate > best_rate) best = i, best_rate = rate;
  }
  const double needed = best == kRaw ? kKeepGain : kTryGain;
  const bool promising = best != current_ && best_rate >= current_rate * needed;
  sample_every_ = promising || current_ != kRaw ? kOften : std::min(2 * sample_every_, kMostSeldom);
  if (!promising) return;
  const size_t before = current_;
  if (best != kRaw) trial_ = Trial{before, window_.rate(), now};
  change(best, best == kRaw ? "since compressing costs more than it saves" : "since the link is slower than packing",
         window_.rate(), best_rate, best == kRaw ? before : best);
}

void CodecChooser::change(size_t to, const char* why, double rate_before, double rate_after, size_t subject) {
  const Known& codec = known_[subject];
  changes_.push_back({.from = known_[current_].choice,
                      .to = known_[to].choice,
                      .why = why,
                      .ratio = codec.ratio(),
                      .pack_rate = codec.pack() > 0 ? 1 / codec.pack() : 0,
                      .link_rate = link_,
                      .rate_before = rate_before,
                      .rate_after = rate_after});
  current_ = to;
}

std::vector<CodecChange> CodecChooser::take_changes() {
  const std::lock_guard lock(mutex_);
  return std::exchange(changes_, {});
}

CodecChoice CodecChooser::current() const {
  const std::lock_guard lock(mutex_);
  return known_[current_].choice;
}

double CodecChooser::rate_at(double link_rate) const {
  const std::lock_guard lock(mutex_);
  if (read_ <= 0 && send_ <= 0) return 0;
  double best = 0;
  for (size_t i = 0; i < kCandidates; ++i) {
    const Known& known = known_[i];
    if (known.allowed && known.known() && (automatic_ || i == current_))
      best = std::max(best, rate_of(known, link_rate));
  }
  return best;
}

void CodecChooser::set_link(double link_rate) {
  const std::lock_guard lock(mutex_);
  trial_.reset();
  probing_ = false;
  window_ = {};
  link_ = link_rate;
  if (automatic_ && (read_ > 0 || send_ > 0)) choose({}, 0);
  trial_.reset();
}

}  // namespace migrate
