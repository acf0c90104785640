#include "core/files/image_tables.h"

#include <algorithm>

#include "core/files/kinds.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

EntryFacts facts_of(const img::file_entry& e) {
  const Kind* kind = kind_of(e.type());
  if (kind == nullptr)
    throw Refusal("the images hold a file of type " + img::fd_types_Name(e.type()), "this kind cannot be restored yet");
  const EntryFacts facts = kind->facts(e);
  if (!facts.there) throw Corrupt("files.img", "an entry has no part of its type");
  return facts;
}

}  // namespace

std::map<uint32_t, img::file_entry> read_file_entries(const ImageSet& images) {
  std::map<uint32_t, img::file_entry> entries;
  auto reader = images.read("files.img", magic::kFiles);
  if (!reader) throw Corrupt("the image folder", "files.img is missing");
  img::file_entry entry;
  while (reader->next(entry)) {
    if (facts_of(entry).id != entry.id()) throw Corrupt("files.img", "an entry has two ids");
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
  static constexpr std::string_view kStem = "fdinfo";
  std::vector<uint32_t> ids;
  for (auto it = images.images().lower_bound(std::string(kStem)); it != images.images().end(); ++it) {
    if (!it->first.starts_with(kStem)) break;
    if (const auto id = id_in_name(it->first, kStem)) ids.push_back(*id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

uint32_t flags_of(const img::file_entry& entry) { return facts_of(entry).flags; }
const img::fown_entry* owner_of(const img::file_entry& entry) { return facts_of(entry).owner; }

}  // namespace migrate
