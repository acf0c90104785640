// One parasite visit: the mechanics (core/inject/README.md). Used by harvest() and make_userfaultfd().
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/base/held_lock.h"
#include "core/freeze/stopped_tree.h"
#include "core/freeze/tracee.h"
#include "core/inject/answers.h"
#include "core/inject/area_mapping.h"
#include "core/inject/death_notice.h"
#include "core/inject/domain_witness.h"
#include "core/inject/harvest.h"
#include "core/inject/parasite_protocol.h"
#include "core/inject/slot_code.h"
#include "core/inject/thread_checks.h"

namespace migrate {

/// Begin with the leader, then visit other threads one by one, then cure(). The destructor cures what is not cured.
///
/// What comes through the task's memory (M, the slots) is what whoever can write that memory wants it to be: it is
/// copied and bounded, and tells only what harms nobody but the task if it is a lie. What would give a program
/// something comes in registers at the exit of a call, of which the kernel tells that it was made.
class Visit {
 public:
  /// Throws Refusal for what can be seen not to work, with nothing touched. `witnesses` lives as long as this.
  Visit(StoppedTask& task, const std::vector<int>& timer_ids, DomainWitnesses& witnesses, const FaultHook& hook,
        Logger& log);
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit();

  /// Maps M in the task, runs the parasite and waits until it has told all. Throws Refusal for a task in a landlock
  /// domain, or one that may not map M.
  void run_leader();
  /// The same for a userfaultfd with these features: what the task sees of it afterwards is area().uffd, a descriptor
  /// of the task until return_userfaultfd().
  void run_leader_for_userfaultfd(uint64_t features);
  /// Lets the leader take or give up `locks`, by calls of its own; no parasite runs. The results: 0, or a negative
  /// errno.
  std::vector<int64_t> run_leader_for_locks(std::span<const HeldLock> locks, bool take);
  /// Lets the parasite close it.
  void return_userfaultfd();
  /// Runs the slot's calls in `thread` (not the leader); it is cured again on return. The result is
  /// visited_thread() but for return values, which are given. Throws Refusal as run_leader().
  ThreadSlotResults run_thread(StoppedThread& thread);
  /// Lets nothing of ours stay in the task.
  void cure();

  /// What M has at this moment (answers.h looks at it).
  parasite::Area area() const { return copy_once(*area_view()); }
  parasite::Thread visited_thread() const { return copy_once(area_view()->thread); }
  parasite::Timer timer(size_t index) const { return copy_once(parasite::timers_of(area_view())[index]); }
  /// PR_GET_SECUREBITS of the leader, from its registers; after run_leader().
  int64_t securebits() const { return securebits_; }
  /// Of the task, before the visit: those that are asked for their memory policies.
  std::span<const AskedMapping> mappings() const { return mappings_; }
  /// Of a thread that was visited, as it was before. A thread that was inside a critical section goes on at the abort
  /// address: nothing protects it any more, since the kernel forgets the section during the visit.
  const RseqState& rseq(Tid tid) const { return rseq_.at(tid); }

 private:
  enum class Leader { untouched, stopped, running, cured, lost };

  void refuse_seccomp(const ThreadStatus& of_leader) const;
  void choose_places();
  void leave_critical_section(StoppedThread& thread);
  void borrow(StoppedThread& thread, RemoteAddr rip);
  void run_leader_call(const char* stage);
  int64_t call_in_leader(RemoteAddr at, long number, const std::array<uint64_t, 6>& args, const char* stage);
  void ask_leader();
  void enter_leader();
  int64_t lock_in_leader(const HeldLock& lock, bool take);
  int64_t map_part(RemoteAddr at, RemoteRange range, int protection, const char* stage);
  void map_area();
  [[noreturn]] void refuse_landlock(Tid tid) const;
  [[noreturn]] void explain_failed_mapping(int error) const;
  void write_code();
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
  std::vector<AskedMapping> mappings_;
  DomainWitnesses& witnesses_;
  const FaultHook& hook_;
  Logger& log_;
  Fd mem_;
  RemoteRange place_;  ///< of both slots and their header
  RemoteRange area_;   ///< M
  RemoteAddr code_;    ///< the part of M for the parasite's code, up to its end
  SlotCode leader_code_;
  SharedMapping mapping_;                    ///< of M, or of what is before its code if that is a mapping of its own
  SharedMapping code_mapping_;               ///< of that
  std::optional<DeathNotice> death_notice_;  ///< on a word in M, so after mapping_
  std::map<Tid, RseqState> rseq_;
  int64_t securebits_ = 0;
  uint64_t own_number_ = 0;                 ///< of the task, in its pid namespace
  uint64_t witness_ = 0;                    ///< there, too; 0: none
  uint32_t visits_ = 0;                     ///< how far `done` is counted up by what has been visited
  int64_t until_sec_ = 0, until_nsec_ = 0;  ///< for threads: the end of their wait
  Leader leader_ = Leader::untouched;
  bool thread_lost_ = false;  ///< a thread ran on by itself: it may come back to its slot (from a signal handler)
  bool slots_written_ = false;
  parasite::Purpose purpose_ = parasite::kHarvest;
  uint64_t uffd_features_ = 0;
  bool uffd_lent_ = false;  ///< the parasite has it open, and waits
};

}  // namespace migrate
