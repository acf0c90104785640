#include "migrate/session/source/postcopy.h"

#include <algorithm>
#include <utility>

#include "core/memory/page_runs.h"
#include "core/memory/tree_survey.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/missing_wire.h"

namespace migrate {

using std::chrono::milliseconds;
using wire::Message;

namespace {

constexpr milliseconds kFirstPause{50}, kLongestPause{5'000};

}  // namespace

Postcopy::Postcopy(const PlanParts& parts, std::unique_ptr<MemoryPlan> before, When when)
    : p_(parts), before_(std::move(before)), when_(when), pause_(kFirstPause) {}

FeedParts Postcopy::feed_parts() const {
  return {.connector = p_.peer.connector(),
          .address = p_.options.address,
          .session = p_.hold.id(),
          .timeouts = p_.options.timeouts,
          .options = feeder_options({.bandwidth_limit = p_.options.bandwidth_limit,
                                     .compression = p_.options.compress,
                                     .codecs = p_.peer.codecs()}),
          .streams = fill_streams(p_.options.streams),
          .events = p_.events,
          .some_live =
              [this] {
                const std::optional<JournalEntry> entry = p_.hold.entry();
                return entry && some_live(*entry);
              },
          .order =
              [this](std::span<const PageSource> late) {
                return before_ ? before_->fill_order(late) : std::vector<RankedRun>();
              }};
}

void Postcopy::while_running() {
  // While nobody waits: when the program runs there its first fault is answered at once.
  feed_.emplace(feed_parts());
  if (!feed_->connect(p_.peer.channel())) throw Corrupt("a message of the peer", "it is out of turn");
  if (before_) return before_->while_running();
  p_.peer.send_layout(survey_tree(p_.target, *p_.dump.mappings).layout, 0);
  p_.peer.wait_for(Message::kLayoutReady, p_.options.timeouts.restore);
}

void Postcopy::frozen(FrozenTree& tree) {
  if (before_) before_->frozen(tree);
  const bool late_pages = when_ == When::always || before_->leaves_rest();
  PagesByMemory missing;
  for (PageSource& memory : tree.memories) {
    if (!late_pages) break;
    const auto lazy = tree.lazy_pages.find(memory.memory);
    if (lazy == tree.lazy_pages.end()) continue;
    if (memory.memory.kind == MemoryId::Kind::shmem && !p_.peer.offers("lazy-shared")) continue;
    PageSet late = pages_of(memory.runs) & lazy->second;
    if (late.empty()) continue;
    late_.push_back({.memory = memory.memory, .runs = runs_of(late, {}), .fd = memory.fd.dup()});
    memory.runs = runs_without(memory.runs, late);
    missing.emplace(memory.memory, std::move(late));
  }
  if (before_) {
    // What came of them in rounds is out of date. Shared memory's is found out there, where it is not seen.
    PagesByMemory stale = missing;
    std::erase_if(stale, [](const auto& one) { return one.first.kind == MemoryId::Kind::shmem; });
    for (wire::Discards& part : to_wire(stale)) {
      Message message;
      *message.mutable_discards() = std::move(part);
      message.mutable_discards()->clear_last();
      p_.peer.channel().send(std::move(message));
    }
  }
  for (wire::Discards& part : to_wire(missing)) {
    Message message;
    *message.mutable_missing() = std::move(part);
    p_.peer.channel().send(std::move(message));
  }
}

void Postcopy::room_made(const wire::FillReady& ready, std::vector<PageSource>& memories) {
  // What it takes to feed many scattered pages is not to be waited for when the program runs there.
  if (!late_.empty()) feed_->prepare(late_);
  if (!before_ || ready.cold().empty()) return;
  before_->room_made(ready, memories);
  for (const PageSource& late : late_) {
    const auto memory = std::ranges::find(memories, late.memory, &PageSource::memory);
    memory->runs = runs_without(memory->runs, pages_of(late.runs));
  }
}

void Postcopy::after_gate() {
  const Clock::time_point began = Clock::now();
  for (const PageSource& source : late_) left_ += source.pages();
  if (left_ > 0)
    p_.events.event("switch",
                    "it runs there; " + human_bytes(left_ * kPageSize) + " of its memory are still here, and follow",
                    {{"pages", static_cast<int64_t>(left_)}});
  fault_point("source-agent.feeding");
  while (!serve_once()) {
  }
  tell_end(began);
}

/// One connection's time, or an attempt to have one; true when the destination is whole.
bool Postcopy::serve_once() {
  try {
    if (!feed_->connected() && !feed_->connect(p_.peer.channel())) return true;
    if (std::exchange(cut_, false))
      p_.events.event("joined", "connected again; " + human_bytes(left_ * kPageSize) + " are still here",
                      {{"pages", static_cast<int64_t>(left_)}});
    feed_->feed(p_.peer.channel(), late_, [this] { beat(); });
    return true;
  } catch (const Refusal&) {
    throw;  // the destination wants no pages any more
  } catch (const FeedLeft&) {
    throw;
  } catch (const Error& e) {
    if (!p_.hold.tree_lives())
      throw Error("the frozen tree was killed before the destination had all of it: " + std::string(e.what()));
    p_.events.event("cut", std::string("the feed was cut: ") + e.what() + "; trying to connect again");
    const bool bounded = p_.options.recover_timeout.count() > 0;
    if (!std::exchange(cut_, true) && bounded) recover_by_ = Deadline::in(p_.options.recover_timeout);
    // A destination that takes the connection and cannot go on is not asked all the time either.
    if (Clock::now() - connected_since_ > kLongestPause) pause_ = kFirstPause;
    connect_again();
    return false;
  }
}

void Postcopy::beat() {
  left_ = feed_->pages_left();
  p_.hold.heartbeat();
  if (!p_.peer.interrupted()) return;
  feed_->tell_why_it_ends("`migrate send` was interrupted there; another process goes on");
  leave("interrupted");
}

void Postcopy::leave(const std::string& why) const {
  throw FeedLeft("it runs at the destination, and " + human_bytes(left_ * kPageSize) +
                 " of its memory are still in the frozen tree here (" + why + ")");
}

void Postcopy::wait_before_trying(milliseconds pause) const {
  if (recover_by_) pause = std::min(pause, milliseconds(recover_by_->poll_timeout()));
  p_.peer.pause(pause);
  if (p_.peer.interrupted()) leave("interrupted");
  if (recover_by_ && recover_by_->passed())
    leave("the destination was not reached for " + std::to_string(p_.options.recover_timeout.count()) + " s");
}

/// With back-off, and without end unless the operator says so: the program waits there for what is here.
void Postcopy::connect_again() {
  for (;; pause_ = std::min(pause_ * 2, kLongestPause)) {
    wait_before_trying(pause_);
    p_.hold.heartbeat();
    try {
      Timeouts timeouts = p_.options.timeouts;
      if (recover_by_) timeouts.connect = std::min(timeouts.connect, milliseconds(recover_by_->poll_timeout() + 1));
      p_.peer.replace_channel(
          connect_about(p_.peer.connector(), p_.options.address, timeouts, p_.hold.id(), p_.hold.epoch()));
      connected_since_ = Clock::now();
      pause_ = std::min(pause_ * 2, kLongestPause);
      return;
    } catch (const Refusal&) {
      throw;
    } catch (const Error& e) {
      p_.events.progress("progress", std::string("connecting again: ") + e.what());
    }
  }
}

void Postcopy::tell_end(Clock::time_point began) const {
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - began).count();
  EventFields fields = {{"ms", ms},
                        {"pages_pushed", static_cast<int64_t>(feed_->pages_pushed())},
                        {"pages_requested", static_cast<int64_t>(feed_->pages_requested())},
                        {"pages_not_needed", static_cast<int64_t>(feed_->pages_left())},
                        {"pages_lost", static_cast<int64_t>(feed_->pages_gone())}};
  const EventFields waits = feed_->waits_fields();
  fields.insert(fields.end(), waits.begin(), waits.end());
  std::string text = "the destination has all of it: nothing had to follow";
  if (!late_.empty())
    text = "the destination has all of it: " + human_bytes(feed_->pages_pushed() * kPageSize) + " pushed, " +
           std::to_string(feed_->pages_requested()) + " pages asked for; " + feed_->waits_text();
  if (feed_->pages_left() != 0)
    text += "; " + human_bytes(feed_->pages_left() * kPageSize) +
            " were not needed any more: the program has given them back there, or has ended";
  text += feed_->gone_text();
  p_.events.event("whole", text, fields);
  fault_point("source-agent.whole");
}

}  // namespace migrate
