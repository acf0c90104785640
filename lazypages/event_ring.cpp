#include "lazypages/event_ring.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/base/error.h"

namespace migrate {

EventMemory::EventMemory() : fd_(check(::memfd_create("migrate-events", MFD_CLOEXEC), "make memory for", "events")) {}

EventMemory::~EventMemory() {
  for (void* at : mapped_) ::munmap(at, kMore * kPageSize);
}

EventPage* EventMemory::take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    const uint64_t pages = mapped_.size() * kMore;
    mapped_.reserve(mapped_.size() + 1);
    free_.reserve(pages + kMore);
    check(::ftruncate(fd_.get(), static_cast<off_t>((pages + kMore) * kPageSize)), "grow memory for", "events");
    void* at = ::mmap(nullptr, kMore * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(),
                      static_cast<off_t>(pages * kPageSize));
    if (at == MAP_FAILED) throw Error("map memory for", "events", errno);
    mapped_.push_back(at);
    for (uint64_t i = kMore; i-- > 0;) {
      auto* page = reinterpret_cast<EventPage*>(static_cast<std::byte*>(at) + i * kPageSize);
      page->descriptor = -1;
      free_.push_back(page);
    }
  }
  EventPage* page = free_.back();
  free_.pop_back();
  return page;
}

void EventMemory::give_back(EventPage* page) noexcept {
  const std::lock_guard lock(mutex_);
  std::memset(page, 0, sizeof *page);
  page->descriptor = -1;
  free_.push_back(page);  // there was room for it before
}

EventRing::EventRing(std::shared_ptr<EventMemory> memory) : memory_(std::move(memory)), page_(memory_->take()) {}

EventRing::~EventRing() { memory_->give_back(page_); }

void EventRing::belongs_to(int userfaultfd, uint64_t kind, uint64_t id) {
  page_->kind = kind;
  page_->id = id;
  page_->descriptor = userfaultfd;
}

std::span<const uffd_msg> EventRing::read(int userfaultfd) {
  if (page_->applied < page_->read)
    return {&page_->slots[page_->applied % EventPage::kSlots], page_->read - page_->applied};
  const size_t first = page_->read % EventPage::kSlots;
  const size_t room = std::min(EventPage::kSlots - first, EventPage::kSlots / 2);
  // What is left of the last round must not look as if it had just been read.
  for (size_t i = first; i < first + room; ++i) page_->slots[i].event = 0;
  ssize_t n = 0;
  do {
    n = ::read(userfaultfd, &page_->slots[first], room * sizeof(uffd_msg));
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return {};
  check(n, "read", "events of a userfaultfd");
  const auto count = static_cast<size_t>(n) / sizeof(uffd_msg);
  page_->read += count;
  return {&page_->slots[first], count};
}

}  // namespace migrate
