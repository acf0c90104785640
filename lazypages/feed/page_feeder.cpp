#include "lazypages/feed/page_feeder.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include "lazypages/feed/feed_link.h"
#include "lazypages/feed/pace.h"
#include "lazypages/idle.h"
#include "pageserver/copying.h"
#include "pageserver/page_reader.h"
#include "pageserver/record_writer.h"

namespace migrate {
namespace {

/// Fewer pages of zeros are not worth a record, which goes out by itself.
constexpr size_t kLeastZeros = 4;
/// Answers go out when they fill a TLS record: the first is not to wait for many others.
constexpr size_t kAnswerPages = 3;
/// Requests that an honest destination can have: a bound against floods. What a waiting fork has kept from its task is
/// asked for again, as long as programs fork.
constexpr uint64_t kMostAsked = 8, kSomeMore = 1024, kMoreASecond = 4096;

}  // namespace

struct PageFeeder::Memory {
  explicit Memory(const PageSource& source) : reader(source) {
    for (const PageRun& run : source.runs) add(announced, run.address, run.address + run.pages * kPageSize);
  }
  PageReader reader;
  Intervals announced;
};

PageFeeder::PageFeeder(FeedStreams streams, std::span<const PageSource> sources, const std::vector<RankedRun>& order,
                       const FeederOptions& options)
    : streams_(std::move(streams)),
      options_(options),
      shared_(new SendShared{.counters = counters_.fill, .stop = fill_stop_}),
      filled_(streams_.fill.size(), false) {
  if (!streams_.urgent || streams_.fill.empty()) throw Error("feed pages: a stream is not connected");
  shared_->limiter.set_rate(options.bandwidth_limit);
  // What is being sent cannot be overtaken by what comes next: it is to be through soon.
  if (options.bandwidth_limit != 0)
    batch_pages_ = std::clamp<uint64_t>(options.bandwidth_limit / 20 / kPageSize, 1, kBatchPages);
  shared_->chooser.configure(options.compression, options.codecs);
  for (auto& stream : streams_.fill) {
    stream->set_stop(&fill_stop_);
    set_up_fill_stream(*stream, SO_SNDBUF);
    writers_.push_back(std::make_unique<RecordWriter>(*stream, *shared_));
  }
  streams_.urgent->set_stop(&stop_);
  link_ = std::make_unique<FeedLink>(*streams_.urgent, FeedSide::source, options.silence);

  std::map<MemoryId, Intervals> rest;
  for (const PageSource& source : sources) {
    announced_ += source.pages();
    rest[source.memory] = memories_.try_emplace(source.memory, source).first->second.announced;
  }
  std::vector<RankedRun> runs;
  const auto take = [&](MemoryId memory, Intervals& from, const PageRun& run, uint64_t rank) {
    for (const auto& [start, end] : cut(from, run.address, run.address + run.pages * kPageSize))
      runs.push_back({memory, {start, (end - start) / kPageSize}, rank});
  };
  for (const RankedRun& r : order)
    if (const auto from = rest.find(r.memory); from != rest.end()) take(r.memory, from->second, r.run, r.rank);
  for (const PageSource& source : sources)
    for (const PageRun& run : source.runs) take(source.memory, rest[source.memory], run, 0);
  order_ = FillOrder(std::move(runs));
}

PageFeeder::~PageFeeder() = default;

void PageFeeder::cancel() noexcept {
  stop_.trigger();
  fill_stop_.trigger();
}

void PageFeeder::fail(std::exception_ptr why) noexcept {
  const std::lock_guard lock(mutex_);
  if (whole_) return;  // what ends now was not needed
  failure_.note(std::move(why));
  cancel();
}

void PageFeeder::run() {
  try {
    serve();
  } catch (...) {
    fail(std::current_exception());
  }
  fill_stop_.trigger();
  tell_failure();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  pace_.reset();
  end_streams();
  if (failure_) failure_.rethrow();
}

/// Before what takes time: threads that are idle ones may be waited for.
void PageFeeder::tell_failure() noexcept {
  streams_.urgent->set_stop(nullptr);
  std::string why;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.is_ours()) return;
    why = failure_.sentence();
  }
  link_->send_failure(why);
}

