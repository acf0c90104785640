#include "core/base/looked_at.h"

#include <sys/mman.h>
#include <sys/stat.h>

namespace migrate {

Fd open_regular(const std::string& path, int flags) {
  const Fd found(::open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat st {};
  if (!found || ::fstat(found.get(), &st) != 0 || !S_ISREG(st.st_mode)) return {};
  return Fd(::open(fd_link(found.get()).c_str(), flags | O_CLOEXEC));
}

dev_t internal_shm_device() {
  const Fd fd(check(::memfd_create("migrate-probe", MFD_CLOEXEC), "create", "a memfd"));
  struct stat st {};
  check(::fstat(fd.get(), &st), "stat", "a memfd");
  return st.st_dev;
}

Fd open_shm_object(int dirfd, const std::string& link, int flags, dev_t device, uint64_t inode) {
  const Fd found = open_at(dirfd, link, O_PATH);
  struct stat st {};
  check(::fstat(found.get(), &st), "stat", link);
  if (!S_ISREG(st.st_mode) || st.st_dev != device || (inode != 0 && st.st_ino != inode)) return {};
  return open_path(fd_link(found.get()), flags);
}

}  // namespace migrate
