// TCP sockets: addresses as people write them, connecting and listening with deadlines.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "pageserver/stop_event.h"

namespace migrate {

struct HostPort {
  std::string host;  ///< name or address, without brackets
  uint16_t port = 0;
  std::string text() const;  ///< "[::1]:7400"
};

/// "host:7400", "192.0.2.7:7400", "[::1]:7400"; ":7400" if `empty_host_ok`. Throws Refusal that says what is wrong.
HostPort parse_host_port(std::string_view text, bool empty_host_ok = false);

/// Tries every address of the name in turn. The socket is non-blocking and close-on-exec, with TCP_NODELAY, keepalive
/// and TCP_USER_TIMEOUT (20 s) set. Throws Error naming host and address, TimedOut, Cancelled. Name resolution itself
/// is the C library's and not bounded by the deadline.
Fd connect_tcp(const HostPort& to, Deadline deadline, const StopEvent* stop = nullptr);

/// Options of connect_tcp() for a socket that came from elsewhere (accept, socket activation); makes it non-blocking.
void tune_tcp(int fd);

/// Whether the connection stays inside this machine: both ends are loopback addresses (--insecure allows only these).
bool is_loopback_connection(int fd);
/// "192.0.2.7:41234", of the socket's other end; "socket" for what has no IP address.
std::string peer_address(int fd);

class Listener {
 public:
  /// Binds every address of the name (port 0: a free one, the same for all). Throws Error, with EADDRINUSE named.
  explicit Listener(const HostPort& at);
  uint16_t port() const { return port_; }
  /// "127.0.0.1:7400, [::1]:7400"
  std::string addresses() const;
  /// Whether only loopback addresses are bound.
  bool loopback_only() const;
  /// Next connection, tuned as in connect_tcp(); nullopt: `stop` was triggered. Throws TimedOut.
  std::optional<Fd> accept(const StopEvent* stop, std::optional<Deadline> deadline = {});
  /// For an event loop: poll these for reading, then try_accept().
  std::vector<int> fds() const;
  /// A connection of one of fds(), tuned as in connect_tcp(); empty with accept(2)'s `error` if there is none (EAGAIN),
  /// it is gone again, or descriptors or memory are short (EMFILE, ENFILE, ENOBUFS, ENOMEM).
  static Fd try_accept(int listening, int& error);

 private:
  std::vector<Fd> sockets_;
  uint16_t port_ = 0;
};

}  // namespace migrate
