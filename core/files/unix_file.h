// The file of a bound Unix socket: getsockname(2) tells the name that it was bound by, which it need not have any more.
#pragma once

#include <sys/stat.h>

#include <string>

#include "core/files/open_file.h"
#include "core/files/unix_diag.h"

namespace migrate {

/// For people: abstract names with '@'.
std::string printable_name(std::string name);

/// Whether the socket has a file, and does not merely share its listener's name.
bool has_unix_file(const UnixSocketInfo& info);

struct UnixFile {
  struct statx st {};
  bool deleted = false;
  std::string folder;  ///< of a relative name: what it is relative to
  std::string moved;   ///< its path, if that is not its name
};

/// Refusal if it has been given another name that cannot be found.
UnixFile find_unix_file(const OpenFile& file, const UnixSocketInfo& info);

}  // namespace migrate
