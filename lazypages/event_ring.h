// Where messages of userfaultfds are read to: memory of its own, so that none is lost with the process that read it.
#pragma once

#include <linux/userfaultfd.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {

/// One userfaultfd's messages: a page of the memory below. A message that was read is never told again, so the kernel
/// writes it straight here; slots from `applied` on that hold an event were read and are to be applied by whoever takes
/// over, also those that `read` does not count yet.
struct EventPage {
  static constexpr size_t kSlots = (kPageSize - 64) / sizeof(uffd_msg);
  uint64_t read;       ///< messages read in all: the next one goes to slot read % kSlots
  uint64_t applied;    ///< of these, applied
  int64_t descriptor;  ///< the userfaultfd's number; -1: the page is free
  uint64_t kind, id;   ///< whose pages are missing in it (MemoryId)
  uint64_t unused[3];
  std::array<uffd_msg, kSlots> slots;
};
static_assert(sizeof(EventPage) <= kPageSize && sizeof(uffd_msg) == 32);

/// The pages of all userfaultfds: a memfd that other processes can map.
class EventMemory {
 public:
  EventMemory();
  EventMemory(const EventMemory&) = delete;
  EventMemory& operator=(const EventMemory&) = delete;
  ~EventMemory();
  int fd() const { return fd_.get(); }

 private:
  friend class EventRing;
  static constexpr uint64_t kMore = 16;  ///< pages a mapping
  EventPage* take();
  void give_back(EventPage* page) noexcept;

  std::mutex mutex_;
  Fd fd_;
  std::vector<void*> mapped_;  ///< kMore pages each
  std::vector<EventPage*> free_;
};

class EventRing {
 public:
  explicit EventRing(std::shared_ptr<EventMemory> memory);
  EventRing(const EventRing&) = delete;
  EventRing& operator=(const EventRing&) = delete;
  ~EventRing();

  void belongs_to(int userfaultfd, uint64_t kind, uint64_t id);
  /// Messages to apply: those that were read and not applied yet, else those that wait, as many as there is room for in
  /// a row. None: nothing waits. Throws Error; `EMFILE` (a fork's descriptor finds no room) leaves the fork waiting.
  std::span<const uffd_msg> read(int userfaultfd);
  /// Counts one more message as applied.
  void applied() { ++page_->applied; }

 private:
  std::shared_ptr<EventMemory> memory_;
  EventPage* page_;
};

}  // namespace migrate
