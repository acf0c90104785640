#include "migrate/session/destination/accept_streams.h"

namespace migrate {
namespace {

using wire::Message;

/// For a stranger to hear that it is turned away; our own streams wait for that long.
constexpr std::chrono::milliseconds kTurnAway{1000};

/// A source that ends, or gives up, before its streams are here must not keep the next one waiting.
Fd next_connection(const ReceiveContext& c, ControlChannel& channel, const Deadline& deadline) {
  std::optional<Fd> socket = c.listener.accept(&c.interrupt.stop(), deadline, channel.fd());
  if (c.interrupt.interrupted()) throw Cancelled(std::string("interrupted"));
  if (socket) return std::move(*socket);
  const Message news = channel.receive(Deadline::in(c.options.timeouts.answer));
  if (news.body_case() == Message::kAbort) throw Error("the source gave up: " + news.abort().reason());
  throw Corrupt("a message of the peer", "it is out of turn");
}

}  // namespace

std::vector<std::unique_ptr<Stream>> accept_page_streams(const ReceiveContext& context, ControlChannel& channel,
                                                         const SessionId& id, const std::string& label,
                                                         uint32_t count) {
  std::vector<std::unique_ptr<Stream>> streams(count);
  const Deadline deadline = Deadline::in(context.options.timeouts.connect);
  for (uint32_t got = 0; got < count;) {
    Fd socket = next_connection(context, channel, deadline);
    try {
      std::unique_ptr<Stream> stream = context.connector.accept(std::move(socket), deadline, &context.interrupt.stop());
      const std::optional<PagePreface> preface = read_page_preface(*stream, deadline);
      if (!preface) {
        ControlChannel::turn_away(std::move(stream), "it receives " + label + " right now; try again when that is done",
                                  Deadline::in(kTurnAway));
        continue;
      }
      if (preface->session != id || preface->index >= count || streams[preface->index] ||
          stream->peer_name() != channel.stream().peer_name()) {
        continue;  // somebody else's
      }
      streams[preface->index] = std::move(stream);
      ++got;
    } catch (const Cancelled&) {
      throw;
    } catch (const Error& e) {
      context.log.debug("a connection that is no page stream: {}", e.what());
    }
  }
  return streams;
}

}  // namespace migrate
