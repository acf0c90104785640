// Raw sockets (raw(7)) and ICMP ones for echo requests (icmp(7), "ping sockets"), in what they differ from UDP.
#pragma once

#include <optional>

#include "core/files/inet_address.h"
#include "core/files/open_file.h"

namespace migrate {

bool is_raw(const img::inet_sk_entry& e);
/// Its port is the identifier of its echo requests.
bool is_ping(const img::inet_sk_entry& e);

/// Refusal for one that routes multicast (MRT_INIT), which nobody can read from it.
void check_raw_socket(const OpenFile& file, uint32_t proto);

/// getpeername(2) wants a port, which these need not have: from /proc/net/raw, /proc/net/icmp, …6; nullopt: none.
std::optional<InetAddress> raw_peer(const OpenFile& file, const img::inet_sk_entry& e);

/// Takes what came before it was deaf.
void drop_received(int fd);

}  // namespace migrate
