// The agent's part in a feed of missing pages: it lets the source's streams in, and hands them, untouched, to the lazy
// host, which outlives it.
#pragma once

#include "migrate/session/destination/receive_context.h"
#include "migrate/session/wire/channel.h"

namespace migrate {

/// Answers `Feed`. Throws as accept_page_streams(), and GuardianGone if there is no lazy host.
void let_feed_in(const ReceiveContext& context, ControlChannel& channel, const SessionId& id, const wire::Feed& feed);

/// Until the journal says that session `id`, which runs here, is whole. Throws Disconnected if the source goes, and
/// Error if pages are lost.
void await_whole_by_journal(const ReceiveContext& context, ControlChannel& channel, const SessionId& id);

/// Tells the source that the copy has all its memory, and what was given up.
void say_whole(const ReceiveContext& context, ControlChannel& channel, const SessionId& id);
/// An event of that.
void tell_whole(const ReceiveContext& context, const SessionId& id, const std::string& label);

/// A later connection of a session whose source goes on feeding: until it is whole, and the source knows. `first`: its
/// Feed. Returns an exit code; throws Refusal if the session wants no pages, or the peer is not its source.
int serve_feed(const ReceiveContext& context, ControlChannel& channel, const wire::Message& first);

}  // namespace migrate
