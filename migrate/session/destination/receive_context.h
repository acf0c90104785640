// What a session at the destination needs from its agent.
#pragma once

#include "core/base/log.h"
#include "migrate/session/base/options.h"
#include "migrate/session/destination/daemon_link.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/handover/destination_sessions.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/connector.h"

namespace migrate {

/// All outlive the session.
struct ReceiveContext {
  const ReceiveOptions& options;
  Events& events;
  const InterruptWatch& interrupt;
  DaemonLink& daemon;
  const Connector& connector;
  JournalStore& store;
  DestinationSessions& sessions;
  Guardian::Spawn spawn;
  Logger& log;
};

/// Writes one NUL byte to the status descriptor, if there is one.
void signal_status(int fd) noexcept;

}  // namespace migrate
