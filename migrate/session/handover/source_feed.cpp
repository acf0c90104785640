#include "migrate/session/handover/source_feed.h"

#include <fcntl.h>
#include <poll.h>

#include <map>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/memory/tree_survey.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/session_streams.h"
#include "pageserver/run_beside.h"

namespace migrate {
namespace {

using wire::Message;

constexpr int kBeat = 200;       // ms
constexpr int kFeedStreams = 2;  // what is asked for, and the fill

}  // namespace

bool SourceFeed::connect(ControlChannel& channel) {
  next_ = {};
  streams_.reset();
  Message message;
  message.mutable_feed()->set_streams(static_cast<uint32_t>(kFeedStreams));
  message.mutable_feed()->set_page_codecs(to_wire(parts_.options.codecs));
  channel.send(std::move(message));
  const Message reply = channel.receive(Deadline::in(parts_.timeouts.answer));
  if (reply.body_case() == Message::kWhole) return false;
  if (reply.body_case() != Message::kFeeding || reply.feeding().stream_tokens_size() != kFeedStreams)
    throw Corrupt("a message of the peer", "it is out of turn");
  SessionStreams streams =
      connect_session_streams(parts_.connector, parse_host_port(parts_.address), parts_.session,
                              reply.feeding().stream_tokens(), kFeedStreams, parts_.timeouts.connect, nullptr);
  streams_ = FeedStreams::of(std::move(streams));
  return true;
}

void SourceFeed::prepare(std::span<const PageSource> late) {
  next_ = std::async(std::launch::async, [streams = std::move(*streams_), late, this]() mutable {
    const auto order = parts_.order ? parts_.order(late) : std::vector<RankedRun>();
    return std::make_unique<PageFeeder>(std::move(streams), late, order, parts_.options);
  });
  streams_.reset();
}

void SourceFeed::feed(ControlChannel& channel, std::span<const PageSource> late, const std::function<void()>& beat) {
  if (!next_.valid()) prepare(late);
  const std::unique_ptr<PageFeeder> prepared = next_.get();
  PageFeeder& feeder = *prepared;
  const std::exception_ptr failure = run_beside(
      [&] { feeder.run(); },
      [&](int wake) {
        pollfd p{wake, POLLIN, 0};
        ::poll(&p, 1, kBeat);
        beat();
        const auto left = static_cast<int64_t>(feeder.pages_left() * kPageSize);
        parts_.events.progress("progress", "feeding: " + human_bytes(feeder.pages_left() * kPageSize) + " left",
                               {{"phase", std::string("feed")},
                                {"left", left},
                                {"requested", static_cast<int64_t>(feeder.counters().requested)}});
      },
      [&] { feeder.cancel(); });
  pushed_ += feeder.counters().fill.pages;
  requested_ += feeder.counters().requested;
  if (failure) std::rethrow_exception(failure);
  channel.expect(Message::kWhole, Deadline::in(parts_.timeouts.answer));
}

std::vector<PageSource> pages_of_held_tree(const JournalEntry& entry) {
  std::map<MemoryId, PageSource> sources;
  for (const TaskId& task : entry.tasks) {
    if (!task.lives()) continue;
    const ProcDir proc(task.pid);
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(innermost(proc.status().at("NSpid")))};
    PageSource& source = sources[memory];
    source.memory = memory;
    source.fd = open_path("/proc/" + std::to_string(task.pid) + "/mem", O_RDONLY);
  }
  if (sources.empty())
    throw Error("the tree that session " + to_hex(entry.id) + " held frozen is gone, and pages with it");
  const TreeSurvey survey = survey_tree(Pid(entry.tasks.front().pid), *MappingReader::shared());
  std::vector<PageSource> all;
  for (const PageReserve& run : survey.pages)
    if (const auto source = sources.find(run.memory); source != sources.end())
      source->second.runs.push_back({.address = run.address, .pages = run.pages});
  for (auto& [memory, source] : sources) all.push_back(std::move(source));
  return all;
}

void feed_from_held_tree(const JournalEntry& entry, const FeedParts& parts) {
  const std::vector<PageSource> pages = pages_of_held_tree(entry);
  const std::unique_ptr<ControlChannel> channel =
      connect_about(parts.connector, parts.address, parts.timeouts, entry.id, entry.epoch);
  SourceFeed feed(parts);
  if (!feed.connect(*channel)) return;
  parts.events.event("feed", "session " + to_hex(entry.id) + ": " + entry.label + " is fed from its frozen tree here",
                     {{"session", to_hex(entry.id)}});
  feed.feed(*channel, pages, [] {});
}

}  // namespace migrate
