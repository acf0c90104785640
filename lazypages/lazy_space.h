// One address space of which pages are missing: its userfaultfd, and what its events say.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/lazy_memory.h"
#include "lazypages/guards.h"
#include "lazypages/lazy_objects.h"
#include "lazypages/lazy_record.h"
#include "lazypages/missing_pages.h"
#include "lazypages/space_record.h"
#include "lazypages/space_room.h"
#include "lazypages/userfault.h"

namespace migrate {

class LazySpace;

/// What the spaces of a tree share. The functions are called with a space's lock held: they call no space.
struct LazySurroundings {
  std::shared_ptr<LazyRecord> record;
  std::shared_ptr<LazyObjects> objects;
  std::shared_ptr<SpaceRoom> room;
  /// A fork's memory, before any page comes into the memory that it was forked from.
  std::function<void(std::shared_ptr<LazySpace>)> forked;
  /// The table of descriptors is full and a fork waits for one. True: one was closed.
  std::function<bool()> make_room;
};

/// Any thread may call anything. Events are read and applied, and pages put in, under one lock, so that no page is put
/// in between: a page is put where it is missing now, or not at all. Once the memory is dead every call does nothing.
class LazySpace {
 public:
  LazySpace(LazyMemory memory, std::shared_ptr<const LazySurroundings> around);
  /// Takes over what is recorded; resume() before anything else, once all of the tree's are made.
  LazySpace(SpacePage& page, std::shared_ptr<const LazySurroundings> around);
  LazySpace(const LazySpace&) = delete;
  LazySpace& operator=(const LazySpace&) = delete;
  /// Its descriptors stay open if the record outlasts this process.
  ~LazySpace();

  MemoryId memory() const { return memory_; }
  int userfaultfd() const { return userfaultfd_.get(); }
  /// Changes what `epoll` is told for of the userfaultfd, which it watches as `id`.
  void watch(int epoll, uint64_t id, uint32_t events);

  /// Applies what the last owner had read and not applied; whoever waits for a page touches it again.
  void resume();

  enum class Turn : uint8_t {
    idle,     ///< nothing waits
    again,    ///< a task must run first: call again soon
    starved,  ///< a fork waits for a descriptor, or for memory of ours
    dead,
  };
  /// Reads what waits, applies it, and answers faults on pages that are not missing. Those on missing ones add to
  /// `wanted`, by source address, once for each fault.
  Turn serve(std::vector<uint64_t>& wanted);

  /// Puts pages that have come where they are missing, if they are; waits until that is possible. Faults met add to
  /// `wanted`. False: not all, since a fork waits, for how long nobody knows.
  bool fill(uint64_t source, std::span<const std::byte> data, std::vector<uint64_t>& wanted);

  /// Of shared mappings: pages of the objects have come, or will never.
  void came(uint64_t place, uint64_t bytes);

  // These wait for nobody, and false is: not now, or not all yet. All spaces of a tree are to be tried in turn: a task
  // that forks tells the userfaultfds that it has one after the other, and waits each time.
  /// All missing pages raise SIGBUS from now on.
  bool try_poison();
  /// Gives the memory back to the kernel: pages that are missing then read as zeros. No task is left waiting.
  bool try_finish();

  bool dead() const { return dead_; }
  /// Asks the kernel whether it is: nothing tells of the end of a memory (by execve(2), or of its last task).
  void find_dead();
  uint64_t missing_pages() const;
  std::vector<MissingRun> missing() const;

 private:
  LazySpace(int userfaultfd, const LazySpace& parent);

  void change(const PageChange& change, bool of_event = false);
  void settle(RemoteRange range);
  void unmapped(RemoteRange range);
  void count();
  bool read_events();
  std::span<const uffd_msg> read_some();
  void apply(const uffd_msg& message);
  void apply_fork(int descriptor);
  void let_go_on(RemoteRange range);
  void let_all_go_on();
  void wake_all() const;
  bool answer_faults(std::vector<uint64_t>& wanted);
  bool put_zeros(uint64_t address);
  bool shared() const { return memory_ == kSharedMappings; }
  bool answer_shared(uint64_t address, std::vector<uint64_t>& wanted);
  bool show(uint64_t address, uint64_t place = 0, std::vector<uint64_t>* wanted = nullptr);
  bool put_pages(MissingRun run, std::span<const std::byte> data);
  bool came_to(MissingRun run, Filled outcome, uint64_t bytes);
  bool drop_guards(const MissingRun& run);
  void drop_all_guards();
  bool settle_moves();
  bool settle_doubts();
  bool unregister_all();
  void close();

  MemoryId memory_;
  std::shared_ptr<const LazySurroundings> around_;
  mutable std::mutex mutex_;
  std::atomic<int> hurried_{0};  ///< threads that want the lock for a fault: long fills give way
  std::atomic<bool> dead_{false};
  MissingPages missing_;
  GuardScan guards_;
  SpaceRecord record_;
  SpaceShare share_;
  Fd userfaultfd_;
  std::deque<uint64_t> faults_;    ///< read, not answered yet
  std::set<uint64_t> waited_for_;  ///< missing pages that a fault was read for
  bool asks_on_ = false;           ///< more is in doubt than was asked about
  bool starved_ = false;
  std::chrono::steady_clock::time_point until_;  ///< a fork waits for memory, and is not asked for before
  int finish_tries_ = 0;
  // Of shared mappings:
  bool parked_ = false;                 ///< somebody waits at a place that is not known, until all has come
  std::map<uint64_t, uint64_t> holes_;  ///< who waits for others of the block, and where the hole is among objects
};

}  // namespace migrate
