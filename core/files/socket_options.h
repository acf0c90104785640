// Options that all socket families share (socket(7)), and the filter that keeps a restored socket deaf until the gate.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>

#include "core/base/fd.h"
#include "images/sk-opts.pb.h"

namespace migrate {

/// getsockopt(2) of an int; throws Error naming `who`.
int socket_option(int fd, int level, int name, const std::string& who);
/// The same; nullopt where this kind of socket does not have it.
std::optional<int> try_socket_option(int fd, int level, int name);
void set_socket_option(int fd, int level, int name, int value, const std::string& who);

/// Multipath TCP takes no filters, and not all options.
bool is_mptcp(int fd);
/// Refusal for eBPF filters.
void check_filter(int fd, const std::string& who);
/// Reads everything sk_opts_entry holds. Refusal for eBPF filters.
void describe_socket_options(int fd, const std::string& who, img::sk_opts_entry& out);
/// Sets all but the filter.
void apply_socket_options(int fd, const img::sk_opts_entry& options, const std::string& who);

/// Attaches a filter that drops every packet. On a listening TCP socket even a SYN: peers see no answer and retry.
void attach_deaf_filter(int fd, const std::string& who);
/// The task's own filter, or none.
void attach_own_filter(int fd, const img::sk_opts_entry& options, const std::string& who);

}  // namespace migrate
