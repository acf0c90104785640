#include "core/restore/lazy_registration.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/base/error.h"
#include "core/memory/lazy_memory.h"
#include "core/memory/small_pages.h"
#include "core/restore/lazy_restore.h"
#include "core/restore/messages.h"
#include "core/restore/shell.h"

namespace migrate {
namespace {

/// Places of objects are multiples of it, and at least so far apart.
constexpr uint64_t kBetween = 2 << 20;

MemoryId memory_of(const TaskImage& task) { return {MemoryId::Kind::task, static_cast<uint64_t>(task.pid)}; }

Fd pack_ranges(const std::vector<RemoteRange>& ranges) {
  std::vector<TreeLayout::Area> areas;
  areas.reserve(ranges.size());
  for (const RemoteRange& r : ranges) areas.push_back({.start = r.start.get(), .end = r.end.get()});
  return pack_areas(areas);
}

Fd open_of_task(const TaskImage& task, const char* file) {
  return open_path("/proc/" + std::to_string(task.pid) + "/" + file, O_RDONLY);
}

}  // namespace

int LazyRegistration::userfaultfd(const TaskImage& task, Fd LazyUserfaultfds::*which) const {
  const auto made = userfaultfds_.find(task.pid);
  if (made == userfaultfds_.end() || !(made->second.*which))
    throw Error("task " + std::to_string(task.pid) + " cannot wait for pages");
  return (made->second.*which).get();
}

void LazyRegistration::register_private(const TaskImage& task) const {
  const auto pages = missing_.find(memory_of(task));
  if (pages == missing_.end()) return;
  const int own = userfaultfd(task, &LazyUserfaultfds::own);
  const Fd pagemap = open_of_task(task, "pagemap");
  const Fd packed = pack_ranges(register_lazy(own, task, pages->second, pagemap.get()));
  const std::array<int, 2> fds{own, packed.get()};
  send_message(launcher_, Msg::lazy, task.pid, {}, fds);
}

/// What nobody waits for would be zeros.
void LazyRegistration::check_awaited() const {
  for (const auto& [memory, pages] : missing_) {
    if (memory == kSharedMappings) throw Corrupt("pages", "that are to come later are of an object of no number");
    if (memory.kind == MemoryId::Kind::task && std::ranges::find(tasks_, memory, memory_of) == tasks_.end())
      throw Corrupt("pages", "that are to come later are of a task that the images do not have");
  }
}

/// Those of which pages are missing.
std::vector<const SharedMemory::Object*> LazyRegistration::find_objects(const SharedMemory& shared) const {
  std::vector<const SharedMemory::Object*> objects;
  for (const auto& [memory, pages] : missing_) {
    if (memory.kind != MemoryId::Kind::shmem) continue;
    const auto object = std::ranges::find(shared.objects(), memory.id, &SharedMemory::Object::id);
    if (object == shared.objects().end() || object->memfd || pages.ranges().back().end > page_ceil(object->bytes))
      throw Corrupt("pages", "that are to come later lie outside of memory that can wait");
    objects.push_back(&*object);
  }
  return objects;
}

void LazyRegistration::register_shared(const SharedMemory& shared) const {
  check_awaited();
  const std::vector<const SharedMemory::Object*> objects = find_objects(shared);
  if (objects.empty()) return;
  Places places;
  uint64_t next = kBetween;
  for (const SharedMemory::Object* o : objects) {
    if (page_ceil(o->bytes) > kUserEnd - std::min(next, kUserEnd))
      throw Corrupt("pages", "that are to come later lie outside of memory that can wait");
    places.emplace(o->id, next);
    next += page_ceil(o->bytes) / kBetween * kBetween + 2 * kBetween;
  }
  std::vector<PageSet> eager;
  for (const TaskImage& task : tasks_) eager.push_back(register_mappings(task, places));
  for (const SharedMemory::Object* o : objects) hand_over(*o, places.at(o->id));
  // A thread that ends is told nothing of a page that is in the object and not in the page table: what it should have
  // written there (OWNER_DIED, a tid word) is lost (6.18). Last, since a huge page that is split goes from all.
  for (size_t i = 0; i < eager.size(); ++i)
    if (!eager[i].empty()) show_pages(userfaultfd(tasks_[i], &LazyUserfaultfds::shared), eager[i]);
}

/// Returns the pages that the task must have in its page tables.
PageSet LazyRegistration::register_mappings(const TaskImage& task, const Places& places) const {
  if (!may_have_lazy_shared(task)) return {};
  const int shared = userfaultfd(task, &LazyUserfaultfds::shared);
  const Fd mem = open_of_task(task, "mem");
  LazySharedRanges all = register_lazy_shared(shared, task, mem.get(), places);
  if (all.ranges.empty()) return {};
  const Fd ranges = pack_ranges(all.ranges), at = pack_ranges(all.places);
  const std::array<int, 3> fds{shared, ranges.get(), at.get()};
  send_message(launcher_, Msg::lazy, task.pid, {}, fds);
  return std::move(all.eager);
}

/// What rounds have brought is out of date. Nobody has it in a page table any more: else nobody would be told.
void LazyRegistration::hand_over(const SharedMemory::Object& object, uint64_t place) const {
  const uint64_t bytes = page_ceil(object.bytes);
  // Allocated here, where the tree is counted: whoever brings the pages is elsewhere.
  allocate_all_but_first(object.fd.get(), missing_.at({MemoryId::Kind::shmem, object.id}));
  const Fd packed = pack_areas({{.start = place, .end = place + bytes}});
  const std::array<int, 2> fds{object.fd.get(), packed.get()};
  send_message(launcher_, Msg::lazy, 0, as_bytes_of(std::to_string(object.id)), fds);
}

}  // namespace migrate
