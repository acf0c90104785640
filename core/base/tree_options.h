// What the user says about how a tree is tied to what is around it: the same words for a dump, a restore and a move.
#pragma once

#include <cstdint>

namespace migrate {

struct TreeOptions {
  bool shell_job = false;  ///< -j: session or terminal may be outside of the tree; it was started from a shell
  bool tcp_close = false;  ///< established TCP connections that lead out of it are dropped, and restored as reset ones
  bool ext_unix_sk = false;        ///< Unix datagram sockets to others are connected again, by name
  bool link_remap = false;         ///< deleted files that have other links get a name that the restore finds
  bool file_locks = false;         ///< -l: locks on files are carried instead of refused
  uint64_t ghost_limit = 1 << 20;  ///< most bytes of a deleted file that are carried along
};

}  // namespace migrate
