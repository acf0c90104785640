// A file system of a few pages, which nobody else sees.
#pragma once

#include <linux/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/fd.h"

namespace migrate {

/// The root folder of a new tmpfs of `size` ("2M") that is mounted nowhere; it ends with the descriptor.
inline Fd small_disk(const char* size) {
  const Fd context(static_cast<int>(check(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), "open", "tmpfs")));
  check(::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, "size", size, 0), "size", "tmpfs");
  check(::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), "make", "tmpfs");
  return Fd(static_cast<int>(check(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0), "mount", "tmpfs")));
}

}  // namespace migrate
