#include "migrate/session/wire/greeting.h"

#include "migrate/session/wire/host_facts.h"

namespace migrate {

Hellos greet(ControlChannel& channel, const Deadline& connect, std::chrono::milliseconds answer) {
  channel.open(connect);
  wire::Message hello;
  *hello.mutable_hello() = host_facts();
  Hellos hellos{.here = hello.hello(), .there = {}};
  channel.send(std::move(hello));
  hellos.there = channel.expect(wire::Message::kHello, Deadline::in(answer)).hello();
  return hellos;
}

}  // namespace migrate
