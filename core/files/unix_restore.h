// Unix sockets, restore side.
//
// A socket can be bound once only, and a task that accepts on a socket that does not listen yet gets an error. So
// sockets are bound and listening before the gate, but their files have hidden names until publish(); abstract names
// cannot be hidden and appear as soon as they are bound.
//
// What a socket tells of its peer (SO_PEERCRED) is who made it: pairs, listening sockets and connections are made by
// the processes that the images name.
#pragma once

#include <sys/socket.h>

#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/files/file_owners.h"
#include "core/files/option_table.h"
#include "core/files/socket_makers.h"
#include "core/files/task_paths.h"
#include "core/files/unix_names.h"

namespace migrate {

class UnixRestorer {
 public:
  /// `owners`, `states`, `maker` and `paths` must outlive this. `mark`: hidden names begin with it
  /// (core/files/hidden_sockets.h).
  UnixRestorer(const ImageSet& images, const FileOwners& owners, const SocketStates& states, const SocketMaker& maker,
               TaskPaths& paths, bool hold, std::string mark, Logger& log);
  UnixRestorer(const UnixRestorer&) = delete;
  UnixRestorer& operator=(const UnixRestorer&) = delete;

  /// Entry and holders must outlive this.
  void add(const img::unix_sk_entry& entry, const Holders& holders);
  /// Makes all sockets that were added; by file id. They must stay open for what follows.
  std::map<uint32_t, Fd> open_all();
  /// Fills their queues, when the files that wait in them are there, by file id; gives them their options.
  void fill(const std::map<uint32_t, int>& opened);
  /// Gives the files their names. Never throws; failures are appended.
  void publish(std::vector<std::string>& failures);

 private:
  using Entry = img::unix_sk_entry;
  struct Socket {
    const Entry* entry;
    Fd fd;  ///< until open_all() gives it away
    const Holders* holders;
    FileOwner made_as{};   ///< whose the file is by now
    bool planned = false;  ///< in a pair or a connection
    int number = -1;       ///< of the descriptor, from then on
  };
  struct Pair {
    Socket *a, *b;
  };
  struct Connection {
    Socket *server, *client;  ///< the accepted end, and the one that connected
    PeerCredentials listener, connector;
  };
  struct Caller {
    uint32_t place;  ///< in the listener's queue
    Socket* socket;
  };
  struct Packet {
    std::span<const std::byte> bytes;
    std::optional<ucred> from{};  ///< who sent it, if that is told
    std::string address{};        ///< of a datagram: the name of its sender's socket
    uint32_t urgent = 0;
    std::vector<uint32_t> files{};  ///< that come with it, by file id
  };
  struct Deaf {
    int socket;  ///< filtered until published
    const Entry* entry;
  };
  Socket* by_inode(uint32_t ino);
  void check_entries();
  void plan(Socket& a);
  void plan_pair(Socket& a, Socket& b);
  void plan_widow(Socket& a);
  bool told(const Socket& a) const;
  bool listens(const std::string& name) const;
  FileOwner ours() const;
  void make_pairs();
  void make_connections();
  void connect_all(std::span<Connection> connections);
  void make_singles();
  void make_waiting();
  static SocketStep listen_step(int socket, size_t backlog);
  void let_connect(const Socket& listener, const std::vector<Caller>& callers);
  void bind_name(Socket& a);
  void connect_datagram(Socket& a);
  void connect_external(Socket& a, const Entry& to);
  void connect_by_name(Socket& a, const Entry& to);
  std::string reachable_name(const Entry& entry);
  void read_queues(const ImageSet& images);
  struct Senders;
  int sender_to(Socket& a, const std::string& address, Senders& senders);
  int named_sender(Socket& a, const std::string& address, Senders& senders);
  void put_back(Socket& a, const Packet& packet, int sender, const std::map<uint32_t, int>& opened);
  void fill_queue(Socket& a, const std::map<uint32_t, int>& opened);
  void leave_unread();
  void settle(Socket& a);

  const FileOwners& owners_;
  const SocketStates& states_;
  const SocketMaker& maker_;
  TaskPaths& paths_;
  UnixNames names_;
  bool hold_;
  Logger& log_;
  std::map<uint32_t, Socket> sockets_;         ///< by inode
  std::map<uint32_t, const Entry*> external_;  ///< likewise
  std::vector<Pair> pairs_;
  std::vector<Connection> connections_;
  std::map<uint32_t, std::vector<Caller>> callers_;  ///< who waits to be accepted, by the listener's inode
  std::deque<Entry> gone_entries_;                   ///< of closed peers, which are there until queues are filled
  std::deque<Socket> gone_;
  std::map<uint32_t, Socket*> widows_;              ///< by inode: the closed peer
  std::map<uint32_t, std::vector<Packet>> queues_;  ///< by file id
  std::map<uint32_t, Fd> unseen_;                   ///< by inode: files of sockets whose names are deleted
  std::map<uint32_t, Deaf> deaf_;                   ///< by inode
};

}  // namespace migrate
