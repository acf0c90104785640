// One parasite visit: the mechanics (core/inject/README.md). Used by harvest() and make_userfaultfd().
#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/freeze/stopped_tree.h"
#include "core/freeze/tracee.h"
#include "core/inject/death_notice.h"
#include "core/inject/harvest.h"
#include "core/inject/parasite_protocol.h"
#include "core/inject/slot_code.h"

namespace migrate {

/// A shared mapping of ours; unmapped when it goes.
class SharedMapping {
 public:
  SharedMapping() = default;
  SharedMapping(int fd, size_t bytes);
  SharedMapping(SharedMapping&& o) noexcept : start_(std::exchange(o.start_, nullptr)), bytes_(o.bytes_) {}
  SharedMapping& operator=(SharedMapping&& o) noexcept {
    std::swap(start_, o.start_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~SharedMapping();
  std::byte* data() const { return static_cast<std::byte*>(start_); }
  size_t size() const { return bytes_; }

 private:
  void* start_ = nullptr;
  size_t bytes_ = 0;
};

/// Begin with the leader, then visit other threads one by one, then cure(). The destructor cures what is not cured.
class Visit {
 public:
  Visit(StoppedTask& task, const std::vector<int>& timer_ids, const FaultHook& hook, Logger& log);
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit();

  /// Maps M in the task, runs the parasite and waits until it has told all.
  void run_leader();
  /// The same for a userfaultfd with these features: what the task sees of it afterwards is area().uffd, a descriptor
  /// of the task until return_userfaultfd().
  void run_leader_for_userfaultfd(uint64_t features);
  /// Lets the parasite close it.
  void return_userfaultfd();
  /// Runs the slot's calls in `thread` (not the leader); it is cured again on return. The result is in area().thread
  /// but for return values, which are given.
  ThreadSlotResults run_thread(StoppedThread& thread);
  /// Lets nothing of ours stay in the task.
  void cure();

  /// M, as the task sees it too: copy a value before checking it.
  const parasite::Area& area() const { return *area_view(); }
  const parasite::Timer* timers() const { return parasite::timers_of(area_view()); }

 private:
  enum class Leader { untouched, stopped, running, cured, lost };

  void refuse_seccomp() const;
  void choose_places();
  void borrow(StoppedThread& thread, RemoteAddr rip, RemoteAddr rsp);
  void run_leader_call(std::string_view stage);
  void map_area();
  void start_parasite();
  void wait_for_done(Tid tid, uint32_t visits);
  /// Stops a running visited thread; false: it ran on by itself and is stopped somewhere of its own.
  bool stops_inside(const StoppedThread& thread) const;
  void give_back(StoppedThread& thread);
  void cure_leader();
  void clear_slots();
  void write(RemoteAddr at, std::span<const std::byte> bytes);
  void stage(const char* name) const {
    if (hook_) hook_(name);
  }
  parasite::Area* area_view() const { return reinterpret_cast<parasite::Area*>(mapping_.data()); }

  StoppedTask& task_;
  const std::vector<int>& timer_ids_;
  const FaultHook& hook_;
  Logger& log_;
  Fd mem_;
  RemoteRange place_;  ///< of both slots and their header
  RemoteRange area_;   ///< M
  SlotCode leader_code_;
  SharedMapping mapping_;                    ///< of M
  std::optional<DeathNotice> death_notice_;  ///< on a word in M, so after mapping_
  Leader leader_ = Leader::untouched;
  bool thread_lost_ = false;  ///< a thread ran on by itself: it may come back to its slot (from a signal handler)
  bool slots_written_ = false;
  parasite::Purpose purpose_ = parasite::kHarvest;
  uint64_t uffd_features_ = 0;
  bool uffd_lent_ = false;  ///< the parasite has it open, and waits
};

}  // namespace migrate
