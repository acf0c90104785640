// Processes that share one table of descriptors, so that it outlives any one of them.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>

namespace migrate {

/// Who they are: plain data in memory that all of them share. Each place's descriptors keep their numbers: a new
/// member's pidfd is put over the old one's, so that a number never comes to mean something else.
struct HolderTable {
  struct Member {
    std::atomic<uint64_t> id{0};      ///< never used again; 0: nobody
    std::atomic<uint64_t> placed{0};  ///< the member that was told its place last
    uint32_t seat = 0;
    int32_t pidfd = -1;
    int32_t bell = -1;  ///< eventfd: somebody has changed
  };
  /// A member that is being made: the kernel writes both numbers before it runs, also for a maker that is being killed
  /// (the pid alone if the table is full: the pidfd follows).
  struct Making {
    std::atomic<uint64_t> id{0};
    uint32_t place = 0;
    uint32_t seat = 0;
    int32_t pidfd = -1;
    pid_t pid = 0;  ///< 0: it does not exist
  };
  static constexpr unsigned kDaemon = 0;  ///< its place; holders have the others

  std::atomic<uint64_t> last_id{0};
  std::atomic<uint64_t> claim{0};  ///< the member that may change who they are
  std::array<Member, 3> members;
  Making making;
  std::atomic<uint32_t> generation{0};  ///< of daemons, from 0 on
  std::atomic<uint32_t> all_leave{0};
  /// Descriptors to close when the table has no room for a new member's; -1: used up. More than one, since the daemon's
  /// forks may be quicker.
  std::array<std::atomic<int32_t>, 4> spares{-1, -1, -1, -1};

  bool dead(unsigned place) const;
  /// No holder is left.
  bool alone() const { return dead(1) && dead(2); }
  /// Both holders have been told their places.
  bool all_placed() const;
};

/// Reaps members that this process made and that have ended; its other children are left alone.
void reap_members() noexcept;

/// One of the members: a daemon, and two holders, which only wait for the end of others. A dead holder is made again by
/// the other one; a dead daemon is followed by a holder, which makes another one for its own place before. Holders have
/// no threads, so that they can be copied; while the daemon runs it makes nobody.
///
/// Besides its place, which changes when it becomes the daemon, each has a seat, 0 to 2, from its beginning to its end:
/// no two of those who live have the same one. The first daemon has seat 0.
class Holders {
 public:
  struct Hooks {
    /// In each new member, and in one that became the daemon. Not with the claim in a holder: it may take its time, and
    /// opens and closes no descriptor.
    std::function<void(unsigned place, unsigned seat)> placed;
    std::function<void()> taken_over;            ///< in a new daemon, while nobody else opens or closes descriptors
    std::function<void(const char* name)> step;  ///< for tests, which kill there
  };
  /// The caller becomes the daemon. `table` is in shared memory which is locked.
  Holders(HolderTable& table, Hooks hooks);

  /// Makes the holders, each of which returns from here too. Throws Error.
  void start();
  bool is_daemon() const { return place_ == HolderTable::kDaemon; }
  /// In a holder: returns when it has become the daemon, also in those that are made meanwhile. If all leave, exits.
  void hold();
  /// In the daemon, without threads, when it is alone: makes the holders again, each of which returns from here too.
  /// Throws Error.
  void refill();
  /// In the daemon: returns when the holders are gone.
  void leave();

 private:
  class Claim;

  void open_descriptors();
  bool make(unsigned place);
  uint32_t free_seat(unsigned place) const;
  void settle();
  int open_member(pid_t pid);
  void take_over();
  void fill_places();
  void put_over(unsigned place, int pidfd) const;
  void ring() const;
  void wait() const;
  bool is_gone(uint64_t id) const;
  void step(const char* name) const {
    if (hooks_.step) hooks_.step(name);
  }

  HolderTable& table_;
  Hooks hooks_;
  uint64_t id_ = 0;
  unsigned place_ = HolderTable::kDaemon;
  uint32_t seat_ = 0;
};

}  // namespace migrate
