#include "core/memory/track_objects.h"

#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <future>
#include <sstream>
#include <thread>

#include "core/memory/page_scan.h"
#include "core/memory/track_runs.h"

namespace migrate {
namespace {

constexpr uint64_t kChunkPages = 256;

MemoryId object_id(uint64_t id) { return {MemoryId::Kind::shmem, id}; }

uint64_t available_bytes() {
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/meminfo"));
  for (std::string key; lines >> key; lines.ignore(1000, '\n')) {
    uint64_t kib = 0;
    if (key == "MemAvailable:" && lines >> kib) return kib * 1024;
  }
  return 0;
}

/// Whole pages only: an object may shrink at any time.
size_t read_pages(int fd, std::vector<std::byte>& buffer, uint64_t address, uint64_t pages) {
  buffer.resize(pages * kPageSize);
  return pread_full(fd, buffer, address, "a shared memory object") / kPageSize;
}

}  // namespace

ObjectTracker::ObjectTracker() { check(::getrandom(&seed_, sizeof seed_, 0), "get", "random bytes"); }

ObjectTracker::Hash ObjectTracker::hash(const std::byte* page) const {
  return XXH3_128bits_withSeed(page, kPageSize, seed_);
}

bool ObjectTracker::same(const Object& object, uint64_t page, const Hash& now) const {
  return page < object.sent.size() && XXH128_isEqual(object.sent[page], now) != 0;
}

void ObjectTracker::take(const Found& found, uint64_t bytes, Object& object, Round& out) const {
  object.sent.resize(bytes / kPageSize);
  Fd copy(check(::memfd_create("migrate-round", MFD_CLOEXEC), "create", "a memfd"));
  check(::ftruncate(copy.get(), static_cast<off_t>(bytes)), "size", "a memfd");
  PageSet existing;
  std::vector<std::byte> buffer;
  for (const PageRun& run : scan_object_pages(found.fd.get())) {
    for (uint64_t done = 0; done < run.pages; done += kChunkPages) {
      const uint64_t address = run.address + done * kPageSize;
      const uint64_t wanted = std::min({kChunkPages, run.pages - done, (bytes - std::min(bytes, address)) / kPageSize});
      const size_t got = read_pages(found.fd.get(), buffer, address, wanted);
      existing.append(address, address + got * kPageSize);
      PageSet differing;
      for (size_t i = 0; i < got; ++i) {
        const uint64_t at = address + i * kPageSize;
        const Hash now = hash(buffer.data() + i * kPageSize);
        if (same(object, at / kPageSize, now)) continue;
        differing.append(at, at + kPageSize);
        object.changed.append(at, at + kPageSize);
        object.sent[at / kPageSize] = now;
      }
      for (const PageSet::Range& r : differing.ranges())
        pwrite_full(copy.get(), {buffer.data() + (r.start - address), r.end - r.start}, r.start, "a memfd");
    }
  }
  const MemoryId memory = object_id(found.id);
  const PageSet gone = object.held - existing;
  for (const PageSet::Range& r : gone.ranges()) {
    out.discards.push_back({memory, r.start, (r.end - r.start) / kPageSize});
    const auto last = static_cast<std::ptrdiff_t>(std::min<uint64_t>(r.end / kPageSize, object.sent.size()));
    const auto first = std::min(static_cast<std::ptrdiff_t>(r.start / kPageSize), last);
    std::fill(object.sent.begin() + first, object.sent.begin() + last, Hash{});
  }
  if (!object.changed.empty())
    out.sources.push_back({.memory = memory, .runs = runs_of(object.changed, object.held), .fd = std::move(copy)});
  out.pages += object.changed.pages();
  out.compared_pages += existing.pages();
  object.held = std::move(existing);
}

void ObjectTracker::begin() {
  std::erase_if(objects_, [](const auto& entry) { return entry.second.absent; });
  for (auto& [id, object] : objects_) {
    object.held_before = object.held;
    object.changed.clear();
    object.absent = true;
  }
}

ObjectTracker::Round ObjectTracker::round(std::vector<Found> found) {
  Round out;
  uint64_t room = available_bytes() / 2;
  for (const Found& f : found) {
    struct stat st {};
    if (::fstat(f.fd.get(), &st) != 0) continue;
    const uint64_t bytes = page_ceil(static_cast<uint64_t>(st.st_size));
    const uint64_t used = static_cast<uint64_t>(st.st_blocks) * 512;
    if (!objects_.contains(f.id) && (used > room || bytes / kPageSize * sizeof(Hash) > room / 4)) continue;
    room -= std::min(room, used);
    Object& object = objects_[f.id];
    object.absent = false;
    take(f, bytes, object, out);
    out.layout.push_back({f.id, bytes});
  }
  return out;
}

void ObjectTracker::put_back() {
  for (auto& [id, object] : objects_) {
    for (const PageSet::Range& r : object.changed.ranges()) {
      const uint64_t end = std::min<uint64_t>(r.end / kPageSize, object.sent.size());
      for (uint64_t page = r.start / kPageSize; page < end; ++page) object.sent[page] = Hash{};
    }
    object.changed.clear();
    object.held = object.held_before;
    object.absent = false;
  }
}

/// Looks at each `step`th chunk from `first` on.
PageSet ObjectTracker::changed_in(const Object& object, const PageSource& source, size_t first, size_t step) const {
  PageSet changed;
  std::vector<std::byte> buffer;
  size_t chunk = 0;
  for (const PageRun& run : source.runs) {
    for (uint64_t done = 0; done < run.pages; done += kChunkPages) {
      if (chunk++ % step != first) continue;
      const uint64_t pages = std::min(kChunkPages, run.pages - done);
      const uint64_t address = run.address + done * kPageSize;
      const size_t got = read_pages(source.fd.get(), buffer, address, pages);
      for (size_t i = 0; i < pages; ++i) {
        const uint64_t at = address + i * kPageSize;
        if (i < got && same(object, at / kPageSize, hash(buffer.data() + i * kPageSize))) continue;
        changed.append(at, at + kPageSize);
      }
    }
  }
  return changed;
}

void ObjectTracker::reduce(PageSource& all, std::vector<PageDiscard>& discards) const {
  const auto known = objects_.find(all.memory.id);
  if (known == objects_.end() || known->second.absent) return;
  const Object& object = known->second;
  PageSet existing;
  for (const PageRun& run : all.runs) existing.append(run.address, run.address + run.pages * kPageSize);
  const size_t threads = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 8);
  std::vector<std::future<PageSet>> parts;
  for (size_t i = 1; i < threads; ++i)
    parts.push_back(std::async(std::launch::async, [&, i] { return changed_in(object, all, i, threads); }));
  PageSet changed = changed_in(object, all, 0, threads);
  for (auto& part : parts) changed = changed | part.get();
  const PageSet gone = object.held - existing;
  for (const PageSet::Range& r : gone.ranges())
    discards.push_back({all.memory, r.start, (r.end - r.start) / kPageSize});
  all.runs = runs_of(changed, object.held);
}

}  // namespace migrate
