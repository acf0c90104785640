// The page streams of a session: they come to the daemon's listener, which knows them by tokens.
#pragma once

#include "migrate/session/destination/receive_context.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/stream_token.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// Random ones, for DaemonLink::expect_streams() and Begun.
std::vector<StreamToken> make_stream_tokens(uint32_t count);

/// The untouched socket of somebody who knew one of our tokens. A source that ends, or gives up, before its streams are
/// here ends the wait.
Fd next_stream(const ReceiveContext& context, ControlChannel& channel, const Deadline& deadline);

/// All page streams of the session, in order. Throws Error if the session's own source gives up or leaves, TimedOut,
/// Cancelled, Corrupt.
std::vector<std::unique_ptr<Stream>> accept_page_streams(const ReceiveContext& context, ControlChannel& channel,
                                                         const SessionId& id, uint32_t count);

}  // namespace migrate
