// Files of restored Unix sockets. A socket is bound, and its file waits for the gate, in a folder of ours beside where
// it belongs, into which nobody else can look; then it is renamed to its name.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/files/paths.h"
#include "core/files/task_paths.h"
#include "images/fdinfo.pb.h"

namespace migrate {

/// For people: "Unix socket /run/x".
std::string who_is(const img::unix_sk_entry& e);
/// Where a socket's file is: `moved`, or if that is empty where its name says. Throws Corrupt if that cannot be told.
SplitPath file_place(const img::unix_sk_entry& e, const std::string& moved);

/// In a thread whose root folder is empty: binds `fd` under the entry's name, making folders as needed.
void bind_backstage(int fd, const img::unix_sk_entry& e);

/// A socket of the entry's type. `flags`: as of socket(2).
Fd new_socket(const img::unix_sk_entry& e, int flags = 0);

/// Where a socket shall have its name.
struct SocketPlace {
  int folder;
  std::string name;    ///< there
  std::string socket;  ///< for sentences
  std::optional<uint32_t> owner;
};
/// Throws Denied or Error if something stands there that `who` may not replace: only a socket that nobody uses may be
/// replaced. `may_be_in_use`: by the program itself, elsewhere.
void check_free(const SocketPlace& place, const FileCredentials& who, bool may_be_in_use);

class UnixNames {
 public:
  /// `mark`: names of our folders begin with it (core/files/hidden_sockets.h).
  UnixNames(TaskPaths& paths, std::string mark) : paths_(paths), mark_(std::move(mark)) {}
  /// Removes what was not published.
  ~UnixNames();
  UnixNames(const UnixNames&) = delete;
  UnixNames& operator=(const UnixNames&) = delete;

  /// Binds `fd` to a name in the file system. Its file comes where that says, or where it was `moved` to; a holder must
  /// be able to make it there. `e` must outlive this.
  void bind(int fd, const img::unix_sk_entry& e, const std::string& moved, const Holders& holders);
  /// A name by which a socket that waits can be connected to; empty if none of that inode does.
  std::string reachable(uint32_t ino) const;
  /// Gives the file of the socket with that inode its name, in the place of a stale one.
  void publish(uint32_t ino);

 private:
  struct Waiting {
    const img::unix_sk_entry* entry;
    Fd folder;                 ///< where it belongs
    std::string name, hidden;  ///< there: its own, and ours
    Fd stage;                  ///< folder `hidden`.d
    FileCredentials who;       ///< by whose right it gets its name
    bool by_root = false;
  };
  Waiting find_place(const img::unix_sk_entry& e, const std::string& moved, const Holders& holders);
  void make_stage(Waiting& place) const;
  void set_owner(const Waiting& place, int file);
  void remove(Waiting& place) noexcept;

  TaskPaths& paths_;
  std::string mark_;
  std::map<uint32_t, Waiting> waiting_;  ///< by socket inode
  int serial_ = 0;
};

}  // namespace migrate
