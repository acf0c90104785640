#include "migrate/session/wire/session_streams.h"

#include "core/base/error.h"
#include "migrate/session/wire/stream_token.h"

namespace migrate {

SessionStreams connect_session_streams(const Connector& connector, const HostPort& to, const SessionId& session,
                                       const google::protobuf::RepeatedPtrField<std::string>& tokens, int count,
                                       std::chrono::milliseconds time, const StopEvent* stop) {
  SessionStreams streams;
  for (int i = 0; i < count; ++i) {
    const Deadline deadline = Deadline::in(time);
    std::unique_ptr<Stream> stream = connector.connect(to, deadline, stop, encode_stream_token(tokens[i]));
    send_page_preface(*stream, {session, static_cast<uint16_t>(i), static_cast<uint16_t>(count)}, deadline);
    streams.push_back(std::move(stream));
  }
  return streams;
}

void accept_session_stream(const Connector& connector, Fd socket, const SessionId& session,
                           const std::string& peer_name, const Deadline& deadline, const StopEvent* stop,
                           SessionStreams& streams) {
  std::unique_ptr<Stream> stream = connector.accept(std::move(socket), deadline, stop);
  const std::optional<PagePreface> preface = read_page_preface(*stream, deadline);
  if (!preface || preface->session != session || preface->index >= streams.size() || streams[preface->index] ||
      stream->peer_name() != peer_name)
    throw Corrupt("a page stream of the peer", "it is not what was agreed upon");
  streams[preface->index] = std::move(stream);
}

}  // namespace migrate
