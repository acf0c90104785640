#include "lazypages/feed/page_fetcher.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "lazypages/feed/feed_link.h"
#include "lazypages/feed/pace.h"
#include "lazypages/idle.h"

namespace migrate {

using Clock = std::chrono::steady_clock;

/// Lets through what the fill may bring: each missing page once.
class PageFetcher::FillSink final : public PageSink {
 public:
  FillSink(PageSink& sink, WantedPages& wanted, const MissingRuns& missing, std::string peer)
      : sink_(sink), wanted_(wanted), peer_(std::move(peer)) {
    for (const auto& [memory, runs] : missing)
      for (const PageRun& run : runs) add(to_come_[memory], run.address, run.address + run.pages * kPageSize);
  }

  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    // Others wait for the locks that are taken here.
    const OutOfIdle awake;
    take(memory, address, data.size());
    const auto began = Clock::now();
    sink_.write(memory, address, data);
    wanted_.filled(memory, address, data.size() / kPageSize, began);
  }

  void answered(MemoryId memory, uint64_t address, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    add(answered_[memory], address, address + bytes);
  }

  /// The source has sent all of it that it will. False: it has said so before.
  bool gone(MemoryId memory) {
    const std::lock_guard lock(mutex_);
    return gone_.insert(memory).second;
  }

  /// The fill is over: throws Corrupt unless all is here that was missing, or is asked for. The source leaves out what
  /// it has answered, and the answer may still be on its way, by another stream.
  void check_complete() {
    const std::lock_guard lock(mutex_);
    for (auto& [memory, left] : to_come_) {
      if (gone_.contains(memory)) continue;
      for (const auto& [start, end] : left)
        for (uint64_t page = start; page < end; page += kPageSize)
          if (!wanted_.are_asked_for(memory, page, 1) && !is_answered(memory, page))
            throw corrupt("the fill has ended, but pages that were announced have not come");
    }
  }

 private:
  Corrupt corrupt(const char* why) const { return {"the feed from " + peer_, why}; }

  /// Once it is not asked for any more: it is noted here first.
  bool is_answered(MemoryId memory, uint64_t page) {
    const Intervals& all = answered_[memory];
    return around(all, page) != all.end();
  }

  void take(MemoryId memory, uint64_t address, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto known = to_come_.find(memory);
    if (known != to_come_.end()) {
      const auto within = around(known->second, address);
      if (within != known->second.end() && bytes <= within->second - address) {
        cut(known->second, address, address + bytes);
        return;
      }
    }
    throw corrupt("pages came that are not missing, or came before");
  }

  PageSink& sink_;
  WantedPages& wanted_;
  const std::string peer_;
  std::mutex mutex_;
  std::map<MemoryId, Intervals> to_come_, answered_;
  std::set<MemoryId> gone_;
};

namespace {

constexpr std::chrono::milliseconds kTellWaits{200};

FeedWaits waits_of(const WantedStatistics& s) {
  return {.wanted = s.wanted,
          .by_request = s.by_request,
          .by_fill = s.by_fill,
          .waiting = s.waiting,
          .longest_us = static_cast<uint64_t>(s.longest_wait.count()),
          .median_us = s.latencies.quantile_us(0.5),
          .most_us = s.latencies.max_us(),
          .ninety_nine_us = s.latencies.quantile_us(0.99),
          .stalls_us = s.latencies.stalls_us()};
}

uint64_t pages_of(const MissingRuns& missing) {
  uint64_t pages = 0;
  for (const auto& [memory, runs] : missing)
    for (const PageRun& run : runs) pages += run.pages;
  return pages;
}

}  // namespace

