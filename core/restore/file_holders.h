// Which task has which file: files are opened by the right of those who have them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/files/restore_files.h"
#include "core/restore/shell.h"
#include "core/restore/task_image.h"

namespace migrate {

/// Paths of root folders that tasks have of their own, by file id.
using RootFolders = std::map<uint32_t, std::string>;
RootFolders root_folders(const std::vector<TaskImage>& tasks, const ImageSet& images);

/// The credentials of those who have each descriptor table.
std::map<uint32_t, Holders> table_holders(const std::vector<TaskImage>& tasks, const RootFolders& roots);

/// All users and groups that the tasks are or could become by themselves.
UserIds ids_of(const std::vector<TaskImage>& tasks);

/// What the tasks have mapped, as executables and as folders, each once.
std::map<MappedFile, WantedFile> wanted_files(const std::vector<TaskImage>& tasks, const RootFolders& roots);

}  // namespace migrate
