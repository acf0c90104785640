// TCP and UDP sockets over IPv4 and IPv6. TCP listening, bound and fresh ones are moved, and connections that have
// ended; others are not (yet): refused, or reset with --tcp-close.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/file_owners.h"
#include "core/files/open_file.h"
#include "core/files/option_table.h"
#include "core/files/reset_connections.h"
#include "core/files/restore_files.h"

namespace migrate {

/// Throws Refusal if the socket cannot be moved with these options. Touches nothing; for running tasks too.
void check_inet_socket(const OpenFile& file, const FileDumpOptions& options);
/// TCP_ESTABLISHED, ... (netinet/tcp.h)
uint32_t tcp_state_of(const OpenFile& file);
class InetDumper {
 public:
  explicit InetDumper(DumpContext& context) : context_(context) {}
  /// `connection`: it is one, in that state, and stays one (tcp_connection.h); else what is connected is dropped or
  /// refused.
  void dump(const OpenFile& file, std::optional<uint32_t> connection = {});

 private:
  void describe_state(const OpenFile& file, img::inet_sk_entry& e, ext::SocketState& state,
                      std::optional<uint32_t> connection);
  int udp_shutdown(const OpenFile& file);

  DumpContext& context_;
  std::map<uint64_t, std::map<uint32_t, int>> shutdowns_;  ///< by network namespace: of UDP sockets, by inode
};

/// For people: "TCP socket 127.0.0.1:80".
std::string who_is(const img::inet_sk_entry& entry);

/// Restored sockets that stay deaf (a drop-all filter) until released: a listening socket accepts nothing, a UDP socket
/// receives nothing, but the tree's own calls on them work from its first instruction.
class InetRestorer {
 public:
  /// `states` must outlive this.
  InetRestorer(const SocketStates& states, bool hold, bool tcp_close, Logger& log)
      : states_(states), hold_(hold), tcp_close_(tcp_close), log_(log) {}
  /// `owner`: whose it is for SO_REUSEPORT, too. `ours`: of what we make.
  Fd open(const img::inet_sk_entry& entry, const FileOwner& owner, const FileOwner& ours);
  /// An end of a connection, with its options, not bound yet (tcp_restore.h).
  Fd make_end(const img::inet_sk_entry& entry, const FileOwner& owner, const FileOwner& ours);
  /// The rest of its options.
  void connected(const img::inet_sk_entry& entry, int fd);
  /// `fd` must stay open until release().
  void remember(const img::inet_sk_entry& entry, int fd);
  /// Never throws; failures are appended.
  void release(std::vector<std::string>& failures);

 private:
  Fd make(const img::inet_sk_entry& entry, const std::string& who);
  void bind(int fd, const img::inet_sk_entry& entry, const std::string& who);
  struct Held {
    const img::inet_sk_entry* entry;
    int fd;
  };
  const SocketStates& states_;
  bool hold_;
  bool tcp_close_;
  Logger& log_;
  std::vector<Held> held_;
  ResetSockets resets_;
};

}  // namespace migrate