PageFetcher::PageFetcher(FeedStreams streams, PageSink& sink, WantedPages& wanted, const MissingRuns& missing, bool all,
                         const FetcherOptions& options)
    : urgent_(std::move(streams.urgent)),
      sink_(sink),
      wanted_(wanted),
      missing_(missing),
      all_(all),
      options_(options) {
  if (!urgent_ || streams.fill.empty()) throw Error("fetch pages: a stream is not connected");
  urgent_->set_stop(&stop_);
  link_ = std::make_unique<FeedLink>(*urgent_, FeedSide::destination, options.silence);
  fill_sink_ = std::make_unique<FillSink>(sink, wanted, missing, urgent_->peer());
  for (const auto& stream : streams.fill) set_up_fill_stream(*stream, SO_RCVBUF);
  receiver_ = std::make_unique<PageReceiver>(
      std::move(streams.fill), *fill_sink_,
      ReceiveLimits{.max_pages = pages_of(missing), .codecs = options.codecs, .zeros = true});
}

PageFetcher::~PageFetcher() = default;

const PageCounters& PageFetcher::fill() const { return receiver_->counters(); }

Corrupt PageFetcher::corrupt(const char* why) const { return {"the feed from " + link_->peer(), why}; }

void PageFetcher::whole() noexcept {
  whole_ = true;
  wanted_.wake();
}

void PageFetcher::cancel() noexcept {
  stop_.trigger();
  receiver_->cancel();
  // At once: a thread of ours may be in the sink for long.
  urgent_->abort();
}

void PageFetcher::fail(std::exception_ptr why) noexcept {
  const std::lock_guard lock(mutex_);
  failure_.note(std::move(why));
  stop_.trigger();
  receiver_->cancel();
}

void PageFetcher::run() {
  std::vector<std::thread> threads;
  const auto start = [&](void (PageFetcher::*work)()) {
    threads.emplace_back([this, work] {
      try {
        (this->*work)();
      } catch (...) {
        fail(std::current_exception());
      }
    });
  };
  try {
    start(&PageFetcher::request);
    start(&PageFetcher::receive_fill);
    receive_answers();
  } catch (const std::system_error& e) {
    fail(std::make_exception_ptr(Error("start a thread", "for missing pages", e.code().value())));
  } catch (...) {
    fail(std::current_exception());
  }
  receiver_->cancel();
  if (!threads.empty()) threads.front().join();  // nobody else sends
  tell_failure();
  for (std::thread& thread : threads)
    if (thread.joinable()) thread.join();
  end_streams();
  if (failure_) failure_.rethrow();
}

/// Before what takes time: threads that are idle ones may be waited for.
void PageFetcher::tell_failure() noexcept {
  urgent_->set_stop(nullptr);
  std::string why;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.is_ours()) return;
    why = failure_.sentence();
  }
  link_->send_failure(why);
}

void PageFetcher::end_streams() {
  if (!failure_) return urgent_->finish();
  if (failure_.is_cut())
    if (auto why = link_->last_words()) failure_.note(why);
  tell_failure();
  urgent_->abort();
}

void PageFetcher::receive_fill() {
  try {
    FillPace pace(options_.idle);
    receiver_->set_around([&](const std::function<void()>& work) {
      const FillPace::Member member(pace);
      work();
    });
    receiver_->receive();
    fill_sink_->check_complete();
    filled_ = true;
  } catch (...) {
    if (!said_whole_) throw;  // else the source need not end it
  }
}

/// Of one memory and one after the other as they were wanted: what waits goes out together.
void PageFetcher::send_wanted() {
  const auto pages = wanted_.take();
  std::vector<uint64_t> addresses;
  std::vector<std::byte> body;
  for (size_t i = 0; i < pages.size();) {
    const MemoryId memory = pages[i].first;
    addresses.clear();
    for (; i < pages.size() && pages[i].first == memory && addresses.size() < kMostRequested; ++i)
      addresses.push_back(pages[i].second);
    body.clear();
    encode_addresses(addresses, body);
    link_->send({.kind = FeedPacket::Kind::request, .memory = memory, .count = static_cast<uint32_t>(addresses.size())},
                body);
  }
}

