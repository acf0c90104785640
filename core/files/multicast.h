// Multicast groups of UDP sockets (ip(7), ipv6(7)). Which a socket has joined the kernel tells only when it is asked
// for a group on an interface (MCAST_MSFILTER): those of /proc/net/igmp and igmp6 are asked for, since whatever a
// socket has joined its interface has.
#pragma once

#include <set>
#include <string>

#include "core/files/open_file.h"
#include "ext/ext.pb.h"

namespace migrate {

/// Adds groups and the interface of IP_MULTICAST_IF. Refusal if that was given by number and cannot be told.
/// `task`: whose it is; `who`: names it.
void describe_multicast(int fd, const ProcDir& task, const std::string& who, ext::SocketState& out);
/// Names of all network interfaces that an IPv4 or IPv6 socket is bound to, sends by, or has joined groups on. Refusal
/// for one that is there no more.
std::set<std::string> interfaces_of(int fd, const ProcDir& task, const std::string& who);
/// `fd` is bound.
void apply_multicast(int fd, const ext::SocketState& state, const std::string& who);

}  // namespace migrate
