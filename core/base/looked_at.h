// Files found by names that others can make lead elsewhere at any moment (links of /proc of a running program, paths
// that it names): looked at before they are opened. To open a file can have effects (devices), or wait for ever
// (FIFOs); O_PATH opens nothing.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "core/base/fd.h"

namespace migrate {

/// With O_PATH; an empty Fd if that name leads to nothing. Throws if it is we who lack descriptors or memory.
Fd find_by_name(const std::string& path, int flags = 0);
/// Opens a regular file; an empty Fd if there is none, or something else. Throws as find_by_name().
Fd open_regular(const std::string& path, int flags);

/// The device number of the kernel's internal tmpfs, where shared anonymous memory and memfds are, learned from a memfd
/// of our own: files elsewhere may have the same names.
dev_t internal_shm_device();

/// Opens what `link` leads to if it is an object there (`device`: internal_shm_device()), with inode number `inode`
/// unless that is 0; an empty Fd if it is anything else. Throws Error.
Fd open_shm_object(int dirfd, const std::string& link, int flags, dev_t device, uint64_t inode);

}  // namespace migrate
