// Whose process is at the other end of a connection inside this machine.
#pragma once

#include <sys/types.h>

#include <optional>

namespace migrate {

/// Of a Unix stream socket (SO_PEERCRED) or a TCP connection between loopback addresses (the kernel's table of
/// sockets). nullopt: a connection that leaves this machine, or one that is gone. On the connecting side: only after
/// the other side has answered, since a socket that nobody has accepted belongs to nobody, which reads as user 0.
std::optional<uid_t> peer_user(int socket);

}  // namespace migrate
