#include "lazypages/space_record.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "core/base/error.h"
#include "lazypages/lazy_record.h"

namespace migrate {
namespace {

/// A change as it is recorded.
struct Recorded {
  uint64_t what_and_applied;  ///< PageChange::What, and above it the events that are applied with it
  uint64_t start, end, to;
};
static_assert(sizeof(Recorded) == SpacePage::kChangeBytes);

/// A log begins anew when it is full. With room for twice what it begins with, that costs little for each change. Each
/// fork has one.
constexpr uint64_t kLeastRoom = 16 << 10;

}  // namespace

std::span<const uffd_msg> SpacePage::outstanding() const {
  const size_t begin = std::min<uint64_t>(applied.load(std::memory_order_acquire) - first.load(), kSlots);
  size_t end = begin;
  while (end < kSlots && slots[end].event != 0) ++end;
  return std::span(slots).subspan(begin, end - begin);
}

SpaceRecord::SpaceRecord(std::shared_ptr<LazyRecord> record, MemoryId memory, int userfaultfd, int pagemap,
                         const MissingPages& missing, const SpaceRecord* parent)
    : record_(std::move(record)), page_(record_->take()) {
  page_->userfaultfd = userfaultfd;
  page_->pagemap = pagemap;
  page_->kind = static_cast<uint32_t>(memory.kind);
  page_->id = memory.id;
  if (parent != nullptr) {
    page_->fork_event = parent->page_->applied;
    page_->forked_from = record_->number_of(*parent->page_) + 1;
  }
  publish(missing);
}

SpaceRecord::SpaceRecord(std::shared_ptr<LazyRecord> record, Object object, int file, int held,
                         const MissingPages& missing)
    : record_(std::move(record)), page_(record_->take()) {
  page_->userfaultfd = file;
  page_->pagemap = held;
  page_->kind = static_cast<uint32_t>(MemoryId::Kind::shmem) | SpacePage::kObject;
  page_->id = object.id;
  page_->base = object.base;
  page_->bytes = object.bytes;
  publish(missing);
}

void SpaceRecord::publish(const MissingPages& missing) {
  try {
    begin_log(missing);
  } catch (...) {
    record_->give_back(page_);
    throw;
  }
  page_->used.store(1, std::memory_order_release);
  record_->step("space-recorded");
}

SpaceRecord::SpaceRecord(std::shared_ptr<LazyRecord> record, SpacePage& page, MissingPages& missing)
    : record_(std::move(record)), page_(&page) {
  const SpacePage::Log& from = log();
  mapped_bytes_ = from.bytes;
  mapped_ = record_->map({from.offset, from.bytes});
  missing = MissingPages::saved(std::span(reinterpret_cast<const uint64_t*>(mapped_), from.saved_words));
  const auto* changes = reinterpret_cast<const Recorded*>(mapped_ + from.saved_words * sizeof(uint64_t));
  for (const Recorded& r : std::span(changes, from.changes))
    missing.apply({static_cast<PageChange::What>(r.what_and_applied & 0xff), r.start, r.end, r.to});
}

SpaceRecord::~SpaceRecord() {
  ::munmap(mapped_, mapped_bytes_);
  if (page_->used != 0 && record_->outlasts()) return;
  end();
  record_->release({log().offset, log().bytes});
  record_->give_back(page_);
}

void SpaceRecord::end() noexcept {
  page_->used.store(0, std::memory_order_release);
  record_->step("space-ended");
}

/// From what is missing now.
void SpaceRecord::begin_log(const MissingPages& missing) {
  const bool first = mapped_ == nullptr;
  const uint32_t which = first ? 0 : 1 - page_->log;
  const uint64_t words = missing.words(), bytes = words * sizeof(uint64_t);
  const Extent extent = record_->allocate(bytes + std::max(kLeastRoom, 2 * bytes));
  std::byte* at = nullptr;
  try {
    at = record_->map(extent);
  } catch (...) {
    record_->release(extent);
    throw;
  }
  missing.save(std::span(reinterpret_cast<uint64_t*>(at), words));
  const Extent old{log().offset, log().bytes};
  SpacePage::Log& next = page_->logs[which];
  next.offset = extent.offset;
  next.bytes = extent.bytes;
  next.saved_words = words;
  next.changes.store(0, std::memory_order_relaxed);
  record_->step("log-written");
  page_->log.store(which, std::memory_order_release);
  record_->step("log-switched");
  if (!first) {
    ::munmap(mapped_, mapped_bytes_);
    record_->release(old);
  }
  mapped_ = at;
  mapped_bytes_ = extent.bytes;
}

std::span<const uffd_msg> SpaceRecord::read(int userfaultfd, uint64_t most) {
  if (const auto left = page_->outstanding(); !left.empty()) return left;
  // What is left of the last round must not look as if it had just been read.
  const uint64_t all = page_->applied.load(std::memory_order_relaxed);
  const uint64_t used = all - page_->first.load(std::memory_order_relaxed);
  for (uint64_t i = 0; i < used; ++i) page_->slots[i].event = 0;
  page_->first.store(all, std::memory_order_release);
  ssize_t n = 0;
  do {
    n = ::read(userfaultfd, page_->slots.data(), std::min<uint64_t>(most, SpacePage::kSlots) * sizeof(uffd_msg));
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return {};
  check(n, "read", "events of a userfaultfd");
  record_->step("events-read");
  return page_->outstanding();
}

void SpaceRecord::change(const PageChange& change, bool of_event, const MissingPages& missing) {
  const auto room = [&] { return (log().bytes - log().saved_words * sizeof(uint64_t)) / sizeof(Recorded); };
  if (log().changes.load(std::memory_order_relaxed) == room()) begin_log(missing);
  SpacePage::Log& to = log();
  const uint64_t n = to.changes.load(std::memory_order_relaxed);
  const uint64_t applied = page_->applied.load(std::memory_order_relaxed) + (of_event ? 1 : 0);
  new (mapped_ + to.saved_words * sizeof(uint64_t) + n * sizeof(Recorded))
      Recorded{static_cast<uint64_t>(change.what) | applied << 8, change.start, change.end, change.to};
  to.changes.store(n + 1, std::memory_order_release);
  record_->step(of_event ? "event-logged" : "change-logged");
}

void SpaceRecord::applied() {
  page_->applied.store(page_->applied.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  record_->step("event-applied");
}

}  // namespace migrate