void PageFeeder::end_streams() {
  for (auto& stream : streams_.fill) stream->set_stop(nullptr);
  if (failure_) {
    if (failure_.is_cut())
      if (auto why = link_->last_words()) failure_.note(why);
    tell_failure();
    streams_.urgent->abort();
    for (auto& stream : streams_.fill) stream->abort();
    return;
  }
  // A stream that was stopped in the middle of a record can say nothing any more, and need not.
  for (size_t i = 0; i < streams_.fill.size(); ++i) filled_[i] ? streams_.fill[i]->finish() : streams_.fill[i]->abort();
  streams_.urgent->finish();
}

Corrupt PageFeeder::corrupt(const char* why) const { return {"the feed from " + link_->peer(), why}; }

std::span<std::byte> PageFeeder::receive_body(const FeedPacket& packet) {
  body_.resize(body_size(packet));
  link_->receive_body(body_);
  return body_;
}

void PageFeeder::serve() {
  const Prompt prompt;
  link_->begin();
  for (;;) {
    link_->ping_if_due();
    const bool heard = link_->wait(link_->ping_due(), stop_, gone_.fd());
    tell_gone();
    if (!heard) continue;
    const auto packet = link_->receive();
    if (!packet) continue;
    if ((packet->kind == FeedPacket::Kind::begin) != (stage_ == Stage::new_))
      throw corrupt("it does not begin with its beginning, or begins twice");
    switch (packet->kind) {
      case FeedPacket::Kind::begin:
        begin(*packet);
        break;
      case FeedPacket::Kind::missing:
        take_missing(*packet);
        break;
      case FeedPacket::Kind::start:
        end_of_list(packet->value);
        break;
      case FeedPacket::Kind::request:
        answer(*packet);
        break;
      case FeedPacket::Kind::waits:
        take_waits(*packet);
        break;
      case FeedPacket::Kind::gone:
        if (!gone_.noted(packet->memory)) throw corrupt("it takes note of an end that it was not told of");
        break;
      default:  // whole: the only one that is left
        return end_whole();
    }
  }
}

void PageFeeder::end_whole() {
  {
    const std::lock_guard lock(mutex_);
    whole_ = true;
  }
  link_->send({.kind = FeedPacket::Kind::done, .value = counters_.requested});
}

void PageFeeder::begin(const FeedPacket& packet) {
  if (packet.value > announced_ && options_.most_gone == 0) throw corrupt("it misses more pages than were announced");
  if (packet.all && packet.value != announced_)
    throw corrupt("it says that it misses all that was announced, and means another number of pages");
  missing_ = packet.value;
  stage_ = Stage::begun;
  if (packet.all) start_fill();
}

bool PageFeeder::is_announced(MemoryId memory, uint64_t address, uint64_t pages) const {
  const auto known = memories_.find(memory);
  if (known == memories_.end()) return false;
  const auto within = around(known->second.announced, address);
  return within != known->second.announced.end() && pages <= (within->second - address) / kPageSize;
}

/// The destination has what its list has left out: from where that had come to, up to this place.
void PageFeeder::leave_out_until(MemoryId memory, uint64_t address) {
  const auto leave_out = [&](MemoryId of, uint64_t end) {
    const uint64_t start = of == listing_ ? listed_until_ : 0;
    if (start < end) order_.leave_out(of, start, end - start);
  };
  for (auto m = memories_.lower_bound(listing_); m != memories_.end() && m->first < memory; ++m)
    leave_out(m->first, kMaxPageAddress);
  leave_out(memory, address);
}

void PageFeeder::take_missing(const FeedPacket& packet) {
  if (stage_ != Stage::begun) throw corrupt("it lists missing pages after their end");
  const auto runs = decode_runs(receive_body(packet), link_->peer());
  if (packet.memory < listing_ || (packet.memory == listing_ && runs.front().address < listed_until_))
    throw corrupt("missing pages are not listed in order");
  const bool gone = is_gone(packet.memory);
  const std::lock_guard lock(mutex_);
  for (const PageRun& run : runs) {
    const bool unknown = gone && !memories_.contains(packet.memory);
    if (!unknown && !is_announced(packet.memory, run.address, run.pages))
      throw corrupt("it misses pages that were never announced");
    if (run.pages > missing_ - listed_) throw corrupt("it lists more missing pages than it said");
    listed_ += run.pages;
    if (unknown) gone_.add(packet.memory, run.pages);
    leave_out_until(packet.memory, run.address);
    listing_ = packet.memory;
    listed_until_ = run.address + run.pages * kPageSize;
  }
}

