#include "migrate/session/destination/accept_streams.h"

#include <poll.h>

#include <array>

#include "core/base/error.h"
#include "migrate/session/wire/session_streams.h"
#include "migrate/session/wire/stream_token.h"

namespace migrate {
namespace {

using wire::Message;

}  // namespace

Fd next_stream(const ReceiveContext& c, ControlChannel& channel, const Deadline& deadline) {
  for (;;) {
    c.interrupt.throw_if_interrupted();
    std::array<pollfd, 3> p{pollfd{c.daemon.fd(), POLLIN, 0}, pollfd{channel.fd(), POLLIN | POLLRDHUP, 0},
                            pollfd{c.interrupt.stop().fd(), POLLIN, 0}};
    const int n = ::poll(p.data(), p.size(), deadline.poll_timeout());
    if (n == 0 && deadline.passed()) throw TimedOut("time is up while waiting for the page streams of", "the source");
    if (n > 0 && p[0].revents != 0) {
      if (Fd socket = c.daemon.next_stream()) return socket;
    } else if (channel.buffered() || (n > 0 && p[1].revents != 0)) {
      const Message news = channel.receive(Deadline::in(c.options.timeouts.answer));
      if (news.body_case() == Message::kAbort) throw Error("the source gave up: " + news.abort().reason());
      throw Corrupt("a message of the peer", "it is out of turn");
    }
  }
}

std::vector<StreamToken> make_stream_tokens(uint32_t count) {
  std::vector<StreamToken> tokens(count);
  for (StreamToken& token : tokens) fill_random(token);
  return tokens;
}

std::vector<std::unique_ptr<Stream>> accept_page_streams(const ReceiveContext& context, ControlChannel& channel,
                                                         const SessionId& id, uint32_t count) {
  std::vector<std::unique_ptr<Stream>> streams(count);
  const Deadline deadline = Deadline::in(context.options.timeouts.connect);
  for (uint32_t got = 0; got < count; ++got) {
    accept_session_stream(context.connector, next_stream(context, channel, deadline), id, channel.stream().peer_name(),
                          deadline, &context.interrupt.stop(), streams);
  }
  return streams;
}

}  // namespace migrate
