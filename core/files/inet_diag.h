// What the kernel's list of UDP sockets (sock_diag(7)) tells and no option does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>

#include "core/base/procfs.h"

namespace migrate {

/// A piece of the kernel's answer, aligned to four bytes. True: it was the last. Throws Error for a refusal.
bool parse_inet_shutdowns(std::span<const std::byte> bytes, std::map<uint32_t, int>& found);

/// By inode: the directions in which UDP sockets were shut down, as sk_shutdown has them; those that were not lack.
/// `task` says whose network namespace. Only bound sockets are listed.
std::map<uint32_t, int> list_udp_shutdowns(const ProcDir* task);

}  // namespace migrate
