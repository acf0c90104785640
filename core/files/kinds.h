// Which kind of file a descriptor leads to, and which kinds cannot be moved.
#pragma once

#include <string>

#include "core/files/open_file.h"

namespace migrate {

enum class FileKind { regular, pipe, fifo, eventfd, epoll, timerfd, signalfd, memfd, unix_socket, inet_socket };

class KindTable {
 public:
  KindTable();
  /// Throws Refusal, naming task, descriptor and what it is, for kinds that cannot be moved. Needs link, st and info;
  /// `ours` for sockets only.
  FileKind classify(const OpenFile& file, const FileDumpOptions& options) const;

 private:
  FileKind classify_path(const OpenFile& file, const FileDumpOptions& options) const;
  /// memfds live on a kernel-internal mount, whose device number tells them from files that are merely called so.
  InodeKey memfd_fs_;
};

/// Character devices without state of their own.
bool stateless_device(uint32_t major, uint32_t minor);
bool terminal_device(uint32_t major, uint32_t minor);

}  // namespace migrate
