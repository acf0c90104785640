#include "core/files/regular_restore.h"

#include "core/files/ended_task.h"
#include "core/files/open_flags.h"
#include "core/files/paths.h"
#include "core/files/regular.h"
#include "core/image/magic.h"
#include "images/remap-file-path.pb.h"

namespace migrate {
RegularRestorer::RegularRestorer(const ImageSet& images, const std::map<uint32_t, img::file_entry>& entries,
                                 const FileOwners& owners, TaskPaths& paths, int terminal)
    : entries_(entries),
      owners_(owners),
      paths_(paths),
      ghosts_(images, entries, paths),
      terminal_(terminal >= 0 ? Fd(check(::fcntl(terminal, F_DUPFD_CLOEXEC, 0), "duplicate", "the terminal")) : Fd()) {
  auto reader = images.read("remap-fpath.img", magic::kRemapFpath);
  img::remap_file_path_entry remap;
  while (reader && reader->next(remap)) {
    // Old images mark ghosts by the top bit of the id.
    constexpr uint32_t kOldGhostBit = uint32_t{1} << 31;
    const bool ghost =
        remap.has_remap_type() ? remap.remap_type() == img::remap_type::GHOST : (remap.remap_id() & kOldGhostBit) != 0;
    if (remap.has_remap_type() && remap.remap_type() == img::remap_type::PROCFS) {
      if (remap.remap_id() == 0 || remap.remap_id() > INT32_MAX)
        throw Corrupt("remap-fpath.img", "a pid is impossible");
      ended_[remap.orig_id()] = static_cast<pid_t>(remap.remap_id());
      continue;
    }
    remaps_[remap.orig_id()] = {remap.has_remap_type() ? remap.remap_id() : remap.remap_id() & ~kOldGhostBit, ghost};
    if (ghost) ghosts_.add(remaps_[remap.orig_id()].id, remap.orig_id());
  }
}

FileFacts RegularRestorer::facts_of(const img::reg_file_entry& entry) const {
  FileFacts facts{.name = entry.name()};
  if (entry.has_mode()) facts.mode = entry.mode();
  if (entry.has_size() && !writes(entry.flags())) facts.size = entry.size();
  if (const FileOwner* owner = owners_.recorded(entry.id())) facts.owner = {owner->uid, owner->gid};
  return facts;
}

const RegularRestorer::Remap* RegularRestorer::remap_of(const img::reg_file_entry& entry) const {
  const auto it = remaps_.find(entry.id());
  return it == remaps_.end() ? nullptr : &it->second;
}

std::string RegularRestorer::path_of(const img::reg_file_entry& entry) {
  const Remap* remap = remap_of(entry);
  if (remap == nullptr) return entry.name();
  const auto it = entries_.find(remap->id);
  if (it == entries_.end() || it->second.type() != img::fd_types::REG)
    throw Corrupt("remap-fpath.img", "it names a file that is not in files.img");
  return it->second.reg().name();
}

void RegularRestorer::with_found(const img::reg_file_entry& entry, const Holders& holders,
                                 const std::function<void(int)>& use, bool any_kind) {
  const Remap* remap = remap_of(entry);
  if (remap != nullptr && remap->ghost) {
    const Fd& ghost = ghosts_.get(remap->id, entry.name(), holders);
    check_found(facts_of(entry), stat_opened(ghost.get(), entry.name()), 0);
    return paths_.as_self([&] { use(ghost.get()); });
  }
  const std::string path = path_of(entry);
  paths_.attempt(holders, entry.name(), [&](Right right) {
    Fd found = find_file(paths_, right, facts_of(entry), path, any_kind ? O_PATH : entry.flags() & ~uint32_t{O_PATH});
    if (remap != nullptr) found = under_old_name(right, std::move(found), path, entry.name());
    use(found.get());
  });
  if (remap != nullptr) links_[remap->id] = {path, holders};
}

Fd RegularRestorer::open(const img::reg_file_entry& entry, uint32_t flags, const Holders& holders, bool mapped) {
  if (CommandTerminal::named_by(entry)) return terminal_.open(entry, open_flags(flags));
  const Remap* remap = remap_of(entry);
  Fd opened;
  if (remap != nullptr && remap->ghost) {
    // Its own file, of ours until now: whoever has it may have it in any way.
    with_found(entry, holders, [&](int ghost) {
      if (flags == entry.flags()) opened = ghosts_.take_prepared(entry.id());
      const bool path_only = (flags & O_PATH) != 0;
      const int how = path_only ? static_cast<int>(flags & (O_PATH | O_DIRECTORY)) : open_flags(flags);
      if (!opened) opened = reopen(ghost, how, entry.name());
    });
    return opened;
  }
  FileFacts facts = facts_of(entry);
  // What is mapped beyond the end of a file kills who looks there.
  if (mapped && entry.has_size()) facts.least = entry.size();
  const std::string path = path_of(entry);
  std::optional<EndedTask> ended;
  if (const auto pid = ended_.find(entry.id()); pid != ended_.end())
    paths_.as_self([&] { ended.emplace(pid->second); });
  paths_.attempt(holders, entry.name(), [&](Right right) {
    Fd found = find_file(paths_, right, facts, path, flags);
    if (remap != nullptr) found = under_old_name(right, std::move(found), path, entry.name());
    opened = open_found(right, entry, std::move(found), path, flags);
  });
  if (remap != nullptr) links_[remap->id] = {path, holders};
  return opened;
}

Fd RegularRestorer::open_found(Right right, const img::reg_file_entry& entry, Fd found, const std::string& path,
                               uint32_t flags) {
  const bool nofollow = (flags & O_NOFOLLOW) != 0;
  // O_NOFOLLOW stays in the flags of a description, and nothing opened through /proc/self/fd can have it.
  if ((flags & O_PATH) != 0) {
    if (nofollow) return found;
    return reopen(found.get(), static_cast<int>(flags & (O_PATH | O_DIRECTORY)), entry.name());
  }
  if (nofollow && !remaps_.contains(entry.id())) {
    Fd named = paths_.open(right, path, open_flags(flags));
    if (inode_of(stat_opened(named.get(), path)) == inode_of(stat_opened(found.get(), path))) return named;
  }
  return reopen(found.get(), open_flags(flags), entry.name());
}

Fd RegularRestorer::open_folder(const img::reg_file_entry& entry, const Holders& holders, bool as_root) {
  Fd folder;
  if (const Remap* remap = remap_of(entry); remap != nullptr && remap->ghost && !as_root) {
    with_found(entry, holders, [&](int ghost) { folder = reopen(ghost, O_PATH | O_DIRECTORY, entry.name()); });
    return folder;
  }
  paths_.attempt(holders, entry.name(), [&](Right right) {
    folder = find_folder_to_enter(paths_, right, facts_of(entry), entry.name(), as_root);
  });
  return folder;
}

void RegularRestorer::check_ghost(const img::reg_file_entry& entry, const Holders& holders) const {
  const Remap* remap = remap_of(entry);
  if (remap != nullptr && remap->ghost) ghosts_.check(remap->id, entry.name(), holders);
}

/// Seen under its old name, if that is free.
Fd RegularRestorer::under_old_name(Right right, Fd found, const std::string& path, const std::string& old_path) {
  const SplitPath from = split_path(path), to = split_path(old_path);
  const Fd from_folder = paths_.find_folder(right, from.folder), to_folder = paths_.find_folder(right, to.folder);
  if (::linkat(from_folder.get(), from.name.c_str(), to_folder.get(), to.name.c_str(), 0) != 0) return found;
  Fd renamed = try_open_plain(to_folder.get(), to.name, O_PATH | O_NOFOLLOW);
  ::unlinkat(to_folder.get(), to.name.c_str(), 0);
  if (renamed && inode_of(stat_opened(renamed.get(), old_path)) == inode_of(stat_opened(found.get(), path)))
    return renamed;
  return found;
}

void RegularRestorer::remove_links(std::vector<std::string>& failures) {
  for (const auto& [id, link] : links_) try {
      const SplitPath split = split_path(link.path);
      if (!split.name.starts_with(kLinkPrefix)) continue;
      paths_.attempt(link.holders, link.path, [&, &path = link.path](Right right) {
        const Fd folder = paths_.find_folder(right, split.folder);
        check(::unlinkat(folder.get(), split.name.c_str(), 0), "remove", path);
      });
    } catch (const Error& e) {
      failures.emplace_back(e.what());
    }
  links_.clear();
}

}  // namespace migrate
