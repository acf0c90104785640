#include "core/restore/page_orders.h"

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "core/base/error.h"
#include "core/memory/page_scan.h"
#include "core/restore/address_space.h"

namespace migrate {
namespace {

using Orders = std::map<pid_t, std::vector<TreeLayout::Area>>;

/// What of a memory is named, as far as there can be such addresses.
AddressRange possible(uint64_t address, uint64_t pages) {
  if (address % kPageSize != 0) throw Corrupt("pages of a memory", "an address is not possible");
  const uint64_t start = std::min(address, kUserEnd);
  return {start, start + std::min(pages, (kUserEnd - start) / kPageSize) * kPageSize};
}

TreeLayout::Area area(const AddressRange& range, bool huge_pages) {
  TreeLayout::Area a;
  a.start = range.start;
  a.end = range.end;
  a.huge_pages = huge_pages;
  return a;
}

/// An order about its own ranges to each task that has some.
void order_each(Shells& shells, Msg type, const Orders& of_tasks) {
  std::vector<const TaskNode*> asked;
  for (const TaskNode& task : shells.tasks()) {
    const auto it = of_tasks.find(task.pid);
    if (it == of_tasks.end() || task.zombie) continue;
    const Fd areas = pack_areas(it->second);
    const std::array<int, 1> fds{areas.get()};
    shells.send(task, type, fds);
    asked.push_back(&task);
  }
  for (const TaskNode* task : asked) shells.answer(*task);
}

void discard_shared(SharedMemory& shared, FileRestorer* files, uint64_t id, const AddressRange& r) {
  shared.discard(id, r.start, r.end - r.start);
  if (files == nullptr) return;
  const auto memfd = files->shared_objects().find(id);
  if (memfd != files->shared_objects().end())
    punch_hole(memfd->second.get(), page_ceil(object_size(memfd->second.get())), r.start, r.end - r.start);
}

}  // namespace

void discard_pages(Shells& shells, SharedMemory& shared, FileRestorer* files, std::span<const PageDiscard> discards) {
  Orders of_tasks;
  for (const PageDiscard& d : discards) {
    const AddressRange r = possible(d.address, d.pages);
    if (r.start == r.end) continue;
    if (d.memory.kind == MemoryId::Kind::shmem) {
      discard_shared(shared, files, d.memory.id, r);
    } else {
      of_tasks[static_cast<pid_t>(d.memory.id)].push_back(area(r, false));
    }
  }
  order_each(shells, Msg::discard, of_tasks);
}

void reserve_pages(Shells& shells, std::span<const PageReserve> pages) {
  Orders of_tasks;
  for (const PageReserve& wanted : pages) {
    const AddressRange r = possible(wanted.address, wanted.pages);
    if (r.start == r.end || wanted.memory.kind != MemoryId::Kind::task) continue;
    of_tasks[static_cast<pid_t>(wanted.memory.id)].push_back(area(r, wanted.huge_pages));
  }
  order_each(shells, Msg::reserve, of_tasks);
}

}  // namespace migrate
