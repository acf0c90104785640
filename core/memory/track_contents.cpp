#include "core/memory/track_contents.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <sstream>
#include <thread>

#include "core/memory/page_runs.h"

namespace migrate {
namespace {

constexpr uint64_t kLeastRoom = 64 << 20;
/// Fewer pages are compared by the caller alone: a thread costs more.
constexpr uint64_t kPagesForThreads = 2048;

uint64_t available_bytes() {
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/meminfo"));
  for (std::string key; lines >> key; lines.ignore(1000, '\n')) {
    uint64_t kib = 0;
    if (key == "MemAvailable:" && lines >> kib) return kib * 1024;
  }
  return 0;
}

/// Whole pages from the start on: what is read may shrink at any time. The last page of an object may be partly behind
/// its end: zeros.
size_t read_pages(int fd, std::span<std::byte> buffer, uint64_t address) {
  size_t got = 0;
  while (got < buffer.size()) {
    const ssize_t n = ::pread(fd, buffer.data() + got, buffer.size() - got, static_cast<off_t>(address + got));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
  }
  const size_t end = page_ceil(got);
  std::fill(buffer.begin() + static_cast<std::ptrdiff_t>(got), buffer.begin() + static_cast<std::ptrdiff_t>(end),
            std::byte{0});
  return end / kPageSize;
}

/// The part of `r` that lies in the chunk of its start.
PageSet::Range first_chunk(PageSet::Range r, uint64_t chunk_pages) {
  const uint64_t bytes = chunk_pages * kPageSize;
  return {r.start, std::min(r.end, r.start / bytes * bytes + bytes)};
}

/// A shared object, to be read without copying it. Only pages that it has may be touched: reading a hole would fill it.
class ObjectView {
 public:
  /// Nothing is mapped where that fails, or of a task's memory.
  explicit ObjectView(const PageSource& source) {
    if (source.memory.kind != MemoryId::Kind::shmem || source.runs.empty()) return;
    bytes_ = source.runs.back().address + source.runs.back().pages * kPageSize;
    at_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED | MAP_NORESERVE, source.fd.get(), 0);
  }
  ~ObjectView() {
    if (at_ != MAP_FAILED) ::munmap(at_, bytes_);
  }
  ObjectView(const ObjectView&) = delete;
  ObjectView& operator=(const ObjectView&) = delete;
  /// Empty: it must be read otherwise. Behind the end of the object populating fails, touching would end us.
  std::span<const std::byte> pages(PageSet::Range range) const {
    if (at_ == MAP_FAILED) return {};
    std::byte* start = static_cast<std::byte*>(at_) + range.start;
    if (::madvise(start, range.end - range.start, MADV_POPULATE_READ) != 0) return {};
    return {start, range.end - range.start};
  }

 private:
  void* at_ = MAP_FAILED;
  size_t bytes_ = 0;
};

size_t thread_count() { return std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 8); }

}  // namespace

ContentTracker::ContentTracker(const TrackRules& rules) : rules_(rules) {
  fill_random(std::as_writable_bytes(std::span(&seed_, 1)));
}

ContentTracker::Hash ContentTracker::hash(const std::byte* page) const {
  return XXH3_128bits_withSeed(page, kPageSize, seed_);
}

ContentTracker::Hash ContentTracker::sent_hash(const Memory& memory, uint64_t page) {
  const auto chunk = memory.sent.find(page / kChunkPages);
  return chunk == memory.sent.end() ? Hash{} : (*chunk->second)[page % kChunkPages];
}

void ContentTracker::set_sent(Memory& memory, uint64_t page, const Hash& hash) {
  auto& chunk = memory.sent[page / kChunkPages];
  if (!chunk) chunk = std::make_unique<Chunk>();
  (*chunk)[page % kChunkPages] = hash;
}

void ContentTracker::unknow(Memory& memory, const PageSet& pages) {
  for (const PageSet::Range& range : pages.ranges()) {
    for (PageSet::Range rest = range; rest.start < rest.end;) {
      const PageSet::Range part = first_chunk(rest, kChunkPages);
      const auto chunk = memory.sent.find(part.start / kPageSize / kChunkPages);
      if (chunk != memory.sent.end()) {
        const auto first = static_cast<std::ptrdiff_t>(part.start / kPageSize % kChunkPages);
        const auto count = static_cast<std::ptrdiff_t>((part.end - part.start) / kPageSize);
        std::fill_n(chunk->second->begin() + first, count, Hash{});
        if (count == static_cast<std::ptrdiff_t>(kChunkPages)) memory.sent.erase(chunk);
      }
      rest.start = part.end;
    }
  }
}

/// `data`: pages from `address` on, of one chunk. True if all are as sent.
bool ContentTracker::compare_chunk(Memory& memory, uint64_t address, std::span<const std::byte> data, Fd& copy,
                                   Part& part) {
  PageSet differing;
  for (size_t i = 0; i < data.size(); i += kPageSize) {
    const uint64_t page = (address + i) / kPageSize;
    const Hash now = hash(data.data() + i);
    if (XXH128_isEqual(sent_hash(memory, page), now) != 0) continue;
    if (room_ < kPageSize) {  // the receiver has still what it had
      ++part.left_pages;
      continue;
    }
    room_ -= kPageSize;
    differing.append(address + i, address + i + kPageSize);
    memory.changed.append(address + i, address + i + kPageSize);
    set_sent(memory, page, now);
  }
  if (differing.empty()) return true;
  if (!copy) copy = Fd(check(::memfd_create("migrate-round", MFD_CLOEXEC), "create", "a memfd"));
  for (const PageSet::Range& r : differing.ranges())
    pwrite_full(copy.get(), data.subspan(r.start - address, r.end - r.start), r.start, "a memfd");
  return false;
}

