// Reads and writes at given offsets, several in flight: io_uring(7), or plain calls where it is forbidden or unknown.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

struct io_uring;

namespace migrate {

/// Carries reads and writes out beside the caller, in any order. All come to their end: short ones are continued, and
/// what io_uring fails to do is done by plain calls, whose error counts.
///
/// The kernel's threads that work for a process stay with it until it ends or executes a program, also when the ring is
/// gone. Not safe for several threads.
class IoRing {
 public:
  enum class Way {
    ring,   ///< io_uring for what is large; from the first such operation on there is a ring
    calls,  ///< plain calls only: each operation is done when it is begun
  };
  /// Way::ring, unless the environment has MIGRATE_IO=calls, for measurements (bench/).
  static Way usual_way();

  struct Done {
    uint64_t tag = 0;
    size_t bytes = 0;  ///< that came through, before the error too; fewer than asked for: the end of the file
    int error = 0;     ///< errno
  };

  /// At most `depth` operations are in flight.
  explicit IoRing(unsigned depth, Way way = usual_way());
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;
  ~IoRing();  ///< waits for what is in flight

  /// Begins an operation, which wait() or poll() tell the end of by its `tag`. Descriptor and memory must stay until
  /// then. Waits for another to end if `depth` are in flight.
  void read(uint64_t tag, int fd, std::span<const iovec> into, uint64_t offset);
  void write(uint64_t tag, int fd, std::span<const iovec> from, uint64_t offset);
  /// The next operation that has ended and was not told yet; wait() needs one that was begun.
  Done wait();
  std::optional<Done> poll();
  /// Operations that were begun and not told.
  size_t pending() const { return in_flight_ + done_.size(); }

 private:
  struct Op {
    uint64_t tag = 0;
    bool write = false;
    int fd = -1;
    uint64_t offset = 0;
    std::vector<iovec> parts;
    size_t bytes = 0, total = 0;  ///< that are through; of all
  };
  struct Close {
    void operator()(::io_uring* ring) const;
  };

  void begin(Op op);
  bool submit(size_t slot);
  /// Takes what has ended from the ring; waits for one.
  void reap(bool wait);
  void end(Op& op, int result);
  void by_calls(Op& op);
  bool make_ring();

  Way way_;
  unsigned depth_;
  std::unique_ptr<::io_uring, Close> ring_;
  std::vector<Op> ops_;  ///< by slot
  std::vector<size_t> free_;
  size_t in_flight_ = 0;
  std::deque<Done> done_;
};

}  // namespace migrate
