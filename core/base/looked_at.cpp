#include "core/base/looked_at.h"

#include <sys/mman.h>
#include <sys/stat.h>

namespace migrate {

namespace {

Fd open_if_there(const std::string& path, int flags) {
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (!fd && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) throw Error("open", path, errno);
  return fd;
}

}  // namespace

Fd find_by_name(const std::string& path, int flags) { return open_if_there(path, O_PATH | flags); }

Fd open_regular(const std::string& path, int flags) {
  const Fd found = find_by_name(path);
  struct stat st {};
  if (!found || ::fstat(found.get(), &st) != 0 || !S_ISREG(st.st_mode)) return {};
  return open_if_there(fd_link(found.get()), flags);
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
