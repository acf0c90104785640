// Opening paths that come from images or from tasks: below a root folder, never through magic links, never blocking on
// FIFOs or devices by surprise. Every such path is walked by openat2(2): through here or core/files/task_paths.h.
#pragma once

#include <string>

#include "core/base/fd.h"

namespace migrate {

/// openat2(2) with RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS. Throws Error naming `path`.
Fd open_below(int root, const std::string& path, int flags, mode_t mode = 0);
/// The same; an empty Fd if the path leads nowhere or must not be followed.
Fd try_open_below(int root, const std::string& path, int flags);
/// The same, through no link at all (ELOOP); an empty Fd, and errno.
Fd try_open_plain(int root, const std::string& path, int flags, mode_t mode = 0);
/// A description of its own of what `fd` (O_PATH will do) leads to; needs a mounted /proc.
Fd reopen(int fd, int flags, const std::string& what);

/// Splits "/a/b/c" into folder "/a/b" and name "c". Throws Corrupt for names that are no file names.
struct SplitPath {
  std::string folder, name;
};
SplitPath split_path(const std::string& path);

/// Whether `fd` is on a file system through which the kernel shows itself (proc, sysfs, cgroup, ...): opening, reading
/// or writing such a file may do anything.
bool on_kernel_file_system(int fd);

}  // namespace migrate
