// A model of a kernel with soft-dirty bits and of programs that change their memory at random, for kernels that have
// none: what /proc would tell of them, with the traps that such kernels are known for.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/memory/soft_dirty.h"

namespace migrate {

class SoftDirtyModel {
 public:
  struct Quirks {
    bool hidden_frames = false;     ///< pagemap does not tell frame numbers (no CAP_SYS_ADMIN)
    bool no_exclusive_bit = false;  ///< before Linux 4.2
    bool merges_pages = false;      ///< KSM runs
    bool dumps_zero_pages = false;  ///< no PAGEMAP_SCAN: the dumper takes the page of zeros for any other
  };
  SoftDirtyModel(uint64_t seed, Quirks quirks);
  ~SoftDirtyModel();

  /// That many random steps of random tasks; none while the tree is stopped.
  void run(uint64_t steps);
  /// The tree of task 1. Between any two looks at it the tasks run on, unless it is stopped.
  std::shared_ptr<TrackBackend> backend();
  /// All that exists, as the dumper would offer it.
  std::vector<PageSource> everything() const;
  size_t tasks() const { return tasks_.size(); }

 private:
  class Files;
  class Backend;
  struct Page {
    enum class Kind { anonymous, swapped, zero, huge_zero, file } kind = Kind::anonymous;
    bool dirty = false;
    bool shared = false;  ///< with another task, or merged
    bool pinned = false;  ///< for a device; clear_refs leaves it alone
  };
  struct Area {
    uint64_t start = 0, end = 0;  ///< page numbers
    bool dirty = false;           ///< VM_SOFTDIRTY: all of it reads as soft-dirty
    bool file = false, mergeable = false;
  };
  struct Memory {
    std::map<uint64_t, Page> pages;
    std::map<uint64_t, Area> areas;
    Fd contents;  ///< at their addresses
    bool dead = false;
    uint64_t generation = 0;
  };
  struct Task {
    pid_t pid = 0, parent = 0;
    bool alive = true;
    std::shared_ptr<Memory> memory;
  };
  struct Piece {
    uint64_t start, end;
  };

  uint64_t below(uint64_t n) { return random_() % n; }
  Piece piece();
  std::shared_ptr<Memory> new_memory();
  void step(Task& task);
  void touch(Memory& m, uint64_t page, bool write);
  void look_at_huge(Memory& m);
  void drop(Memory& m, Piece p);
  void cut(Memory& m, Piece p);
  void map(Memory& m, Piece p, bool file);
  void move(Memory& m, Piece from, uint64_t to);
  void collapse(Memory& m);
  void merge_pages(Memory& m);
  void fork(Task& parent);
  void exit(Task& task);
  static const Area* area_at(const Memory& m, uint64_t page);
  uint64_t word(const Memory& m, uint64_t page) const;
  static void clear_refs(Memory& m);
  std::string maps_of(const Task& task, bool details) const;

  std::mt19937_64 random_;
  Quirks quirks_;
  unsigned paused_ = 0;
  uint64_t generations_ = 0;
  std::map<pid_t, std::shared_ptr<Task>> tasks_;
};

}  // namespace migrate
