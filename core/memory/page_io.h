// Where page contents come from and go to: the seam between the core and whatever carries pages (image files, a TLS
// stream). An address is in a task's final address space, or an offset in a shared memory object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {

/// Which memory a page belongs to: the private pages of task `id`, or the shared memory object `id` (shmid).
struct MemoryId {
  enum class Kind : uint8_t { task = 1, shmem = 2 } kind = Kind::task;
  uint64_t id = 0;
  auto operator<=>(const MemoryId&) const = default;
};

/// For people.
inline std::string name_of(MemoryId memory) {
  return (memory.kind == MemoryId::Kind::task ? "task " : "shared memory ") + std::to_string(memory.id);
}

/// Takes pages. Several threads call write() at the same time, each for different pages (also of the same memory): an
/// implementation must be safe for that. Memory ids and addresses may come from the network: unknown ones are thrown
/// out (Corrupt) before anything is touched. Addresses and sizes are multiples of the page size.
class PageSink {
 public:
  virtual ~PageSink() = default;
  /// `data` is valid during the call only.
  virtual void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) = 0;
};

/// A run of pages that exist in a memory and must be carried (pages that are absent here read as zero, or as the
/// file's content in file-private mappings).
struct PageRun {
  uint64_t address = 0;
  uint64_t pages = 0;
  /// Pages that read as zero may be left out, since the destination's fresh memory reads as zero too: private anonymous
  /// memory and new shared objects. Never for file-private memory (absent there means the file's content), nor for
  /// pages that were sent before with other contents.
  bool zero_ok = false;
};

/// The pages of one memory, and the descriptor to pread(2) them from at their address (`/proc/PID/mem`, or the shared
/// object itself). Plain data and a descriptor, so that it can be handed to another process. Reading never stops or
/// changes the task; short reads mean that the task is gone, unless `may_vanish`.
struct PageSource {
  MemoryId memory;
  std::vector<PageRun> runs;  ///< ascending, disjoint
  Fd fd;
  /// The task runs: pages that cannot be read (EIO, short reads) have vanished and are left out.
  bool may_vanish = false;
  uint64_t pages() const {
    uint64_t n = 0;
    for (const PageRun& run : runs) n += run.pages;
    return n;
  }
};

}  // namespace migrate
