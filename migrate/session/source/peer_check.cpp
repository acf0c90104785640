#include "migrate/session/source/peer_check.h"

#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/connector.h"
#include "migrate/session/wire/greeting.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {

PeerCheck check_peer(const LinkOptions& link, const std::string& address, const Timeouts& timeouts) {
  const HostPort to = parse_host_port(address);
  const Connector connector(link);
  const Deadline deadline = Deadline::in(timeouts.connect);
  ControlChannel channel(connector.connect(to, deadline, nullptr));
  const auto [here, there] = greet(channel, deadline, timeouts.answer);
  channel.finish();
  check_hello_version(there);
  return {.peer = channel.stream().peer(),
          .connection = channel.stream().description(),
          .host = there.host(),
          .memory_available = there.memory_available(),
          .facts = compare_hosts(here, there)};
}

}  // namespace migrate