void PageFeeder::take_waits(const FeedPacket& packet) {
  const FeedWaits waits = decode_waits(receive_body(packet));
  const std::lock_guard lock(mutex_);
  waits_ = waits;
}

FeedWaits PageFeeder::waits() const {
  const std::lock_guard lock(mutex_);
  return waits_;
}

void PageFeeder::end_of_list(uint64_t pages) {
  if (stage_ != Stage::begun) throw corrupt("it starts the fill twice");
  if (pages != missing_ || listed_ != missing_) throw corrupt("it lists another number of missing pages than it said");
  if (!memories_.empty()) {
    const std::lock_guard lock(mutex_);
    leave_out_until(std::max(listing_, memories_.rbegin()->first), kMaxPageAddress);
  }
  count_gone();
  start_fill();
}

void PageFeeder::start_fill() {
  stage_ = Stage::started;
  pace_ = std::make_unique<FillPace>(options_.idle);
  try {
    for (size_t i = 0; i < streams_.fill.size(); ++i)
      threads_.emplace_back([this, i] {
        try {
          fill(i);
        } catch (...) {
          fail(std::current_exception());
        }
      });
  } catch (const std::system_error& e) {
    throw Error("start a thread", "for missing pages", e.code().value());
  }
}

void PageFeeder::answer(const FeedPacket& packet) {
  const auto seconds = std::chrono::ceil<std::chrono::seconds>(std::chrono::steady_clock::now() - began_).count();
  asked_ += packet.count;
  if (asked_ > announced_ * kMostAsked + kSomeMore + static_cast<uint64_t>(seconds) * kMoreASecond)
    throw corrupt("it asks for more pages than it can miss");
  const auto addresses = decode_addresses(receive_body(packet), link_->peer());
  if (is_gone(packet.memory)) return;
  for (const uint64_t address : addresses)
    if (!is_announced(packet.memory, address, 1)) throw corrupt("it asks for pages that were never announced");
  send_answers(packet, addresses);
  if (gone_.contains(packet.memory)) return;
  // Not before: it waits for the lock.
  const std::lock_guard lock(mutex_);
  for (const uint64_t address : addresses) order_.faulted(packet.memory, address);
}

void PageFeeder::send_answers(const FeedPacket& packet, std::span<const uint64_t> addresses) {
  const PageReader& reader = memories_.at(packet.memory).reader;
  answer_.resize(kAnswerPages * (kFeedPacketSize + kPageSize));
  while (!addresses.empty()) {
    const auto some = addresses.first(std::min(kAnswerPages, addresses.size()));
    const auto page = [&](size_t i) {
      return std::span(answer_).subspan(i * (kFeedPacketSize + kPageSize) + kFeedPacketSize, kPageSize);
    };
    for (size_t i = 0; i < some.size(); ++i)
      if (!reader.read(some[i], page(i))) return note_gone(packet.memory, 0);
    for (size_t i = 0; i < some.size(); ++i)
      link_->put_header({.kind = FeedPacket::Kind::pages, .memory = packet.memory, .count = 1, .value = some[i]},
                        page(i));
    link_->write(std::span(answer_).first(some.size() * (kFeedPacketSize + kPageSize)));
    counters_.requested += some.size();
    addresses = addresses.subspan(some.size());
  }
}

/// Nothing of it is sent any more.
bool PageFeeder::is_gone(MemoryId memory) {
  if (gone_.contains(memory)) return true;
  if (options_.most_gone == 0 || memories_.contains(memory)) return false;
  if (unknown_ == options_.most_gone) throw corrupt("it misses pages of more memories than there can be");
  ++unknown_;
  gone_.add(memory, 0);
  return true;
}

