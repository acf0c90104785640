#include "lazypages/lazy_record.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/base/error.h"
#include "core/base/fd.h"

namespace migrate {
namespace {

constexpr std::string_view kRecordText = "the record of lazy memory";

uint64_t bytes_of(int fd) {
  struct stat file {};
  check(::fstat(fd, &file), "look at", kRecordText);
  return static_cast<uint64_t>(file.st_size);
}

}  // namespace

LazyRecord::LazyRecord() : own_(std::make_unique<RecordRoot>()), root_(own_.get()) { make(*root_); }

LazyRecord::LazyRecord(RecordRoot& root, Step step) : root_(&root), step_(std::move(step)) {
  log_bytes_ = bytes_of(root_->logs);
  map_pages();
  settle_pages();
  find_free();
}

LazyRecord::~LazyRecord() {
  for (SpacePage* pages : mapped_) ::munmap(pages, kMore * kPageSize);
  if (!own_) return;
  ::close(root_->pages);
  ::close(root_->logs);
}

void LazyRecord::make(RecordRoot& root) {
  Fd pages(check(::memfd_create("migrate-lazy-pages", MFD_CLOEXEC), "make memory for", kRecordText));
  Fd logs(check(::memfd_create("migrate-lazy-logs", MFD_CLOEXEC), "make memory for", kRecordText));
  root.pages = pages.release();
  root.logs = logs.release();
}

template <class F>
void LazyRecord::for_pages(F&& what) const {
  for (SpacePage* pages : mapped_) {
    for (uint64_t i = 0; i < kMore; ++i) what(pages[i]);
  }
}

/// All that the memfd has.
void LazyRecord::map_pages() {
  const uint64_t mappings = bytes_of(root_->pages) / (kMore * kPageSize);
  while (mapped_.size() < mappings) {
    mapped_.reserve(mappings);
    void* at = ::mmap(nullptr, kMore * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, root_->pages,
                      static_cast<off_t>(mapped_.size() * kMore * kPageSize));
    if (at == MAP_FAILED) throw Error("map", kRecordText, errno);
    // The kernel takes an event from its list, then writes it here: for a task that is being killed that may fail, and
    // the event be lost, if the page had to be brought in first.
    ::mlock(at, kMore * kPageSize);
    mapped_.push_back(static_cast<SpacePage*>(at));
  }
}

/// What the writer was killed in the middle of.
void LazyRecord::settle_pages() {
  for_pages([&](SpacePage& page) {
    if (root_->adopted == 0) page.used.store(0, std::memory_order_release);
    if (page.used == 0) return;
    const SpacePage::Log& log = page.logs[page.log];
    if (log.changes == 0) return;
    uint64_t word = 0;
    const uint64_t last = log.offset + log.saved_words * sizeof word + (log.changes - 1) * SpacePage::kChangeBytes;
    if (::pread(root_->logs, &word, sizeof word, static_cast<off_t>(last)) != sizeof word)
      throw Error("read", kRecordText, errno);
    if (word >> 8 > page.applied) page.applied.store(word >> 8, std::memory_order_release);
  });
  for_pages([&](SpacePage& page) {
    const uint64_t parent = page.used == 0 ? 0 : page.forked_from.load();
    if (parent == 0) return;
    SpacePage& from = mapped_.at((parent - 1) / kMore)[(parent - 1) % kMore];
    if (from.applied == page.fork_event) from.applied.store(page.fork_event + 1, std::memory_order_release);
    page.forked_from.store(0, std::memory_order_release);
  });
}

void LazyRecord::find_free() {
  migrate::add(free_, 0, log_bytes_);
  if (root_->adopted != 0 && root_->announced_words != 0)
    cut(free_, root_->announced_offset, root_->announced_offset + page_ceil(root_->announced_words * sizeof(uint64_t)));
  for_pages([&](SpacePage& page) {
    if (page.used != 0) {
      const SpacePage::Log& log = page.logs[page.log];
      cut(free_, log.offset, log.offset + log.bytes);
    } else {
      std::memset(static_cast<void*>(&page), 0, sizeof page);
      free_pages_.push_back(&page);
    }
  });
  for (const auto& [start, end] : free_)
    ::fallocate(root_->logs, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(start),
                static_cast<off_t>(end - start));
}

SpacePage* LazyRecord::take() {
  const std::lock_guard lock(mutex_);
  if (free_pages_.empty()) {
    const uint64_t before = mapped_.size();
    free_pages_.reserve((before + 1) * kMore);  // give_back() must not fail
    check(::ftruncate(root_->pages, static_cast<off_t>((before + 1) * kMore * kPageSize)), "grow", kRecordText);
    map_pages();
    for (uint64_t i = kMore; i-- > 0;) free_pages_.push_back(&mapped_[before][i]);
  }
  SpacePage* page = free_pages_.back();
  free_pages_.pop_back();
  return page;
}

void LazyRecord::give_back(SpacePage* page) noexcept {
  const std::lock_guard lock(mutex_);
  page->used.store(0, std::memory_order_release);
  std::memset(static_cast<void*>(page), 0, sizeof *page);
  free_pages_.push_back(page);
}

uint64_t LazyRecord::number_of(const SpacePage& page) const {
  const std::lock_guard lock(mutex_);
  for (uint64_t i = 0; i < mapped_.size(); ++i) {
    if (&page >= mapped_[i] && &page < mapped_[i] + kMore) return i * kMore + static_cast<uint64_t>(&page - mapped_[i]);
  }
  throw Error("a page is not of this record");
}

Extent LazyRecord::allocate(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  bytes = page_ceil(bytes);
  auto fits = std::ranges::find_if(free_, [&](const auto& i) { return i.second - i.first >= bytes; });
  if (fits == free_.end()) {
    check(::ftruncate(root_->logs, static_cast<off_t>(log_bytes_ + bytes)), "grow", kRecordText);
    const Extent extent{log_bytes_, bytes};
    log_bytes_ += bytes;
    return extent;
  }
  const Extent extent{fits->first, bytes};
  cut(free_, extent.offset, extent.offset + bytes);
  return extent;
}

void LazyRecord::release(Extent extent) noexcept {
  if (extent.bytes == 0) return;
  ::fallocate(root_->logs, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(extent.offset),
              static_cast<off_t>(extent.bytes));
  const std::lock_guard lock(mutex_);
  migrate::add(free_, extent.offset, extent.offset + extent.bytes);
}

std::byte* LazyRecord::map(Extent extent) const {
  void* at =
      ::mmap(nullptr, extent.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, root_->logs, static_cast<off_t>(extent.offset));
  if (at == MAP_FAILED) throw Error("map", kRecordText, errno);
  return static_cast<std::byte*>(at);
}

void LazyRecord::adopted(const Announced& announced) {
  std::vector<uint64_t> words;
  for (const auto& [memory, set] : announced) {
    words.insert(words.end(), {static_cast<uint64_t>(memory.kind), memory.id, set.size()});
    for (const auto& [start, end] : set) words.insert(words.end(), {start, end});
  }
  const Extent extent = allocate(std::max<uint64_t>(words.size(), 1) * sizeof(uint64_t));
  pwrite_full(root_->logs, std::as_bytes(std::span(words)), extent.offset, kRecordText);
  root_->announced_offset = extent.offset;
  root_->announced_words = words.size();
  step("before-adopted");
  root_->adopted.store(1, std::memory_order_release);
}

LazyRecord::Announced LazyRecord::announced() const {
  std::vector<uint64_t> words(root_->announced_words);
  if (pread_full(root_->logs, std::as_writable_bytes(std::span(words)), root_->announced_offset, kRecordText) !=
      words.size() * sizeof(uint64_t))
    throw Error("read", kRecordText);
  Announced all;
  for (size_t i = 0; i < words.size();) {
    Intervals& set = all[{static_cast<MemoryId::Kind>(words[i]), words[i + 1]}];
    const uint64_t n = words[i + 2];
    i += 3;
    for (uint64_t k = 0; k < n; ++k, i += 2) migrate::add(set, words[i], words[i + 1]);
  }
  return all;
}

std::vector<SpacePage*> LazyRecord::used() const {
  const std::lock_guard lock(mutex_);
  std::vector<SpacePage*> all;
  for_pages([&](SpacePage& page) {
    if (page.used != 0) all.push_back(&page);
  });
  return all;
}

std::vector<int> LazyRecord::descriptors() const {
  std::vector<int> all{root_->pages, root_->logs};
  for (const SpacePage* page : used()) {
    all.push_back(page->userfaultfd);
    all.push_back(page->pagemap);
    for (const uffd_msg& message : page->outstanding())
      if (message.event == UFFD_EVENT_FORK) all.push_back(static_cast<int>(message.arg.fork.ufd));
  }
  return all;
}

}  // namespace migrate
