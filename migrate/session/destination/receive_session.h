// One migration as the destination's agent serves it.
#pragma once

#include <memory>

#include "core/base/log.h"
#include "migrate/session/base/options.h"
#include "migrate/session/destination/daemon_link.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/handover/destination_sessions.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/connector.h"

namespace migrate {

/// What a session needs from its agent; all outlive it.
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

/// After the greeting: serves clock questions, the checks and, if they pass, the migration. `first` is the first
/// message behind the greeting. Returns an exit code; failures are reported as events.
int serve_migration(const ReceiveContext& context, ControlChannel& channel, wire::Message first);

/// Writes one NUL byte to the status descriptor, if there is one.
void signal_status(int fd) noexcept;

}  // namespace migrate
