// epoll interest lists. They name descriptors by number and description, so they can only be checked and added where
// that number leads to that description.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/files/open_file.h"

namespace migrate {

/// Where a description was seen: a descriptor table and a number in it.
struct Holder {
  uint32_t files_id = 0;
  pid_t pid = 0;
  int fd = -1;
};

/// What an epoll's fdinfo tells. Throws Corrupt.
std::vector<img::eventpoll_tfd_entry> epoll_targets(std::string_view fdinfo);
/// Whether the number `tfd` of the holder leads to what its epoll watches under it, as the nth of that number.
bool is_epoll_target(const Holder& holder, int tfd, uint32_t nth);
Refusal watches_what_is_closed(const std::string& who, int tfd);

class DescriptorTables;

class EpollDumper {
 public:
  explicit EpollDumper(DumpContext& context) : context_(context) {}
  void collect(const OpenFile& file);
  /// Emits the entries. All descriptors were seen.
  void finish(const DescriptorTables& tables);

 private:
  struct Epoll {
    img::file_entry entry;
    std::string who;
  };
  DumpContext& context_;
  std::vector<Epoll> epolls_;
};

}  // namespace migrate
