// All address spaces of a tree that runs while pages of it are missing.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"
#include "lazypages/lazy_objects.h"
#include "lazypages/lazy_space.h"

namespace migrate {

/// Pages that arrive go wherever they are missing: to the task whose they were, and to all that were forked from it
/// since.
///
/// Any thread may call anything at any time, except that serve(), try_lose(), finish() and poison() are one thread's.
class LazyMemories : public PageSink {
 public:
  /// A task waits for this page of the source's; told once for each page until it arrives, by whichever thread finds
  /// out, and with no lock held. It must be quick: others wait meanwhile.
  using Wanted = std::function<void(MemoryId memory, uint64_t source)>;

  /// From here on tasks may run. Throws Corrupt if a memory's description does not fit together.
  LazyMemories(std::vector<LazyMemory> memories, Wanted wanted)
      : LazyMemories(std::move(memories), std::move(wanted), std::make_shared<LazyRecord>()) {}
  /// With a record that is shared and empty: adopted when this returns.
  LazyMemories(std::vector<LazyMemory> memories, Wanted wanted, std::shared_ptr<LazyRecord> record);
  /// Takes over what was adopted and recorded. Pages that had been asked for are asked for again by who waits for them.
  LazyMemories(std::shared_ptr<LazyRecord> record, Wanted wanted);
  /// If neither finish() nor poison() came before, and the record ends with it, what is missing reads as zeros from now
  /// on: end the tasks first.
  ~LazyMemories() override;

  /// `address` is the source's. Pages that nobody misses any more are dropped; pages that were never announced as
  /// missing: Corrupt, and nothing was touched. Waits while a task that has changed its memory has yet to run; what a
  /// task misses that waits in a fork is wanted once more when it goes on.
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override;

  /// One turn of the fault loop: waits at most so long for faults and other events, or until some memory has got its
  /// last page, and deals with them.
  void serve(std::chrono::milliseconds wait);
  /// Readable when serve() has something to do at once; it must be called every 50 ms all the same.
  int fd() const { return epoll_.get(); }

  /// Nothing is missing anywhere.
  bool whole() const { return missing_pages() == 0; }
  /// Counted once for each address space that misses them.
  uint64_t missing_pages() const;
  /// What is missing somewhere, each page once, with the source's addresses.
  std::map<MemoryId, std::vector<PageRun>> missing() const;
  /// Pages that were asked for by `wanted` and have not arrived: to be asked for again after a lost connection.
  std::map<MemoryId, std::vector<uint64_t>> outstanding() const;
  size_t spaces() const;

  /// Forks wait when what is known of all spaces would take more bytes. At first SpaceRoom::kMost, a sixteenth
  /// of what is missing, and what the spaces take that were not forked.
  void allow(uint64_t most) { around_->room->allow(most); }
  uint64_t used() const { return around_->room->used(); }
  /// How often one was made to wait so, or for a descriptor, or once more.
  uint64_t refusals() const { return around_->room->refusals(); }

  /// Gives all memory back to the kernel, when it is whole (else throws Error): no task is left waiting, and pages that
  /// no task ever touched are zeros without us.
  void finish();
  /// What is missing of this memory is lost: whoever touches it gets SIGBUS from now on; of shared memory, any of it.
  /// False: not all yet, to be called again after another serve(). Throws Error where the kernel cannot (before 6.6).
  [[nodiscard]] bool try_lose(MemoryId memory);
  /// Missing pages are lost: whoever touches one gets SIGBUS from now on, as for a hardware error. Throws Error where
  /// the kernel cannot (before 6.6); nothing was given back then, but shared memory is cut to no size. Else ends like
  /// finish().
  void poison();

 private:
  using Space = std::shared_ptr<LazySpace>;
  struct Memory {
    Intervals announced;
    std::set<uint64_t> asked;
    Intervals passed_over;             ///< came while a fork waited, and are to be asked for again
    std::map<uint64_t, Space> spaces;  ///< that miss pages of it, by id
  };

  LazyMemories(Wanted wanted, std::shared_ptr<LazyRecord> record);
  void add(const Space& space);
  void write_shared(LazyObject& object, uint64_t offset, std::span<const std::byte> data);
  void note_come(MemoryId memory, uint64_t address, uint64_t bytes, bool filled);
  void tell_mappings(uint64_t place, uint64_t bytes) const;
  std::pair<MemoryId, uint64_t> origin_of(MemoryId memory, uint64_t source) const;
  Space next_space(std::optional<MemoryId> memory, uint64_t after, uint64_t& id) const;
  void ask(MemoryId memory, const std::vector<uint64_t>& sources);
  void ask_again();
  void turn(uint64_t id);
  void let_try_again();
  void bury_dead();
  void have_spares();
  bool make_room();
  void allow_announced();
  void finish_all(bool poisons);

  Wanted wanted_;
  Fd epoll_;
  Fd filled_;  ///< eventfd, in epoll_: a space has got its last page
  std::shared_ptr<LazySurroundings> around_;
  mutable std::mutex mutex_;  ///< the last to be taken, after a space's
  std::map<MemoryId, Memory> memories_;
  std::map<uint64_t, Space> spaces_;  ///< a fork comes after what it was forked from
  uint64_t last_id_ = 0;
  std::vector<Fd> spares_;      ///< descriptors to close when a fork finds no room for its own
  std::set<uint64_t> again_;    ///< spaces with something left to do
  std::set<uint64_t> starved_;  ///< spaces that are not looked at before `until_`
  std::chrono::steady_clock::time_point until_;
  std::chrono::microseconds pause_{SpaceRoom::kTryAgain};  ///< before they are
  std::chrono::steady_clock::time_point looked_for_dead_;
};

}  // namespace migrate
