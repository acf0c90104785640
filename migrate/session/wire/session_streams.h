// The streams of a session, both ends: which of them a connection is, it says by a token before TLS (stream_token.h)
// and by its preface behind it.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "migrate/session/wire/connector.h"
#include "migration.pb.h"
#include "pageserver/page_stream.h"

namespace migrate {

using SessionStreams = std::vector<std::unique_ptr<Stream>>;

/// The source's: the first `count` of `tokens`, one after the other, each within `time`.
SessionStreams connect_session_streams(const Connector& connector, const HostPort& to, const SessionId& session,
                                       const google::protobuf::RepeatedPtrField<std::string>& tokens, int count,
                                       std::chrono::milliseconds time, const StopEvent* stop);

/// The destination's: shakes hands over `socket` and puts the stream at its place in `streams`, which are as many as
/// were agreed upon. Throws Corrupt if it is another session's or another peer's than `peer_name`, or there already.
void accept_session_stream(const Connector& connector, Fd socket, const SessionId& session,
                           const std::string& peer_name, const Deadline& deadline, const StopEvent* stop,
                           SessionStreams& streams);

}  // namespace migrate
