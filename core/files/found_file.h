// What a path must lead to, and by whose right: decided when a restore opens files, and before a move, when nothing may
// be opened or made yet (early_look.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/files/open_file.h"
#include "core/files/task_paths.h"

namespace migrate {

/// What is known of a file from where the program was; `name`, for sentences, must outlive this.
struct FileFacts {
  std::string_view name;
  std::optional<uint32_t> mode;                        ///< type and bits; images of others may lack it
  std::optional<uint64_t> size;                        ///< where it must be the same: regular, and not written
  std::optional<uint64_t> least;                       ///< what it has at least: mapped, and written
  std::optional<std::pair<uint32_t, uint32_t>> owner;  ///< user and group

  std::string text() const { return std::string(name); }
};

/// Whether a description with these open flags writes.
bool writes(uint32_t flags);

/// Throws Error if it is another kind of file, one that is not opened with those flags, or of another size.
void check_found(const FileFacts& facts, const struct statx& st, uint32_t flags);

// Within TaskPaths::attempt(), with its Right. Nothing is opened but by O_PATH.

/// What `path` leads to, which must be what `facts` say: for root, in owner and mode too. Throws Denied, Error.
Fd find_file(TaskPaths& paths, Right right, const FileFacts& facts, const std::string& path, uint32_t flags);
/// A folder to be entered; `as_root`: to be the root folder.
Fd find_folder_to_enter(TaskPaths& paths, Right right, const FileFacts& facts, const std::string& path, bool as_root);
/// A folder for a new file.
Fd find_folder_to_make_in(TaskPaths& paths, Right right, const std::string& path);

}  // namespace migrate
