// What is said before a move of what images hold: what the restore then does must be the same.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/files/early_look.h"
#include "core/files/file_owners.h"
#include "core/files/restore_files.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"

namespace migrate::files_testing {

/// What is said of the only file before a move, when nothing may be opened yet.
inline std::optional<std::string> early_look(const ImageSet& images, const FileRestoreOptions& how) {
  std::map<uint32_t, ext::FileOwner> owners;
  auto records = images.read(kFileOwnersImage, kFileOwnersMagic);
  for (ext::FileOwner owner; records && records->next(owner); owner.Clear()) owners[owner.id()] = owner;
  auto reader = images.read("files.img", magic::kFiles);
  const Fd root = open_path("/", O_PATH | O_DIRECTORY);
  TaskPaths paths(root.get(), how.by_root);
  for (img::file_entry e; reader->next(e); e.Clear()) {
    FileFacts facts;
    if (e.type() == img::fd_types::REG) {
      const auto& f = e.reg();
      facts = {.name = f.name(), .mode = f.mode()};
      if (f.has_size() && !writes(f.flags())) facts.size = f.size();
      const auto owner = owners.find(f.id());
      if (owner != owners.end()) facts.owner = {owner->second.uid(), owner->second.gid()};
      const bool ghost = images.read("remap-fpath.img", magic::kRemapFpath).has_value();
      return why_not_here(paths, how.holders->at(1), ghost ? FileUse::deleted : FileUse::opened, facts, f.flags());
    }
    if (e.type() != img::fd_types::UNIXSK || !e.usk().has_file_perms()) continue;
    const auto& perms = e.usk().file_perms();
    facts = {.name = e.usk().name(), .mode = perms.mode()};
    facts.owner = {perms.uid(), perms.gid()};
    // The kernel's names end with a zero byte.
    facts.name = facts.name.substr(0, facts.name.find('\0'));
    return why_not_here(paths, how.holders->at(1), FileUse::socket, facts, 0);
  }
  return std::nullopt;
}

/// Of a folder or a mapped file.
inline std::optional<std::string> early_look(const img::reg_file_entry& entry, WantedFile::Use use,
                                             const Holders& holders, bool by_root) {
  const Fd root = open_path("/", O_PATH | O_DIRECTORY);
  TaskPaths paths(root.get(), by_root);
  FileUse early_use = FileUse::work_folder;
  if (use == WantedFile::Use::mapped) early_use = FileUse::opened;
  if (use == WantedFile::Use::root_folder) early_use = FileUse::root_folder;
  return why_not_here(paths, holders, early_use, {.name = entry.name(), .mode = entry.mode()}, O_RDONLY);
}

}  // namespace migrate::files_testing