void ContentTracker::add(const Found& found, Part& part) {
  Memory& memory = memories_[found.memory];
  memory.absent = false;
  Fd copy;
  PageSet existing;
  std::vector<std::byte> buffer(kChunkPages * kPageSize);
  for (PageSet::Range rest : found.pages.ranges()) {
    while (rest.start < rest.end) {
      const PageSet::Range wanted = first_chunk(rest, kChunkPages);
      const std::span<std::byte> data(buffer.data(), wanted.end - wanted.start);
      const auto start = std::chrono::steady_clock::now();
      const uint64_t got = read_pages(found.fd.get(), data, wanted.start) * kPageSize;
      if (got != 0) existing.append(wanted.start, wanted.start + got);
      const bool clean = compare_chunk(memory, wanted.start, data.first(got), copy, part);
      const auto time = std::chrono::steady_clock::now() - start;
      for (Cost* cost : {&cost_, clean ? &clean_cost_ : nullptr}) {
        if (cost == nullptr) continue;
        cost->time += time;
        cost->pages += got / kPageSize;
      }
      rest.start = got == data.size() ? wanted.end : wanted.start + got + kPageSize;  // that one has vanished
    }
  }
  const PageSet gone = memory.held - existing;
  for (const PageSet::Range& r : gone.ranges())
    part.discards.push_back({found.memory, r.start, (r.end - r.start) / kPageSize});
  unknow(memory, gone);
  if (!memory.changed.empty()) {
    // Of a page that was left for the next round the receiver may have nothing: it is held all the same.
    part.sources.push_back({.memory = found.memory,
                            .runs = runs_of(memory.changed, found.zero_ok ? memory.held : memory.changed),
                            .fd = std::move(copy),
                            .may_vanish = found.memory.kind == MemoryId::Kind::task});
  }
  part.pages += memory.changed.pages();
  part.compared_pages += existing.pages();
  memory.held = std::move(existing);
}

void ContentTracker::begin() {
  std::erase_if(memories_, [](const auto& entry) { return entry.second.absent; });
  for (auto& [id, memory] : memories_) {
    memory.held_before = memory.held;
    memory.changed.clear();
    memory.absent = true;
  }
  room_ = std::max(available_bytes() / 2, kLeastRoom);
  cost_ = clean_cost_ = {};
}

void ContentTracker::put_back() {
  for (auto& [id, memory] : memories_) {
    unknow(memory, memory.changed);
    memory.changed.clear();
    memory.held = memory.held_before;
    memory.absent = false;
  }
}

/// Looks at each `step`th piece from `first` on.
PageSet ContentTracker::changed_in(const Memory& memory, const PageSource& source, size_t first, size_t step) const {
  PageSet changed;
  const ObjectView view(source);
  std::vector<std::byte> buffer;
  size_t piece = 0;
  for (const PageRun& run : source.runs) {
    for (PageSet::Range rest{run.address, run.address + run.pages * kPageSize}; rest.start < rest.end;) {
      const PageSet::Range part = first_chunk(rest, kChunkPages);
      rest.start = part.end;
      if (piece++ % step != first) continue;
      std::span<const std::byte> data = view.pages(part);
      if (data.empty()) {
        buffer.resize(part.end - part.start);
        data = std::span(buffer).first(read_pages(source.fd.get(), buffer, part.start) * kPageSize);
      }
      for (uint64_t i = 0; i < part.end - part.start; i += kPageSize) {
        const Hash sent = sent_hash(memory, (part.start + i) / kPageSize);
        if (!rules_.compare_at_end && XXH128_isEqual(sent, Hash{}) == 0) continue;
        if (i < data.size() && XXH128_isEqual(sent, hash(data.data() + i)) != 0) continue;
        changed.append(part.start + i, part.start + i + kPageSize);
      }
    }
  }
  return changed;
}

void ContentTracker::reduce(PageSource& all, std::vector<PageDiscard>& discards) const {
  const auto known = memories_.find(all.memory);
  if (known == memories_.end() || known->second.absent) return;
  const Memory& memory = known->second;
  PageSet existing;
  const bool zero_ok = !all.runs.empty() && all.runs.front().zero_ok;
  for (const PageRun& run : all.runs) existing.append(run.address, run.address + run.pages * kPageSize);
  const size_t threads = all.pages() < kPagesForThreads ? 1 : thread_count();
  std::vector<std::future<PageSet>> parts;
  for (size_t i = 1; i < threads; ++i)
    parts.push_back(std::async(std::launch::async, [&, i] { return changed_in(memory, all, i, threads); }));
  PageSet changed = changed_in(memory, all, 0, threads);
  for (auto& part : parts) changed = changed | part.get();
  const PageSet gone = memory.held - existing;
  for (const PageSet::Range& r : gone.ranges())
    discards.push_back({all.memory, r.start, (r.end - r.start) / kPageSize});
  all.runs = runs_of(changed, zero_ok ? memory.held : changed);
}

/// The last round looks at objects in their place, which takes two thirds of the time of reading them (6.18).
std::chrono::microseconds ContentTracker::last_compare_time() const {
  const Cost& measured = clean_cost_.pages >= kChunkPages ? clean_cost_ : cost_;
  if (measured.pages == 0) return {};
  const uint64_t pages = cost_.pages < kPagesForThreads ? cost_.pages : cost_.pages / thread_count();
  return std::chrono::duration_cast<std::chrono::microseconds>(measured.time * pages * 2 / (measured.pages * 3));
}

}  // namespace migrate