void PageFetcher::send_missing() {
  const uint64_t pages = pages_of(missing_);
  link_->send({.kind = FeedPacket::Kind::begin, .value = pages, .all = all_});
  if (all_) return;
  std::vector<std::byte> body;
  for (const auto& [memory, runs] : missing_) {
    for (std::span<const PageRun> left(runs); !left.empty();) {
      send_wanted();
      const auto some = left.first(std::min<size_t>(kMostMissingRuns, left.size()));
      body.clear();
      encode_runs(some, body);
      link_->send({.kind = FeedPacket::Kind::missing, .memory = memory, .count = static_cast<uint32_t>(some.size())},
                  body);
      left = left.subspan(some.size());
    }
  }
  link_->send({.kind = FeedPacket::Kind::start, .value = pages});
}

/// Five times a second, if there is news.
void PageFetcher::send_waits(bool last) {
  if (!options_.waits) return;
  const auto now = Clock::now();
  if (!last && now < waits_due_) return;
  waits_due_ = now + kTellWaits;
  const FeedWaits waits = waits_of(wanted_.statistics());
  if (waits == told_waits_) return;
  std::vector<std::byte> body;
  encode_waits(waits, body);
  link_->send({.kind = FeedPacket::Kind::waits, .count = kWaitsWords}, body);
  told_waits_ = waits;
}

Clock::time_point PageFetcher::next_words() const {
  return options_.waits ? std::min(link_->ping_due(), waits_due_) : link_->ping_due();
}

void PageFetcher::request() {
  const Prompt prompt;
  wanted_.ask_again();
  send_missing();
  while (!stop_.stopped()) {
    send_wanted();
    send_waits(whole_);
    note_gone();
    if (whole_) {
      said_whole_ = true;
      return link_->send({.kind = FeedPacket::Kind::whole});
    }
    link_->ping_if_due();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_words() - Clock::now()).count();
    pollfd polls[2] = {{wanted_.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
    if (::poll(polls, 2, static_cast<int>(std::max<int64_t>(left, 0))) < 0 && errno != EINTR)
      throw Error("wait for", "pages that are wanted", errno);
  }
}

void PageFetcher::receive_answers() {
  const Prompt prompt;
  for (;;) {
    const auto packet = link_->receive();
    if (!packet) continue;
    if (packet->kind == FeedPacket::Kind::pages) {
      take_answer(*packet);
      continue;
    }
    if (packet->kind == FeedPacket::Kind::gone) {
      take_gone(packet->memory);
      continue;
    }
    if (!said_whole_) throw corrupt("it says that it is done while pages are missing");
    if (packet->value != answered_) throw corrupt("it has sent another number of pages than came");
    return;
  }
}

void PageFetcher::take_gone(MemoryId memory) {
  // What was asked for may be missing no more: who waited for it has ended.
  if (!options_.gone || (!missing_.contains(memory) && !wanted_.wants(memory)))
    throw corrupt("it says that a memory is gone of which nothing is missing");
  if (!fill_sink_->gone(memory)) throw corrupt("it says twice that a memory is gone");
  // First: what is wanted from here on is given up, and not waited for.
  options_.gone(memory);
  wanted_.never(memory);
  {
    const std::lock_guard lock(mutex_);
    to_note_.push_back(memory);
  }
  wanted_.wake();
}

/// One thread sends.
void PageFetcher::note_gone() {
  std::vector<MemoryId> memories;
  {
    const std::lock_guard lock(mutex_);
    memories.swap(to_note_);
  }
  for (const MemoryId memory : memories) link_->send({.kind = FeedPacket::Kind::gone, .memory = memory});
}

void PageFetcher::take_answer(const FeedPacket& packet) {
  if (!wanted_.are_asked_for(packet.memory, packet.value, packet.count))
    throw corrupt("pages came that nobody has asked for");
  answer_.resize(body_size(packet));
  link_->receive_body(answer_);
  const auto began = Clock::now();
  sink_.write(packet.memory, packet.value, answer_);
  fill_sink_->answered(packet.memory, packet.value, answer_.size());
  wanted_.answered(packet.memory, packet.value, packet.count, began);
  answered_ += packet.count;
}

}  // namespace migrate
