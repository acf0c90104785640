// Multicast groups of UDP sockets (ip(7), ipv6(7)). Which a socket has joined the kernel tells only when it is asked
// for a group on an interface (MCAST_MSFILTER): those of /proc/net/igmp and igmp6 are asked for, since whatever a
// socket has joined its interface has.
#pragma once

#include <string>

#include "core/files/open_file.h"
#include "ext/ext.pb.h"

namespace migrate {

/// Adds groups and the interface of IP_MULTICAST_IF. Refusal if that was given by number and cannot be told.
void describe_multicast(const OpenFile& file, ext::SocketState& out);
/// `fd` is bound.
void apply_multicast(int fd, const ext::SocketState& state, const std::string& who);

}  // namespace migrate
