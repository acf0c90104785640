// What a watch is on: fdinfo tells an inode and a file handle, the images need a path.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/inotify.h"
#include "core/files/regular.h"

namespace migrate {

class WatchedPaths {
 public:
  explicit WatchedPaths(RegularDumper& regular) : regular_(regular) {}
  /// The file (O_PATH), with the id still to be given. Throws Refusal if no path to it is found.
  OpenFile find(const OpenFile& inotify, const InotifyWatch& watch);

 private:
  struct Mount {
    uint32_t device;
    std::string point;  ///< as the task sees it
    Fd fd;              ///< O_PATH; empty: not opened yet, or cannot be
  };
  std::vector<Mount>& mounts_of(const ProcDir& task);
  std::optional<OpenFile> by_handle(const OpenFile& inotify, const InotifyWatch& watch);
  std::optional<OpenFile> among_known(const OpenFile& inotify, const InotifyWatch& watch);
  bool usable(const OpenFile& file);

  RegularDumper& regular_;
  std::map<pid_t, std::vector<Mount>> mounts_;
};

}  // namespace migrate
