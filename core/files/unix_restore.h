// Unix sockets, restore side.
//
// A socket can be bound once only, and a task that accepts on a socket that does not listen yet gets an error. So
// sockets are bound and listening before the gate, but their files have hidden names until publish(); abstract names
// cannot be hidden and appear as soon as they are bound.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/files/task_paths.h"
#include "core/files/unix_names.h"

namespace migrate {

class UnixRestorer {
 public:
  /// `paths` must outlive this. `mark`: hidden names begin with it (core/files/hidden_sockets.h).
  UnixRestorer(const ImageSet& images, TaskPaths& paths, bool hold, std::string mark, Logger& log);
  UnixRestorer(const UnixRestorer&) = delete;
  UnixRestorer& operator=(const UnixRestorer&) = delete;

  /// Entry and holders must outlive this.
  void add(const img::unix_sk_entry& entry, const Holders& holders);
  /// Makes all sockets that were added; by file id.
  std::map<uint32_t, Fd> open_all();
  /// Gives the files their names. Never throws; failures are appended.
  void publish(std::vector<std::string>& failures);

 private:
  using Entry = img::unix_sk_entry;
  struct Socket {
    const Entry* entry;
    Fd fd;
    const Holders* holders;
  };
  struct Deaf {
    int socket;  ///< filtered until published
    const Entry* entry;
  };
  Socket* by_inode(uint32_t ino);
  void check_entries();
  void make_connected(Socket& a);
  void make_pair(Socket& a, Socket& b);
  void make_widow(Socket& a);
  void make_single(Socket& a);
  void bind_name(Socket& a);
  void connect_datagram(Socket& a);
  void connect_external(Socket& a, const Entry& to);
  std::string reachable_name(const Entry& entry);
  void fill_queue(Socket& a);
  void settle(Socket& a);

  TaskPaths& paths_;
  UnixNames names_;
  bool hold_;
  Logger& log_;
  std::map<uint32_t, Socket> sockets_;         ///< by inode
  std::map<uint32_t, const Entry*> external_;  ///< likewise
  std::map<uint32_t, Fd> widows_;              ///< by inode: the closed peer, until queues are filled
  std::map<uint32_t, std::vector<std::span<const std::byte>>> queues_;  ///< by file id
  std::map<uint32_t, Deaf> deaf_;                                       ///< by inode
};

}  // namespace migrate
