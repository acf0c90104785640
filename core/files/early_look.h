// Whether a restore could open or make a file here, decided by its own rules (found_file.h, task_paths.h) while the
// program still runs elsewhere: nothing is opened, made or changed. What can only be known by doing it is left to the
// restore, which decides all of this again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/files/found_file.h"

namespace migrate {

enum class FileUse : uint32_t {
  opened = 1,       ///< also mapped
  work_folder = 2,  ///< to be entered
  root_folder = 3,
  deleted = 4,  ///< a file without a name, to be made again where its name was
  socket = 5,   ///< a Unix socket, to be bound there
};

/// A sentence with what to do about it, if none of `holders` may have `path` in that use, nor root in their stead, or
/// if what is there is another file than `facts` say. `flags`: open flags, for FileUse::opened.
std::optional<std::string> why_not_here(TaskPaths& paths, const Holders& holders, FileUse use, const FileFacts& facts,
                                        uint32_t flags);

}  // namespace migrate
