#include "migrate/session/destination/feed_intake.h"

#include <poll.h>

#include <array>

#include "core/base/features.h"
#include "migrate/session/base/session.h"
#include "migrate/session/destination/accept_streams.h"
#include "migrate/session/destination/connection.h"
#include "migrate/session/guardian/lazy_client.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/channel.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::Message;

constexpr milliseconds kLook{200};

std::string given_up_of(const ReceiveContext& context, const SessionId& id) {
  const std::optional<JournalEntry> entry = context.store.peek(id, Role::destination);
  return entry ? entry->given_up : "";
}

}  // namespace

void let_feed_in(const ReceiveContext& context, ControlChannel& channel, const SessionId& id, const wire::Feed& feed) {
  std::optional<LazyClient> host = LazyClient::connect(context.store.lazy_path(id));
  if (!host) throw GuardianGone("the lazy host of session " + to_hex(id) + " is gone");
  const Deadline deadline = Deadline::in(context.options.timeouts.connect);
  host->begin_feed(feed, deadline);
  const std::vector<StreamToken> tokens = make_stream_tokens(feed.streams());
  context.daemon.expect_streams(tokens);
  Message feeding;
  feeding.mutable_feeding()->set_waits(true);
  feeding.mutable_feeding()->set_gone(can_poison_pages());
  for (const StreamToken& token : tokens) feeding.mutable_feeding()->add_stream_tokens(token.data(), token.size());
  channel.send(std::move(feeding));
  for (uint32_t i = 0; i < feed.streams(); ++i) host->pass_stream(next_stream(context, channel, deadline));
  fault_point("destination-agent.feed-let-in");
}

void await_whole_by_journal(const ReceiveContext& context, ControlChannel& channel, const SessionId& id) {
  std::optional<JournalEntry> entry = context.sessions.look(id);
  while (entry && entry->state == State::gate_open) {
    std::array<pollfd, 1> p{pollfd{channel.fd(), POLLIN | POLLRDHUP, 0}};
    if (::poll(p.data(), p.size(), static_cast<int>(kLook.count())) > 0)
      throw Disconnected(std::string("the source's connection has ended"));
    entry = context.sessions.look(id);
  }
  if (!entry || (entry->state != State::whole && entry->state != State::done))
    throw Error("the pages of session " + to_hex(id) + " are lost");
}

void say_whole(const ReceiveContext& context, ControlChannel& channel, const SessionId& id) {
  Message whole;
  whole.mutable_whole()->set_given_up(given_up_of(context, id));
  channel.send(std::move(whole));
}

void tell_whole(const ReceiveContext& context, const SessionId& id, const std::string& label) {
  context.events.event("whole", label + " has all its memory here" + but_for(given_up_of(context, id)),
                       {{"session", to_hex(id)}});
}

int serve_feed(const ReceiveContext& context, ControlChannel& channel, const Message& first) {
  const SessionId id = session_of(first);
  std::optional<JournalEntry> entry = context.sessions.look(id);
  if (!entry || entry->peer_name != channel.stream().peer_name())
    throw Refusal("session " + to_hex(id) + " is none of " + channel.stream().peer_name() + "'s here",
                  "see `migrate resolve`");
  if (first.epoch() < entry->peer_epoch) throw StaleEpoch(std::string("the feed is of an older epoch"));
  if (entry->boot_id != boot_id())
    throw Refusal("session " + to_hex(id) + " wants no pages: this host was restarted since it ran here",
                  "see `migrate resolve`");
  if (!entry->lazy || (entry->state != State::gate_open && entry->state != State::whole))
    throw Refusal("session " + to_hex(id) + " wants no pages: it is " + std::string(name_of(entry->state)),
                  "see `migrate resolve`");
  channel.set_session(id, first.epoch());
  const bool was_whole = entry->state == State::whole;
  if (!was_whole) let_feed_in(context, channel, id, first.feed());
  context.events.event("feed", "the source of " + entry->label + " feeds it again", {{"session", to_hex(id)}});
  await_whole_by_journal(context, channel, id);
  say_whole(context, channel, id);
  if (!was_whole) tell_whole(context, id, entry->label);
  try {
    channel.expect(Message::kDone, Deadline::in(context.options.timeouts.restore));
  } catch (const Disconnected&) {
    // Not an agent's: its watch, or `resolve`, which settles the session by questions.
    return kQuestionAnswered;
  }
  context.sessions.finish(id, first.epoch());
  Message done;
  done.mutable_done();
  channel.send(std::move(done));
  channel.finish();
  context.events.event("done", "received all of " + entry->label, {{"session", to_hex(id)}});
  return kMoved;
}

}  // namespace migrate
