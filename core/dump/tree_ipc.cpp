#include "core/dump/tree_ipc.h"

#include <sys/shm.h>

#include <algorithm>
#include <ctime>
#include <iterator>
#include <set>
#include <utility>

#include "core/base/looked_at.h"
#include "core/dump/preflight.h"
#include "core/dump/tree_images.h"
#include "core/ipc/ipc_images.h"
#include "core/ipc/ipc_namespace.h"
#include "core/ipc/segment_names.h"
#include "core/memory/vma.h"

namespace migrate {
namespace {

/// Calls `see` with each mapping of a segment: its number is the inode's. A file elsewhere may have such a name.
template <class See>
void for_segment_mappings(const std::vector<ProcDir>& tasks, See see) {
  const dev_t device = internal_shm_device();
  for (const ProcDir& task : tasks) {
    try {
      for (const Vma& vma : parse_smaps(task.read("maps")))
        if (vma.device == device && vma.name.starts_with(kSegmentName)) see(static_cast<int>(vma.inode), vma);
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
    }
  }
}

void count_segments(const std::vector<ProcDir>& tasks, std::map<int, uint64_t>& mappings) {
  for_segment_mappings(tasks, [&](int id, const Vma&) { ++mappings[id]; });
}

/// A segment that was removed is made with its old key, which shows in the name of its mappings, and removed again:
/// unless another one has got that key.
void find_old_keys(const std::vector<ProcDir>& tasks, std::vector<IpcObject>& objects) {
  std::set<uint32_t> used;
  for (const IpcObject& o : objects)
    if (o.kind == IpcKind::segment) used.insert(o.key);
  for_segment_mappings(tasks, [&](int id, const Vma& vma) {
    for (IpcObject& o : objects)
      if (o.kind == IpcKind::segment && o.id == id && o.key == 0 && (o.mode & SHM_DEST) != 0)
        if (const uint32_t key = key_in_name(vma.name); used.insert(key).second) o.key = key;
  });
}

std::vector<IpcObject> objects_around(const ProcDir& root) {
  std::vector<IpcObject> all;
  in_ipc_namespace(root, [&] { all = list_ipc_objects(); });
  return all;
}

std::optional<UndoReader> undo_reader_for(const std::vector<IpcObject>& objects) {
  const bool sets = std::ranges::any_of(objects, [](const IpcObject& o) { return o.kind == IpcKind::semaphores; });
  return sets ? UndoReader::open() : std::nullopt;
}

/// Its memory has a descriptor only through a mapping: it is attached for a moment, which shows in its times.
Fd memory_of(const IpcObject& segment, dev_t shm_device) {
  void* at = ::shmat(segment.id, nullptr, SHM_RDONLY);
  if (at == reinterpret_cast<void*>(-1)) throw Error("attach", segment.describe(), errno);  // NOLINT
  Fd memory;
  std::string link;
  for (const Vma& vma : parse_smaps(read_file_at(AT_FDCWD, "/proc/thread-self/maps", 256 << 20)))
    if (vma.range.start == RemoteAddr(reinterpret_cast<uint64_t>(at))) link = "map_files/" + vma.link_name();
  try {
    const Fd self = open_path("/proc/self", O_PATH | O_DIRECTORY);
    memory = open_shm_object(self.get(), link, O_RDONLY, shm_device, static_cast<uint64_t>(segment.id));
  } catch (...) {
    ::shmdt(at);
    throw;
  }
  ::shmdt(at);
  if (!memory) throw Refusal(segment.describe() + " is not of ordinary pages", "run the program without SHM_HUGETLB");
  return memory;
}

/// Calls `look` until it does not refuse, a few times: an object whose maker has just ended may be about to be removed,
/// and of one that was just made nobody is known yet.
template <class Look>
void refused_at_last(long ns_between, Look look) {
  constexpr int kTries = 10;
  for (int tries = 1;; ++tries) {
    try {
      look();
      return;
    } catch (const Refusal&) {
      if (tries == kTries) throw;
    }
    const timespec between{0, ns_between};
    ::nanosleep(&between, nullptr);
  }
}

}  // namespace

void TreeIpc::preflight(const std::vector<ProcDir>& tasks) {
  refused_at_last(20'000'000, [&] {
    const std::vector<IpcObject> around = objects_around(tasks.front());
    if (around.empty()) return;
    IpcUsers users = look_at_ipc_users(tasks);
    look_for_waiters(tasks, users);
    count_segments(tasks, users.mappings);
    (void)find_tree_objects(tasks, std::move(users), undo_reader_for(around));
  });
}

void TreeIpc::look_around(const std::vector<ProcDir>& tasks) {
  const std::vector<IpcObject> around = objects_around(tasks.front());
  if (around.empty()) return;
  undo_reader_ = undo_reader_for(around);
  IpcUsers users = look_at_ipc_users(tasks);
  look_for_waiters(tasks, users);
  waits_ = std::move(users.waits);
  others_wait_ = std::move(users.others_wait);
}

void TreeIpc::describe(const std::vector<ProcDir>& tasks, const ImagePids& pids, ImageSet& images) {
  const bool elsewhere = !has_our_ipc_namespace(tasks.front());
  if (!elsewhere && objects_around(tasks.front()).empty()) return;
  IpcUsers users = look_at_ipc_users(tasks);
  alone_ = users.alone;
  users.exact = true;
  users.waits = waits_;
  users.others_wait = others_wait_;
  count_segments(tasks, users.mappings);
  TreeObjects found;
  bool again = false;
  refused_at_last(2'000'000, [&] {
    // Others run on: who made an object since look_around() may wait for it by now.
    if (std::exchange(again, true)) look_for_waiters(tasks, users);
    found = find_tree_objects(tasks, users, undo_reader_);
  });
  objects_ = std::move(found.objects);
  find_old_keys(tasks, objects_);
  own_ = alone_ || !objects_.empty();
  if (!own_) return;
  in_ipc_namespace(tasks.front(), [&] {
    write_ipc_images(
        objects_, found.undos, own_ipc_namespace_id(), [&](pid_t pid) { return pids.of(pid); }, images);
    const dev_t device = internal_shm_device();
    for (const IpcObject& o : objects_)
      if (o.kind == IpcKind::segment && o.attached == 0) unattached_.emplace(o.id, memory_of(o, device));
  });
}

std::map<int, uint64_t> TreeIpc::segment_sizes() const {
  std::map<int, uint64_t> sizes;
  for (const IpcObject& o : objects_)
    if (o.kind == IpcKind::segment) sizes.emplace(o.id, o.size);
  return sizes;
}

std::vector<IpcObject> TreeIpc::left_behind() const {
  std::vector<IpcObject> left;
  if (alone_) return left;
  // Removed segments go with their last attachment.
  std::ranges::copy_if(objects_, std::back_inserter(left),
                       [](const IpcObject& o) { return o.kind != IpcKind::segment || (o.mode & SHM_DEST) == 0; });
  return left;
}

}  // namespace migrate
