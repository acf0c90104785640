// What whoever takes over one address space must know: the events that were read, and which pages are missing.
#pragma once

#include <linux/userfaultfd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/base/types.h"
#include "core/memory/page_io.h"
#include "lazypages/missing_pages.h"

namespace migrate {

class LazyRecord;

/// The page of the record that one userfaultfd has, or one shared object (`kind` with kObject). Its writer may be
/// killed between any two instructions: what a field refers to is written before it.
///
/// The kernel never tells an event again, so it writes them straight into `slots`: what was read and not applied begins
/// at `applied` and ends at the first slot that holds no event.
struct SpacePage {
  /// The pages that were missing when it was made, and all changes since, in the memory for logs.
  struct Log {
    uint64_t offset;
    uint64_t bytes;
    uint64_t saved_words;           ///< before the changes
    std::atomic<uint64_t> changes;  ///< of kChangeBytes each
  };
  static constexpr size_t kSlots = 120;
  static constexpr size_t kChangeBytes = 32;
  static constexpr uint32_t kObject = 1U << 31;

  std::atomic<uint32_t> used;  ///< 0: nothing else holds
  int32_t userfaultfd;         ///< an object's: its file
  int32_t pagemap;             ///< for guards; -1: none. An object's: what holds pages of it
  uint32_t kind;               ///< of MemoryId, and kObject
  uint64_t id;
  std::atomic<uint64_t> first;    ///< number of the event in slot 0, counted from the first that was read
  std::atomic<uint64_t> applied;  ///< events; one more if the last change in the log says so
  /// A fork's, until its parent has counted the event that told of it: the parent's page, from 1 on; 0: it has.
  std::atomic<uint64_t> forked_from;
  uint64_t fork_event;
  uint64_t base, bytes;       ///< an object's: its place among objects, and its size when it was made
  std::atomic<uint32_t> log;  ///< which of them is valid
  std::array<Log, 2> logs;
  alignas(256) std::array<uffd_msg, kSlots> slots;

  /// Read and not applied.
  std::span<const uffd_msg> outstanding() const;
};
static_assert(sizeof(SpacePage) == kPageSize && sizeof(uffd_msg) == 32);

/// Its writer's side. Not thread-safe.
class SpaceRecord {
 public:
  /// Recorded when this returns. `parent`: whose outstanding event made it, if it is a fork's.
  SpaceRecord(std::shared_ptr<LazyRecord> record, MemoryId memory, int userfaultfd, int pagemap,
              const MissingPages& missing, const SpaceRecord* parent = nullptr);
  struct Object {
    uint64_t id, base, bytes;
  };
  /// Of a shared object, which has no events.
  SpaceRecord(std::shared_ptr<LazyRecord> record, Object object, int file, int held, const MissingPages& missing);
  /// Takes over what is recorded; `missing` becomes what it was.
  SpaceRecord(std::shared_ptr<LazyRecord> record, SpacePage& page, MissingPages& missing);
  SpaceRecord(const SpaceRecord&) = delete;
  SpaceRecord& operator=(const SpaceRecord&) = delete;
  /// Nothing is recorded any more, unless that is to outlast this process.
  ~SpaceRecord();

  /// Messages to apply: those that were read and not applied yet, else those that wait, at most `most` and as many as
  /// there is room for. None: nothing waits. Throws Error; `EMFILE` (a fork's descriptor finds no room) leaves the fork
  /// waiting.
  std::span<const uffd_msg> read(int userfaultfd, uint64_t most = SpacePage::kSlots);
  /// Records a change that is about to be made to `missing`; `of_event`: that the first message not applied makes it.
  void change(const PageChange& change, bool of_event, const MissingPages& missing);
  /// Counts one more message as applied.
  void applied();
  /// The parent has counted the event that told of this fork.
  void counted() { page_->forked_from.store(0, std::memory_order_release); }
  /// The memory is dead or given back. Before its descriptors are closed: their numbers may be others' then.
  void end() noexcept;

 private:
  void publish(const MissingPages& missing);
  void begin_log(const MissingPages& missing);
  SpacePage::Log& log() const { return page_->logs[page_->log.load(std::memory_order_relaxed)]; }

  std::shared_ptr<LazyRecord> record_;
  SpacePage* page_;
  std::byte* mapped_ = nullptr;  ///< the valid log
  uint64_t mapped_bytes_ = 0;
};

}  // namespace migrate
