#include "core/files/paths.h"

#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

namespace migrate {
namespace {

int openat2_below(int root, const std::string& path, int flags, mode_t mode, uint64_t resolve) {
  if (path.find('\0') != std::string::npos || path.empty()) {
    errno = EINVAL;
    return -1;
  }
  open_how how{};
  how.flags = static_cast<uint64_t>(static_cast<unsigned>(flags)) | O_CLOEXEC;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0 && (flags & O_PATH) == 0) how.mode = mode;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve;
  for (;;) {
    const long fd = ::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how);
    // EAGAIN: a rename raced with the walk, which then could not tell whether it left the root (openat2(2)).
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) return static_cast<int>(fd);
  }
}

}  // namespace

Fd open_below(int root, const std::string& path, int flags, mode_t mode) {
  return Fd(check(openat2_below(root, path, flags, mode, 0), "open", path));
}

Fd try_open_below(int root, const std::string& path, int flags) { return Fd(openat2_below(root, path, flags, 0, 0)); }

Fd try_open_plain(int root, const std::string& path, int flags, mode_t mode) {
  return Fd(openat2_below(root, path, flags, mode, RESOLVE_NO_SYMLINKS));
}

Fd reopen(int fd, int flags, const std::string& what) {
  const std::string self = fd_link(fd);
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

bool on_kernel_file_system(int fd) {
  // linux/magic.h, and the sources of those that are not in it.
  static constexpr std::array<uint32_t, 24> kMagics{
      0x9fa0,      // proc
      0x62656572,  // sysfs
      0x0027e0eb,  // cgroup
      0x63677270,  // cgroup2
      0x64626720,  // debugfs
      0x74726163,  // tracefs
      0x73636673,  // securityfs
      0xf97cff8c,  // selinuxfs
      0x43415d53,  // smackfs
      0x5a3c69f0,  // apparmorfs
      0xcafe4a11,  // bpf
      0x6e736673,  // nsfs
      0xde5e81e4,  // efivarfs
      0x6165676c,  // pstore
      0x62656570,  // configfs
      0x42494e4d,  // binfmt_misc
      0x07655821,  // resctrl
      0x65735543,  // fusectl
      0x19800202,  // mqueue
      0x67596969,  // rpc_pipefs
      0x6e667364,  // nfsd
      0x09041934,  // anonymous inodes
      0xabba1974,  // xenfs
      0x50494446,  // pidfs
  };
  struct statfs fs {};
  check(::fstatfs(fd, &fs), "ask for the file system of", "a file");
  return std::find(kMagics.begin(), kMagics.end(), static_cast<uint32_t>(fs.f_type)) != kMagics.end();
}

}  // namespace migrate
