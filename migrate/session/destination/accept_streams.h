// The destination's listener while a session waits for its page streams.
#pragma once

#include "migrate/session/destination/receive_session.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// All page streams of the session, in order. A source that comes in between is told that this host is busy (with
/// `label`); other strangers are cut. Throws Error if the session's own source gives up or leaves, TimedOut, Cancelled.
std::vector<std::unique_ptr<Stream>> accept_page_streams(const ReceiveContext& context, ControlChannel& channel,
                                                         const SessionId& id, const std::string& label, uint32_t count);

}  // namespace migrate
