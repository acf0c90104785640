// epoll interest lists. They name descriptors by number and description, so they can only be checked and added where
// that number leads to that description.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
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
/// Which entry of an epoll: its number, and how many of the same number come before it.
struct EpollSlot {
  Holder epoll;
  int tfd = -1;
  uint32_t nth = 0;
};
/// Whether descriptor `fd` of a task is what the epoll watches there.
bool is_epoll_target(const EpollSlot& slot, pid_t pid, int fd);
/// What the epoll watches under a number that leads elsewhere in the end, or nowhere.
inline constexpr char kWatchedFilesImage[] = "migrate-epoll.img";
inline constexpr uint32_t kWatchedFilesMagic = 0x4d494745;
/// By epoll and entry of it: the file.
std::map<std::pair<uint32_t, uint32_t>, uint32_t> read_watched_files(const ImageSet& images);
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
  static bool under_its_number(const DescriptorTables& tables, uint32_t epoll, const img::eventpoll_tfd_entry& target,
                               uint32_t nth);
  void find_elsewhere(const DescriptorTables& tables, const Epoll& epoll, uint32_t entry, uint32_t nth);

  DumpContext& context_;
  std::vector<Epoll> epolls_;
};

}  // namespace migrate
