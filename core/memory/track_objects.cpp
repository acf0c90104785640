#include "core/memory/track_objects.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>

#include "core/base/looked_at.h"
#include "core/base/procfs.h"
#include "core/ipc/ipc_namespace.h"
#include "core/ipc/segment_names.h"
#include "core/memory/page_scan.h"
#include "core/memory/vma.h"

namespace migrate {
namespace {

constexpr std::string_view kMemfd = "/memfd:", kSegment = "/SYSV", kDeleted = " (deleted)";

class ObjectFinder {
 public:
  void look_at(const LivingTask& task) {
    const ProcDir proc(task.pid);
    for (const Vma& vma : parse_smaps(proc.read("maps"))) {
      if (vma.device != device_ || found_.contains(vma.inode)) continue;
      const bool memfd = vma.name.starts_with(kMemfd);
      if (vma.name.starts_with(kSegment)) {
        take_segment(proc, vma);
        continue;
      }
      if (!memfd && !(vma.shared && (vma.name.starts_with("/dev/zero") || vma.name.starts_with("[anon_shmem"))))
        continue;
      take(proc, "map_files/" + vma.link_name(), vma.inode, memfd);
    }
    for (const int number : proc.descriptors()) {
      const std::string path = "fd/" + std::to_string(number);
      std::string link;
      try {
        link = proc.link(path);
      } catch (const Error&) {  // closed meanwhile
      }
      if (link.starts_with(kMemfd)) take(proc, path, 0, true);
    }
  }

  std::vector<LivingObject> result() {
    std::vector<LivingObject> all;
    for (auto& [id, object] : found_) all.push_back(std::move(object));
    return all;
  }

 private:
  /// What is made of it elsewhere must be made with its key and its creator, which its namespace tells.
  void take_segment(const ProcDir& proc, const Vma& vma) {
    if (!segments_) {
      segments_.emplace();
      in_ipc_namespace(proc, [&] {
        for (const IpcObject& o : list_ipc_objects())
          if (o.kind == IpcKind::segment) segments_->emplace(o.id, SegmentMaker{o.key, o.cuid, o.cgid, o.size});
      });
    }
    const auto known = segments_->find(vma.inode);
    if (known == segments_->end()) return;  // it is new, or another namespace's
    take(proc, "map_files/" + vma.link_name(), vma.inode, false);
    const auto object = found_.find(vma.inode);
    if (object == found_.end()) return;
    object->second.segment = known->second;
    if (const uint32_t key = key_in_name(vma.name); known->second.key == 0 && !has_key(key))
      object->second.segment->key = known->second.key = key;
    object->second.bytes = page_ceil(known->second.bytes);
  }

  /// One that was removed has none any more, but in its mappings' names; another one may have got it.
  bool has_key(uint32_t key) const {
    return std::ranges::any_of(*segments_, [&](const auto& segment) { return segment.second.key == key; });
  }

  /// `inode`: that it must have, 0: any.
  void take(const ProcDir& proc, const std::string& path, uint64_t inode, bool memfd) {
    try {
      LivingObject object;
      if (memfd) object.name = name_of(proc.link(path));
      object.fd = open_shm_object(proc.fd(), path, O_RDONLY, device_, inode);
      struct stat st {};
      if (!object.fd || ::fstat(object.fd.get(), &st) != 0 || found_.contains(st.st_ino)) return;
      object.id = st.st_ino;
      object.memfd = memfd;
      object.bytes = page_ceil(static_cast<uint64_t>(st.st_size));
      for (const PageRun& run : scan_object_pages(object.fd.get())) {
        const uint64_t end = std::min(run.address + run.pages * kPageSize, object.bytes);
        if (run.address < end) object.pages.append(run.address, end);
      }
      found_.emplace(object.id, std::move(object));
    } catch (const Error& e) {
      // Else it was unmapped or closed meanwhile, or the task has ended.
      if (e.code() == EMFILE || e.code() == ENFILE || e.code() == ENOMEM) throw;
    }
  }

  static std::string name_of(std::string link) {
    if (link.starts_with(kMemfd)) link.erase(0, kMemfd.size());
    if (link.ends_with(kDeleted)) link.resize(link.size() - kDeleted.size());  // the kernel adds it to every memfd
    return link;
  }

  dev_t device_ = internal_shm_device();
  std::map<uint64_t, LivingObject> found_;
  std::optional<std::map<uint64_t, SegmentMaker>> segments_;  ///< of the tree's IPC namespace
};

}  // namespace

std::vector<LivingObject> find_shared_objects(const std::vector<LivingTask>& tasks) {
  ObjectFinder finder;
  for (const LivingTask& task : tasks) {
    if (task.ended) continue;
    try {
      finder.look_at(task);
    } catch (const Error& e) {
      if (e.code() != ESRCH && e.code() != ENOENT) throw;  // it has ended
    }
  }
  return finder.result();
}

}  // namespace migrate
