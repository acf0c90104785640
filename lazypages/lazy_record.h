// The record of a tree's lazy memory: all that whoever takes over needs besides the descriptors, in memory that
// outlives its writer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/memory/page_io.h"
#include "lazypages/intervals.h"
#include "lazypages/space_record.h"

namespace migrate {

/// Where a record is: plain data in shared memory.
struct RecordRoot {
  int32_t pages = -1, logs = -1;                       ///< memfds
  uint64_t announced_offset = 0, announced_words = 0;  ///< what was missing at first, in `logs`
  std::atomic<uint32_t> adopted{0};                    ///< before, nothing that is recorded holds
};

/// Part of the memory for logs.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

/// Pages in one memfd, never moved; logs, and what else has no fixed size, in another. What of that is free is not
/// recorded: all that no page in use refers to. Any thread may call anything.
class LazyRecord {
 public:
  /// Called at each named step, by tests which kill there.
  using Step = std::function<void(const char* name)>;
  using Announced = std::map<MemoryId, Intervals>;

  /// Ends with this object.
  LazyRecord();
  /// Goes on with what is recorded. It outlasts this object from adopted() on.
  explicit LazyRecord(RecordRoot& root, Step step = {});
  LazyRecord(const LazyRecord&) = delete;
  LazyRecord& operator=(const LazyRecord&) = delete;
  ~LazyRecord();

  /// Makes an empty record at `root`; its descriptors stay open until somebody closes them.
  static void make(RecordRoot& root);

  /// All memories are recorded: from now on the record is all that counts.
  void adopted(const Announced& announced);
  Announced announced() const;
  bool outlasts() const { return !own_ && root_->adopted != 0; }
  /// Of the spaces that were in use when this was made, and that are.
  std::vector<SpacePage*> used() const;
  /// All descriptors that the record refers to, its own included.
  std::vector<int> descriptors() const;

  // For SpaceRecord.
  SpacePage* take();
  void give_back(SpacePage* page) noexcept;
  uint64_t number_of(const SpacePage& page) const;
  Extent allocate(uint64_t bytes);
  void release(Extent extent) noexcept;
  std::byte* map(Extent extent) const;
  void step(const char* name) const {
    if (step_) step_(name);
  }

 private:
  static constexpr uint64_t kMore = 16;  ///< pages a mapping

  void map_pages();
  void settle_pages();
  void find_free();
  template <class F>
  void for_pages(F&& what) const;

  std::unique_ptr<RecordRoot> own_;
  RecordRoot* root_;
  Step step_;
  mutable std::mutex mutex_;
  std::vector<SpacePage*> mapped_;  ///< kMore pages each
  std::vector<SpacePage*> free_pages_;
  Intervals free_;          ///< of the memory for logs
  uint64_t log_bytes_ = 0;  ///< its size
};

}  // namespace migrate
