// Dirty tracking by soft-dirty bits (CONFIG_MEM_SOFT_DIRTY; Documentation/admin-guide/mm/soft-dirty.rst), for kernels
// without PAGEMAP_SCAN: writing 4 to /proc/PID/clear_refs clears bit 55 of each page in /proc/PID/pagemap, the next
// write to the page sets it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/memory/track_backend.h"
#include "core/memory/track_mappings.h"

namespace migrate {

/// The files of one task's /proc folder that this uses. Tests put a model of a kernel in their place.
class SoftDirtyFiles {
 public:
  SoftDirtyFiles() = default;
  SoftDirtyFiles(const SoftDirtyFiles&) = delete;
  SoftDirtyFiles& operator=(const SoftDirtyFiles&) = delete;
  virtual ~SoftDirtyFiles() = default;

  /// "maps", "smaps", "stat". Throws Error (ESRCH, ENOENT) if the task is gone.
  virtual std::string read(const std::string& name) const = 0;
  /// Whether the task's paths are not ours.
  virtual bool own_root() const = 0;
  virtual bool ends_within(std::chrono::milliseconds time) const = 0;
  /// Opens pagemap and mem: of the memory that the task has now.
  virtual void attach() = 0;
  /// Words of that memory's pagemap, from page number `first` on. Fewer than asked for: nobody uses it any more.
  virtual size_t pagemap(uint64_t first, std::span<uint64_t> words) const = 0;
  virtual Fd memory() const = 0;
  /// For the memory that the task has now.
  virtual void clear_refs() const = 0;
  /// Whether the page with this frame number, mapped at page number `page`, is the page of zeros or a part of the huge
  /// one. nullopt: that cannot be known.
  virtual std::optional<bool> is_zero_page(uint64_t frame, uint64_t page) const = 0;
  /// Whether this machine merges equal pages now (KSM).
  virtual bool merges_pages() const = 0;
};

std::unique_ptr<SoftDirtyFiles> real_soft_dirty_files(pid_t pid);

/// scan() is to be called with all possible writers stopped (TrackBackend::pause()).
class SoftDirtyTask final : public TaskTracker {
 public:
  explicit SoftDirtyTask(std::unique_ptr<SoftDirtyFiles> files) : files_(std::move(files)) {}

  bool ends_within(std::chrono::milliseconds time) const override { return files_->ends_within(time); }
  bool memory_is_current() const override;
  bool visit(std::chrono::milliseconds timeout, const FaultHook& hook, Logger& log) override;
  bool visited() const override { return visited_; }
  std::optional<Scan> scan(const TrackRules& rules, const FaultHook& hook) override;
  PageSet clean(const PageSet& known, PageSet& written) const override;
  Fd memory() const override { return files_->memory(); }

 private:
  struct Pages {
    PageSet existing, written, copies;
  };
  void read_mappings();
  bool read_pages(PageSet::Range range, Pages& pages) const;
  void judge(uint64_t word, uint64_t page, Pages& pages) const;

  std::unique_ptr<SoftDirtyFiles> files_;
  bool visited_ = false;
  TrackRules rules_;  ///< of the last scan
  MemoryIdentity identity_;
  std::string maps_text_;  ///< that the rest was read for
  bool vast_ = false;      ///< there is a mapping that may be left out for its size
  std::vector<Vma> areas_, tracked_, private_files_;
  uint64_t left_pages_ = 0;
};

}  // namespace migrate
