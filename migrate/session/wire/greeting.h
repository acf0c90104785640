// How a source greets a receiver.
#pragma once

#include <chrono>

#include "core/base/deadline.h"
#include "migrate/session/wire/channel.h"

namespace migrate {

/// What the two hosts said of themselves.
struct Hellos {
  wire::Hello here, there;
};

/// Opens the channel, says what this host is, and hears what the peer says within `answer`. What it is worth, see
/// host_facts.h.
Hellos greet(ControlChannel& channel, const Deadline& connect, std::chrono::milliseconds answer);

}  // namespace migrate