/// `pages`: of what order_ has given out.
void PageFeeder::note_gone(MemoryId memory, uint64_t pages) {
  if (!options_.some_live()) throw Error("pages of " + name_of(memory) + " are lost: the frozen tree has ended here");
  if (!options_.tells_gone)
    throw Error("pages of " + name_of(memory) +
                " are lost: it has ended here, and the destination does not know what that means");
  gone_.add(memory, pages);
  // Before that it is not known what is missing of it.
  if (stage_ == Stage::started) count_gone();
}

void PageFeeder::count_gone() {
  const std::lock_guard lock(mutex_);
  for (const auto& [memory, pages] : gone_.pages()) {
    const uint64_t before = order_.pages_left();
    order_.leave_out(memory, 0, kMaxPageAddress);
    if (before != order_.pages_left()) gone_.add(memory, before - order_.pages_left());
  }
}

void PageFeeder::tell_gone() {
  for (const MemoryId memory : gone_.take()) link_->send({.kind = FeedPacket::Kind::gone, .memory = memory});
}

/// Before a fill stream ends: it lacks pages that the destination must not wait for then.
void PageFeeder::wait_until_noted() const {
  pollfd stopped{fill_stop_.fd(), POLLIN, 0};
  while (!gone_.all_noted() && ::poll(&stopped, 1, 20) == 0) {
  }
}

/// What to read next, some pages in all. False: there is nothing left.
bool PageFeeder::next_pieces(std::vector<FillPiece>& pieces) {
  pieces.clear();
  uint64_t room = batch_pages_ * kPageSize;
  const OutOfIdle awake;
  const std::lock_guard lock(mutex_);
  while (room > 0) {
    const auto piece = order_.next(room);
    if (!piece) break;
    pieces.push_back(*piece);
    room -= piece->bytes;
  }
  return !pieces.empty();
}

/// Contents that lie in `pages`, and runs of zeros without contents.
void PageFeeder::send_piece(RecordWriter& writer, const FillPiece& piece, std::span<std::byte> pages) {
  const size_t count = pages.size() / kPageSize;
  const auto zero = [&](size_t i) { return is_zero_page(pages.data() + i * kPageSize); };
  size_t sent = 0;
  for (size_t i = 0; i < count;) {
    size_t end = i;
    while (end < count && zero(end)) ++end;
    if (end - i < kLeastZeros) {
      i = end + 1;
      continue;
    }
    if (sent < i)
      writer.send(piece.memory, piece.address + sent * kPageSize,
                  pages.subspan(sent * kPageSize, (i - sent) * kPageSize));
    writer.send_zeros(piece.memory, piece.address + i * kPageSize, static_cast<uint32_t>(end - i));
    sent = i = end;
  }
  if (sent < count) writer.send(piece.memory, piece.address + sent * kPageSize, pages.subspan(sent * kPageSize));
}

void PageFeeder::fill(size_t index) {
  const FillPace::Member member(*pace_);
  RecordWriter& writer = *writers_[index];
  writer.begin_pass();
  // Pages of the first run are aligned, which makes reading a long one cheaper.
  PageBuffer buffer(kPageSize + (kPageSize + kPageRecordSize) * kBatchPages);
  std::vector<FillPiece> pieces;
  while (next_pieces(pieces)) {
    std::byte* at = buffer.data() + kPageSize;
    for (const FillPiece& piece : pieces) {
      const std::span<std::byte> pages(at, piece.bytes);
      if (memories_.at(piece.memory).reader.read(piece.address, pages)) {
        send_piece(writer, piece, pages);
      } else {
        note_gone(piece.memory, piece.bytes / kPageSize);
      }
      at += piece.bytes + kPageRecordSize;
    }
    writer.flush();
  }
  wait_until_noted();
  writer.finish_pass();
  const OutOfIdle awake;  // others wait for the lock
  const std::lock_guard lock(mutex_);
  filled_[index] = true;
}

uint64_t PageFeeder::pages_left() const {
  const std::lock_guard lock(mutex_);
  return order_.pages_left();
}

CodecChoice PageFeeder::codec() const { return shared_->chooser.current(); }

std::vector<CodecChange> PageFeeder::take_codec_changes() { return shared_->chooser.take_changes(); }

}  // namespace migrate
