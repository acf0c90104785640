#include "core/files/image_tables.h"

#include <algorithm>
#include <charconv>

#include "core/image/magic.h"

namespace migrate {
namespace {

/// The kernel's upper bound of RLIMIT_NOFILE (fs.nr_open) as it comes; a table of more is no table.
constexpr uint32_t kMaxFd = 1 << 20;

struct Common {
  uint32_t id;
  uint32_t flags;
  const img::fown_entry* owner;
};

template <class Entry>
Common common(bool has, const Entry& e) {
  if (!has) throw Corrupt("files.img", "an entry has no part of its type");
  return {e.id(), e.flags(), &e.fown()};
}

Common common_of(const img::file_entry& e) {
  switch (e.type()) {
    case img::fd_types::REG:
      return common(e.has_reg(), e.reg());
    case img::fd_types::PIPE:
      return common(e.has_pipe(), e.pipe());
    case img::fd_types::INETSK:
      return common(e.has_isk(), e.isk());
    case img::fd_types::UNIXSK:
      return common(e.has_usk(), e.usk());
    case img::fd_types::EVENTFD:
      return common(e.has_efd(), e.efd());
    case img::fd_types::EVENTPOLL:
      return common(e.has_epfd(), e.epfd());
    case img::fd_types::SIGNALFD:
      return common(e.has_sgfd(), e.sgfd());
    case img::fd_types::TIMERFD:
      return common(e.has_tfd(), e.tfd());
    case img::fd_types::MEMFD:
      return common(e.has_memfd(), e.memfd());
    case img::fd_types::FIFO:
      if (!e.has_fifo()) throw Corrupt("files.img", "an entry has no part of its type");
      return {e.fifo().id(), 0, nullptr};
    default:
      throw Refusal("the images hold a file of type " + img::fd_types_Name(e.type()),
                    "this kind cannot be restored yet");
  }
}

}  // namespace

std::map<uint32_t, img::file_entry> read_file_entries(const ImageSet& images) {
  std::map<uint32_t, img::file_entry> entries;
  auto reader = images.read("files.img", magic::kFiles);
  if (!reader) throw Corrupt("the image folder", "files.img is missing");
  img::file_entry entry;
  while (reader->next(entry)) {
    if (common_of(entry).id != entry.id()) throw Corrupt("files.img", "an entry has two ids");
    const uint32_t id = entry.id();
    if (!entries.emplace(id, std::move(entry)).second)
      throw Corrupt("files.img", "id " + std::to_string(id) + " stands twice");
    entry.Clear();
  }
  return entries;
}

std::vector<img::fdinfo_entry> read_table(const ImageSet& images, uint32_t files_id) {
  const std::string name = image_name("fdinfo", files_id);
  auto reader = images.read(name, magic::kFdinfo);
  if (!reader) throw Corrupt("the image folder", name + " is missing");
  std::vector<img::fdinfo_entry> table;
  img::fdinfo_entry entry;
  while (reader->next(entry)) {
    if (entry.fd() >= kMaxFd) throw Corrupt(name, "a descriptor number is too high");
    table.push_back(entry);
  }
  const auto number = [](const img::fdinfo_entry& a, const img::fdinfo_entry& b) { return a.fd() < b.fd(); };
  std::sort(table.begin(), table.end(), number);
  const auto same = [](const img::fdinfo_entry& a, const img::fdinfo_entry& b) { return a.fd() == b.fd(); };
  if (std::adjacent_find(table.begin(), table.end(), same) != table.end())
    throw Corrupt(name, "a descriptor number stands twice");
  return table;
}

std::vector<uint32_t> table_ids(const ImageSet& images) {
  static constexpr std::string_view kStem = "fdinfo-";
  std::vector<uint32_t> ids;
  for (auto it = images.images().lower_bound(std::string(kStem)); it != images.images().end(); ++it) {
    const std::string_view name = it->first;
    if (!name.starts_with(kStem)) break;
    uint32_t id;
    const char* end = name.data() + name.size();
    const auto [stop, ec] = std::from_chars(name.data() + kStem.size(), end, id);
    if (ec == std::errc() && std::string_view(stop, static_cast<size_t>(end - stop)) == ".img") ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

uint32_t flags_of(const img::file_entry& entry) { return common_of(entry).flags; }
const img::fown_entry* owner_of(const img::file_entry& entry) { return common_of(entry).owner; }

}  // namespace migrate
