#include "migrate/session/handover/source_feed.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

#include "core/base/procfs.h"
#include "core/memory/track_objects.h"
#include "core/memory/track_tree.h"
#include "core/memory/tree_survey.h"
#include "migrate/report/svg.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/session_streams.h"
#include "pageserver/run_beside.h"

namespace migrate {
namespace {

using wire::Message;

constexpr int kBeat = 200;  // ms

/// What the peer says may be any number.
int64_t field(uint64_t value) { return static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)); }

double ms_of(uint64_t us) { return static_cast<double>(us) / 1000; }
double seconds(uint64_t us) { return static_cast<double>(us) / 1e6; }

/// Memories that tasks may have taken with them: their own, and objects that nobody else has mapped.
size_t most_gone(const JournalEntry& entry) {
  constexpr size_t kObjects = 1000;
  const auto gone = std::ranges::count_if(entry.tasks, [](const TaskId& task) { return !task.lives(); });
  return gone == 0 ? 0 : static_cast<size_t>(gone) + kObjects;
}

/// Subtrees, if tasks were killed in between. The root is the first of the journal's.
std::vector<LivingTask> living_of(const JournalEntry& entry) {
  std::vector<LivingTask> all;
  for (const TaskId& task : entry.tasks) {
    if (!task.lives() || std::ranges::find(all, task.pid, &LivingTask::pid) != all.end()) continue;
    std::ranges::copy(list_living(Pid(task.pid)), std::back_inserter(all));
  }
  return all;
}

/// For the time of a feed.
class Feeding {
 public:
  Feeding(PageFeeder*& current, PageFeeder& feeder) : current_(current) { current_ = &feeder; }
  Feeding(const Feeding&) = delete;
  Feeding& operator=(const Feeding&) = delete;
  ~Feeding() { current_ = nullptr; }

 private:
  PageFeeder*& current_;
};

}  // namespace

bool SourceFeed::connect(ControlChannel& channel) {
  next_ = {};
  streams_.reset();
  const int count = 1 + parts_.streams;  // what is asked for, and the fill
  Message message;
  message.mutable_feed()->set_streams(static_cast<uint32_t>(count));
  message.mutable_feed()->set_page_codecs(to_wire(parts_.options.codecs));
  message.mutable_feed()->set_waits(true);
  channel.send(std::move(message));
  const Message reply = channel.receive(Deadline::in(parts_.timeouts.answer));
  if (reply.body_case() == Message::kWhole) {
    given_up_ = reply.whole().given_up();
    return false;
  }
  if (reply.body_case() == Message::kAbort) throw Error("the destination cannot take it: " + reply.abort().reason());
  if (reply.body_case() != Message::kFeeding || reply.feeding().stream_tokens_size() != count)
    throw Corrupt("a message of the peer", "it is out of turn");
  tells_waits_ = reply.feeding().waits();
  knows_gone_ = reply.feeding().gone();
  SessionStreams streams =
      connect_session_streams(parts_.connector, parse_host_port(parts_.address), parts_.session,
                              reply.feeding().stream_tokens(), count, parts_.timeouts.connect, nullptr);
  streams_ = FeedStreams::of(std::move(streams));
  return true;
}

void SourceFeed::prepare(std::span<const PageSource> late) {
  next_ = std::async(std::launch::async, [streams = std::move(*streams_), late, this]() mutable {
    const auto order = parts_.order ? parts_.order(late) : std::vector<RankedRun>();
    FeederOptions options = parts_.options;
    options.tells_gone = knows_gone_;
    if (parts_.some_live) options.some_live = parts_.some_live;
    return std::make_unique<PageFeeder>(std::move(streams), late, order, options);
  });
  streams_.reset();
}

void SourceFeed::feed(ControlChannel& channel, std::span<const PageSource> late, const std::function<void()>& beat) {
  if (!next_.valid()) prepare(late);
  const std::unique_ptr<PageFeeder> prepared = next_.get();
  PageFeeder& feeder = *prepared;
  const Feeding feeding(feeding_, feeder);
  const std::exception_ptr failure = run_beside(
      [&] { feeder.run(); },
      [&](int wake) {
        pollfd p{wake, POLLIN, 0};
        const bool over = ::poll(&p, 1, kBeat) > 0;
        left_ = feeder.pages_left();
        if (!over) beat();
        note_waits(feeder.waits());
        note_gone(feeder);
        const FeedWaits all = waits();
        parts_.events.progress("progress", "feeding: " + human_bytes(left_ * kPageSize) + " left",
                               {{"phase", std::string("feed")},
                                {"left", static_cast<int64_t>(left_ * kPageSize)},
                                {"requested", static_cast<int64_t>(requested_ + feeder.counters().requested)},
                                {"waited_for", field(all.wanted)},
                                {"waiting", field(all.waiting)},
                                {"stalls_ms", ms_of(all.stalls_us)}});
      },
      [&] { feeder.cancel(); });
  left_ = feeder.pages_left();
  note_waits(feeder.waits());
  note_gone(feeder);
  pushed_ += feeder.counters().fill.pages;
  requested_ += feeder.counters().requested;
  if (failure) std::rethrow_exception(failure);
  try {
    given_up_ = channel.expect(Message::kWhole, Deadline::in(parts_.timeouts.answer)).whole().given_up();
  } catch (const Disconnected&) {
    throw Disconnected("all pages are there, and the receiver at " + parts_.address + " ended before it said so");
  }
}

void SourceFeed::tell_why_it_ends(const std::string& why) {
  if (feeding_ != nullptr) feeding_->leave(why);
}

