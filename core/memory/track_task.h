// One task of a tree whose memory is tracked by write protection: its userfaultfd, and what its scans tell.
#pragma once

#include "core/base/procfs.h"
#include "core/inject/domain_witness.h"
#include "core/memory/mapping_reader.h"
#include "core/memory/track_backend.h"
#include "core/memory/track_mappings.h"

namespace migrate {

class TrackedTask final : public TaskTracker {
 public:
  /// Throws Error (ESRCH, ENOENT) if there is no such task any more.
  TrackedTask(pid_t pid, std::shared_ptr<const MappingReader> reader, std::shared_ptr<DomainWitnesses> witnesses);
  /// Unregisters everything and puts huge pages back.
  ~TrackedTask() override;

  bool ends_within(std::chrono::milliseconds time) const override;
  bool memory_is_current() const override;
  /// Stops the task for a moment and takes over a userfaultfd for its present memory. Throws Refusal for what would be
  /// refused at the end, too.
  bool visit(std::chrono::milliseconds timeout, const FaultHook& hook, Logger& log) override;
  bool visited() const override { return static_cast<bool>(uffd_); }
  /// Registers what is new, scans and protects; the task runs.
  std::optional<Scan> scan(const TrackRules& rules, const FaultHook& hook) override;
  PageSet clean(const PageSet& known, PageSet& written) const override;
  std::vector<StopMark> stops() const override { return stops_; }
  uint32_t securebits() const override { return securebits_; }
  Fd memory() const override { return mem_.dup(); }

 private:
  void end();
  MemoryIdentity identity() const { return MemoryIdentity::of(proc_.stat()); }
  uint64_t leader_switches() const;
  void read_mappings();
  std::optional<PageSet> scan_mapping(const Vma& vma, const TrackRules& rules, const FaultHook& hook);
  bool register_mapping(const Vma& vma);
  bool register_range(PageSet::Range range);
  std::optional<PageSet::Range> anonymous_around(uint64_t address) const;
  bool is_still_there(const Vma& vma) const;
  PageSet take_back_registrations();

  pid_t pid_;
  std::shared_ptr<const MappingReader> reader_;
  std::shared_ptr<DomainWitnesses> witnesses_;
  ProcDir proc_;
  Fd pidfd_;
  Fd uffd_, pagemap_, mem_, maps_;  ///< of one memory
  MemoryIdentity identity_;
  std::vector<StopMark> stops_;  ///< of the leader, which the visits run in
  uint32_t securebits_ = 0;      ///< of the leader, at the last visit
  bool cannot_visit_ = false;    ///< that memory
  bool mapping_queries_ = true;  ///< PROCMAP_QUERY, Linux 6.11
  std::string maps_text_;        ///< that mappings_ was read for
  std::vector<Vma> mappings_;    ///< private anonymous ones
  std::vector<Vma> private_files_;
  PageSet registered_;       ///< by the scan that is going on
  PageSet unseen_;           ///< registered, and not scanned since
  PageSet huge_, new_huge_;  ///< mapped by huge pages when they were protected; by the scan that is going on
};

}  // namespace migrate
