#include "core/inject/area_mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>

#include "core/base/looked_at.h"

namespace migrate {

SharedMapping::SharedMapping(int fd, size_t bytes)
    : start_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)), bytes_(bytes) {
  if (start_ == MAP_FAILED) {
    start_ = nullptr;
    throw Error("map", "the visit's area", errno);
  }
}

SharedMapping::~SharedMapping() {
  if (start_ != nullptr) ::munmap(start_, bytes_);
}

SharedMapping map_area_of(const ProcDir& task, RemoteRange range) {
  char name[64];
  std::snprintf(name, sizeof name, "map_files/%lx-%lx", range.start.get(), range.end.get());
  const std::string what = "the visit's area in task " + std::to_string(task.pid());
  const Fd found = task.open(name, O_PATH);
  const std::string self = fd_link(found.get());
  struct stat st {};
  check(::fstat(found.get(), &st), "look at", what);
  // The kernel's name for shared anonymous memory. A memfd, which has an owner with a descriptor, is "/memfd:...", and
  // no program can put a name of its choice on this file system.
  const bool anonymous = S_ISREG(st.st_mode) && st.st_dev == internal_shm_device() && st.st_nlink == 0 &&
                         read_link_at(AT_FDCWD, self) == "/dev/zero (deleted)";
  if (!anonymous || static_cast<uint64_t>(st.st_size) != range.bytes())
    throw Error(what + " was exchanged for something else: somebody interferes with the task");
  return {open_path(self, O_RDWR).get(), range.bytes()};
}

}  // namespace migrate
