#include "core/files/paths.h"

#include <linux/openat2.h>
#include <sys/syscall.h>

namespace migrate {
namespace {

int openat2_below(int root, const std::string& path, int flags, mode_t mode) {
  if (path.find('\0') != std::string::npos || path.empty()) {
    errno = EINVAL;
    return -1;
  }
  open_how how{};
  how.flags = static_cast<uint64_t>(static_cast<unsigned>(flags)) | O_CLOEXEC;
  if ((flags & O_CREAT) != 0) how.mode = mode;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  for (;;) {
    const long fd = ::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how);
    // EAGAIN: a rename raced with the walk, which then could not tell whether it left the root (openat2(2)).
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) return static_cast<int>(fd);
  }
}

}  // namespace

Fd open_below(int root, const std::string& path, int flags, mode_t mode) {
  return Fd(check(openat2_below(root, path, flags, mode), "open", path));
}

Fd try_open_below(int root, const std::string& path, int flags) { return Fd(openat2_below(root, path, flags, 0)); }

Fd reopen(int fd, int flags, const std::string& what) {
  const std::string self = "/proc/self/fd/" + std::to_string(fd);
  return Fd(check(::open(self.c_str(), flags | O_CLOEXEC), "open", what));
}

SplitPath split_path(const std::string& path) {
  const size_t slash = path.rfind('/');
  SplitPath split;
  split.name = slash == std::string::npos ? path : path.substr(slash + 1);
  split.folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  if (split.name.empty() || split.name == "." || split.name == ".." || split.name.find('\0') != std::string::npos ||
      split.name.size() > 255)
    throw Corrupt("a path in the images", "'" + path + "' does not end in a file name");
  return split;
}

}  // namespace migrate
