// TCP and UDP sockets over IPv4 and IPv6. TCP listening, bound and fresh ones are moved; connections are not (yet):
// refused, or dropped with --tcp-close.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/files/file_owners.h"
#include "core/files/open_file.h"
#include "core/files/restore_files.h"

namespace migrate {

/// Throws Refusal if the socket cannot be moved with these options. Touches nothing; for running tasks too.
void check_inet_socket(const OpenFile& file, const FileDumpOptions& options);
/// TCP_ESTABLISHED, ... (netinet/tcp.h)
uint32_t tcp_state_of(const OpenFile& file);
/// `connection`: it is one, in that state, and stays one (tcp_connection.h); else what is connected is dropped or
/// refused.
void dump_inet_socket(const OpenFile& file, DumpContext& context, std::optional<uint32_t> connection = {});

/// Restored sockets that stay deaf (a drop-all filter) until released: a listening socket accepts nothing, a UDP socket
/// receives nothing, but the tree's own calls on them work from its first instruction.
class InetRestorer {
 public:
  InetRestorer(bool hold, bool tcp_close, Logger& log) : hold_(hold), tcp_close_(tcp_close), log_(log) {}
  /// `owner`: whose it is for SO_REUSEPORT, too. `ours`: of what we make.
  Fd open(const img::inet_sk_entry& entry, const FileOwner& owner, const FileOwner& ours);
  /// A socket with all its options, not bound yet.
  Fd make(const img::inet_sk_entry& entry, const FileOwner& owner, const FileOwner& ours);
  /// `fd` must stay open until release().
  void remember(const img::inet_sk_entry& entry, int fd);
  /// Never throws; failures are appended.
  void release(std::vector<std::string>& failures);

 private:
  struct Held {
    const img::inet_sk_entry* entry;
    int fd;
  };
  bool hold_;
  bool tcp_close_;
  Logger& log_;
  std::vector<Held> held_;
};

}  // namespace migrate