void SourceFeed::note_waits(const FeedWaits& now) {
  // A new connection, over which nothing was told yet; not another process there.
  if (now.wanted == 0) return;
  if (now.wanted < waits_.wanted) waits_before_ = waits();  // another process serves there
  waits_ = now;
}

void SourceFeed::note_gone(const PageFeeder& feeder) {
  constexpr size_t kTold = 20;
  for (const auto& [memory, pages] : feeder.gone()) {
    if (!gone_.contains(memory) && gone_.size() < kTold)
      parts_.events.event("gone",
                          "session " + to_hex(parts_.session) + ": " + name_of(memory) +
                              " of the frozen tree was killed here before the destination had all of it: who "
                              "touches what is missing of it there gets SIGBUS",
                          {{"session", to_hex(parts_.session)}, {"memory", name_of(memory)}});
    gone_[memory] = std::max(gone_[memory], pages);
  }
}

/// Of what was gone here nothing may have been missing there.
uint64_t SourceFeed::pages_gone() const {
  uint64_t pages = 0;
  for (const auto& [memory, of_it] : gone_) pages += of_it;
  return given_up_.empty() ? 0 : pages;
}

std::string SourceFeed::gone_text() const {
  const uint64_t pages = pages_gone();
  return but_for(given_up_) + (pages == 0 ? "" : " (" + human_bytes(pages * kPageSize) + " at least)");
}

FeedWaits SourceFeed::waits() const {
  FeedWaits all = waits_;
  all.wanted += waits_before_.wanted;
  all.by_request += waits_before_.by_request;
  all.by_fill += waits_before_.by_fill;
  all.stalls_us += waits_before_.stalls_us;
  all.most_us = std::max(all.most_us, waits_before_.most_us);
  return all;
}

std::string SourceFeed::waits_text() const {
  const FeedWaits all = waits();
  if (!tells_waits_) return "it does not tell for how long pages were waited for";
  if (all.wanted == 0) return "nobody waited for a page";
  return std::to_string(all.wanted) + " waited for, half of them for " + short_seconds(seconds(all.median_us)) +
         " at most, 99 % for " + short_seconds(seconds(all.ninety_nine_us)) + ", the longest for " +
         short_seconds(seconds(all.most_us));
}

EventFields SourceFeed::waits_fields() const {
  const FeedWaits all = waits();
  return {{"waited_for", field(all.wanted)},         {"waited_until_answer", field(all.by_request)},
          {"waited_until_fill", field(all.by_fill)}, {"wait_median_us", field(all.median_us)},
          {"wait_99_us", field(all.ninety_nine_us)}, {"wait_longest_us", field(all.most_us)},
          {"stalls_ms", ms_of(all.stalls_us)}};
}

bool some_live(const JournalEntry& entry) { return !living_of(entry).empty(); }

FeederOptions feeder_options(const FeedSettings& settings) {
  return {.compression = settings.compression, .codecs = settings.codecs, .bandwidth_limit = settings.bandwidth_limit};
}

int fill_streams(int streams) { return std::clamp<int>(streams, 1, kMaxPageStreams - 1); }

std::vector<PageSource> pages_of_held_tree(const JournalEntry& entry) {
  std::map<MemoryId, PageSource> sources;
  std::vector<LivingTask> living = living_of(entry);
  for (const LivingTask& task : living) {
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(task.image_pid)};
    PageSource& source = sources[memory];
    source.memory = memory;
    source.fd = open_path("/proc/" + std::to_string(task.pid) + "/mem", O_RDONLY);
  }
  if (sources.empty())
    throw Error("the tree that session " + to_hex(entry.id) + " held frozen is gone, and pages with it");
  const TreeSurvey survey = survey_tasks(living, *MappingReader::shared());
  // Of one that has ended meanwhile not all was seen.
  std::vector<PageSource> all;
  all.reserve(sources.size());
  living = living_of(entry);
  std::erase_if(sources, [&](const auto& source) {
    return std::ranges::none_of(
        living, [&](const LivingTask& task) { return static_cast<uint64_t>(task.image_pid) == source.first.id; });
  });
  for (const PageReserve& run : survey.pages)
    if (const auto source = sources.find(run.memory); source != sources.end())
      source->second.runs.push_back({.address = run.address, .pages = run.pages});
  for (auto& [memory, source] : sources) all.push_back(std::move(source));
  for (LivingObject& object : find_shared_objects(living)) {
    if (object.memfd || object.segment) continue;
    // All of it: a page that was read and never written may be gone by now, and is waited for there all the same.
    all.push_back({.memory = {MemoryId::Kind::shmem, object.id},
                   .runs = {{.address = 0, .pages = object.bytes / kPageSize}},
                   .fd = std::move(object.fd)});
  }
  return all;
}

void feed_from_held_tree(const JournalEntry& entry, const FeedParts& parts) {
  const std::vector<PageSource> pages = pages_of_held_tree(entry);
  const std::unique_ptr<ControlChannel> channel =
      connect_about(parts.connector, parts.address, parts.timeouts, entry.id, entry.epoch);
  FeedParts as_agreed = parts;
  if (entry.feed) {
    as_agreed.options = feeder_options(*entry.feed);
    as_agreed.streams = entry.feed->streams;
  }
  as_agreed.options.most_gone = most_gone(entry);
  as_agreed.some_live = [&entry] { return some_live(entry); };
  SourceFeed feed(std::move(as_agreed));
  if (!feed.connect(*channel)) return;
  parts.events.event("feed", "session " + to_hex(entry.id) + ": " + entry.label + " is fed from its frozen tree here",
                     {{"session", to_hex(entry.id)}});
  feed.feed(*channel, pages, [] {});
}

}  // namespace migrate
