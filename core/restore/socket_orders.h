// Who makes the tree's Unix sockets: their peers are told the pid of whoever did (core/files/socket_makers.h).
#pragma once

#include <span>
#include <vector>

#include "core/base/log.h"
#include "core/files/socket_makers.h"
#include "core/restore/shells.h"

namespace migrate {

/// The shell of a task; for a process that has ended, another that has its pid for that moment. Else this process.
std::vector<Fd> order_sockets(Shells& shells, const PeerCredentials& who, std::span<const SocketStep> steps,
                              Logger& log);

}  // namespace migrate
