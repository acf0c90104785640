#include "core/files/early_look.h"

#include <linux/capability.h>
#include <unistd.h>

#include <algorithm>

#include "core/files/ghost_restore.h"
#include "core/files/paths.h"
#include "core/files/unix_names.h"

namespace migrate {
namespace {

/// What open(2) would ask for. A FIFO is opened both ways at the restore, or by root.
void demand_access(const TaskPaths& paths, int fd, const FileFacts& facts, uint32_t flags) {
  if ((flags & O_PATH) != 0) return;
  const int access = static_cast<int>(flags) & O_ACCMODE;
  const int wanted = access == O_RDONLY ? R_OK : access == O_WRONLY ? W_OK : R_OK | W_OK;
  if (!TaskPaths::may(fd, wanted)) {
    const int why = errno;
    throw Error("open", facts.text(), why);
  }
  if ((flags & O_NOATIME) == 0 || paths.now().has(CAP_FOWNER)) return;
  if (stat_cached(fd, "", AT_EMPTY_PATH, facts.name).stx_uid != paths.now().uid)
    throw Error("open", facts.text(), EPERM);
}

/// Folders that are gone are made, and removed, by the restore: then the last that is there must take one.
void find_place_for(TaskPaths& paths, Right right, std::string folder) {
  for (;;) {
    try {
      find_folder_to_make_in(paths, right, folder);
      return;
    } catch (const Error& e) {
      if (e.code() != ENOENT || folder == "/") throw;
    }
    folder = split_path(folder).folder;
  }
}

void look(TaskPaths& paths, Right right, FileUse use, const FileFacts& facts, uint32_t flags) {
  const std::string path = facts.text();
  switch (use) {
    case FileUse::opened: {
      const Fd found = find_file(paths, right, facts, path, flags);
      return demand_access(paths, found.get(), facts, flags);
    }
    case FileUse::work_folder:
    case FileUse::root_folder:
      find_folder_to_enter(paths, right, facts, path, use == FileUse::root_folder);
      return;
    case FileUse::deleted:
      return find_place_for(paths, right, split_path(path).folder);
    case FileUse::socket: {
      const SplitPath split = split_path(path);
      const Fd folder = find_folder_to_make_in(paths, right, split.folder);
      std::optional<uint32_t> owner;
      if (facts.owner) owner = facts.owner->first;
      return check_free({folder.get(), split.name, "Unix socket " + path, owner}, paths.now(), true);
    }
  }
}

std::string name_of(FileUse use, const FileFacts& facts) {
  if (use == FileUse::deleted) return "the deleted file " + facts.text();
  if (use == FileUse::socket) return "Unix socket " + facts.text();
  return facts.text();
}

/// By itself or, if root may do anything for it, by root: what a restore sets when the file is made.
void demand_owner(const TaskPaths& paths, const Holders& holders, FileUse use, const FileFacts& facts) {
  if (!facts.owner || !facts.mode) return;
  const auto& [uid, gid] = *facts.owner;
  if (use == FileUse::deleted) check_set_ids(facts.text(), *facts.mode, uid, gid, holders);
  if (paths.by_root()) return;
  // A file has the group of its folder where that has the set-group-id bit.
  const auto may_give = [&, owner = uid, group = gid](const FileCredentials& who) {
    const bool made = use == FileUse::deleted && who.uid == owner;
    return made || who == paths.self() || who.may_give(owner, group);
  };
  if (std::ranges::any_of(holders, may_give)) return;
  throw Refusal(name_of(use, facts) + " of user " + std::to_string(uid) + " and group " + std::to_string(gid) +
                    ", which no task that has it open could have made",
                use == FileUse::deleted ? "have the program close it" : "let the program bind it as its own user");
}

}  // namespace

std::optional<std::string> why_not_here(TaskPaths& paths, const Holders& holders, FileUse use, const FileFacts& facts,
                                        uint32_t flags) {
  try {
    if (use == FileUse::deleted || use == FileUse::socket) demand_owner(paths, holders, use, facts);
    paths.attempt(holders, name_of(use, facts), [&](Right right) { look(paths, right, use, facts, flags); });
  } catch (const Refusal& e) {
    return e.what();
  } catch (const Error& e) {
    const std::string why = e.what();
    return why.find("; ") != why.npos ? why : why + "; have the same file there as at the source";
  }
  return std::nullopt;
}

}  // namespace migrate
