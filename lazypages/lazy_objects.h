// Shared memory of which pages are missing. Whether a page has come is known here; page tables only say who has seen
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/lazy_memory.h"
#include "core/memory/page_runs.h"
#include "lazypages/intervals.h"
#include "lazypages/lazy_record.h"
#include "lazypages/missing_pages.h"
#include "lazypages/space_record.h"

namespace migrate {

/// One object. Pages that have not come are allocated in it, and no task has them in its page tables; a hole is what a
/// task has punched (MADV_REMOVE), or what never was. Any thread may call anything.
class LazyObject {
 public:
  /// Allocates what is missing, where holes are. `memory`: as LazyMemory says of an object.
  LazyObject(LazyMemory memory, std::shared_ptr<LazyRecord> record);
  /// Takes over what is recorded. `announced`: what was missing at first.
  LazyObject(SpacePage& page, std::shared_ptr<LazyRecord> record, const Intervals& announced);
  LazyObject(const LazyObject&) = delete;
  LazyObject& operator=(const LazyObject&) = delete;
  /// Its descriptors stay open if the record outlasts this process.
  ~LazyObject();

  uint64_t id() const { return id_; }
  /// Where it begins among all objects of a tree, and what it has room for.
  uint64_t base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

  /// Pages that are awaited get these contents, for whoever is shown them from now on; where a task has punched a hole
  /// it stays one. Throws Error if they cannot be written; what was not is awaited still.
  void put(uint64_t offset, std::span<const std::byte> data);
  bool awaits(uint64_t offset) const;
  /// What must come before a hole at `offset` may be filled: the block's awaited pages, if it is the one that kept
  /// others from seeing them.
  std::vector<uint64_t> needed_before(uint64_t offset) const;
  std::vector<MissingRun> missing() const;
  uint64_t missing_pages() const;
  /// Nobody can see any more what is missing.
  void drop();
  /// Who touches the object, any of its pages, gets SIGBUS from now on.
  void lose();
  /// No more of it is recorded, and its descriptors are closed.
  void end();

 private:
  void map();
  bool are_huge(const PageSet& missing) const;
  void allocate(uint64_t start, uint64_t end) const;
  void hold_pages();
  Fd hold_some(size_t& done, size_t& allocated) const;
  void forget(uint64_t offset, uint64_t bytes) const;
  void settle(uint64_t offset, uint64_t bytes);
  uint64_t write_some(uint64_t offset, std::span<const std::byte> data) const;

  const std::shared_ptr<LazyRecord> around_;
  uint64_t id_, base_, bytes_ = 0;
  Fd file_, held_;
  std::vector<uint64_t> held_pages_;  ///< of each block of a huge page the first that was missing, ascending
  bool huge_ = false;                 ///< what is allocated may be, unless care is taken
  mutable std::mutex mutex_;
  MissingPages missing_;  ///< by offset
  std::optional<SpaceRecord> record_;
  Fd userfaultfd_, mem_;  ///< of this process: it sees holes as faults
  std::byte* mapped_ = nullptr;
};

/// All of a tree, side by side in one space of places.
class LazyObjects {
 public:
  /// Before any is looked for.
  void add(std::unique_ptr<LazyObject> object);
  bool empty() const { return objects_.empty(); }
  LazyObject* of(uint64_t id) const;
  /// At a place; nullptr: none is there.
  LazyObject* at(uint64_t place) const;
  bool awaits(uint64_t place) const;
  std::vector<uint64_t> needed_before(uint64_t place) const;
  uint64_t missing_pages() const;
  bool whole() const { return missing_pages() == 0; }
  std::span<const std::unique_ptr<LazyObject>> all() const { return objects_; }

 private:
  std::vector<std::unique_ptr<LazyObject>> objects_;  ///< by base
};

}  // namespace migrate
