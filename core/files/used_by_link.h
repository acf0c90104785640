// Files that a task has by a link of its /proc folder (cwd, map_files/...) and not by a descriptor.
#pragma once

#include <string>

#include "core/base/error.h"
#include "core/files/open_file.h"

namespace migrate {

/// Such a file; O_PATH.
OpenFile file_by_link(const ProcDir& task, const std::string& link, uint32_t flags);
/// What was refused of it as of a descriptor, which has no number here.
Refusal refused_by_link(const Refusal& e, const OpenFile& file, const std::string& link);
/// Throws Refusal for deleted files that a running task has mapped, or works in, and that no dump takes.
void preflight_links(const ProcDir& task, const FileDumpOptions& options);

}  // namespace migrate
