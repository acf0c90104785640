// Whether a tree can be tracked: what the kernel must have, and what in a task would be written unseen.
#include <fcntl.h>

#include <string>

#include "core/base/features.h"
#include "core/base/procfs.h"
#include "core/memory/dirty_tracker.h"
#include "core/memory/track_tree.h"
#include "core/memory/vma.h"

namespace migrate {
namespace {

/// O_DIRECT transfers into memory end at some time after the call that pinned it: no fault tells.
bool does_direct_io(const ProcDir& proc, int fd, const std::string& target) {
  if (!target.starts_with('/')) return false;  // pipes know the flag in another sense
  const std::string info = proc.read("fdinfo/" + std::to_string(fd));
  const size_t flags = info.find("flags:\t");
  if (flags == std::string::npos) return false;
  return (std::strtoul(info.c_str() + flags + 7, nullptr, 8) & O_DIRECT) != 0;
}

std::string descriptor_in_the_way(const ProcDir& proc) {
  for (const int fd : proc.descriptors()) {
    const auto has = [&](const char* what) { return " has fd " + std::to_string(fd) + ", " + what; };
    try {
      const std::string target = proc.link("fd/" + std::to_string(fd));
      if (target == "anon_inode:[userfaultfd]") return has("a userfaultfd of its own");
      if (target == "anon_inode:[io_uring]") return has("an io_uring, whose transfers write its memory unseen");
      if (does_direct_io(proc, fd, target))
        return has(("open for direct I/O, which writes its memory unseen: " + target).c_str());
    } catch (const Error& e) {
      if (e.code() != ENOENT) throw;  // closed meanwhile
    }
  }
  return "";
}

std::string mapping_in_the_way(const ProcDir& proc, const MappingReader& mappings) {
  for (const Vma& vma : mappings.read(proc)) {
    if (vma.has(VmFlag::uffd_missing) || vma.has(VmFlag::uffd_wp) || vma.has(VmFlag::uffd_minor))
      return " has memory registered with a userfaultfd: " + vma.describe();
    if (vma.name.starts_with("/[aio]")) return " has an asynchronous I/O context, which writes its memory unseen";
    if (vma.name.starts_with("anon_inode:[io_uring]"))
      return " has an io_uring, whose transfers write its memory unseen";
  }
  return "";
}

std::string task_in_the_way(const ProcDir& proc, const MappingReader& mappings, DirtyTracking way) {
  const auto status = proc.status();
  const auto seccomp = status.find("Seccomp");
  if (way == DirtyTracking::write_protection && seccomp != status.end() && seccomp->second != "0")
    return " uses seccomp, which may forbid userfaultfd";
  if (std::string why = descriptor_in_the_way(proc); !why.empty()) return why;
  return mapping_in_the_way(proc, mappings);
}

}  // namespace

std::string DirtyTracker::cannot_track(Pid root, const MappingReader& mappings) {
  const DirtyTracking way = probe_dirty_tracking();
  if (way == DirtyTracking::none)
    return "this kernel cannot tell which pages were written (it has neither PAGEMAP_SCAN and userfaultfd with "
           "WP_ASYNC, "
           "Linux 6.7, nor soft-dirty bits)";
  for (const LivingTask& task : list_living(root)) {
    try {
      if (std::string why = task_in_the_way(ProcDir(task.pid), mappings, way); !why.empty())
        return "task " + std::to_string(task.pid) + why;
    } catch (const Error& e) {
      if (e.code() != ESRCH && e.code() != ENOENT) throw;  // ended meanwhile
    }
  }
  return "";
}

}  // namespace migrate
