#include "core/memory/page_files.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/base/types.h"

namespace migrate {
namespace {

/// pread(2) on /proc/PID/mem is fastest in pieces of 256 KiB to 1 MiB.
constexpr size_t kPiece = 1 << 20;

std::string subject(MemoryId memory, uint64_t address) {
  char hex[32];
  std::snprintf(hex, sizeof hex, "0x%llx", static_cast<unsigned long long>(address));
  return (memory.kind == MemoryId::Kind::task ? "memory of task " : "shared memory object ") +
         std::to_string(memory.id) + " at " + hex;
}

/// Carries one memory into a store.
class MemoryWriter {
 public:
  MemoryWriter(const PageSource& source, PageStore& store) : source_(source), store_(store) {}

  void write(const PageRun& run, std::span<std::byte> buffer) {
    for (uint64_t done = 0; done < run.pages;) {
      const uint64_t pages = std::min(run.pages - done, buffer.size() / kPageSize);
      piece(run.address + done * kPageSize, buffer.first(pages * kPageSize), run.zero_ok);
      done += pages;
    }
  }
  void in_parent(const PageSet::Range& range) {
    store_.in_parent(range.start, (range.end - range.start) / kPageSize);
    stored_.append(range.start, range.end);
  }
  uint64_t written() const { return written_; }
  PageSet& stored() { return stored_; }

 private:
  void piece(uint64_t address, std::span<std::byte> data, bool zero_ok) {
    const size_t got = read(data, address);
    if (got == data.size()) return store(address, data, zero_ok);
    if (source_.memory.kind == MemoryId::Kind::shmem && data.size() - got < kPageSize) {
      // The last page of an object may reach beyond its end.
      std::fill(data.begin() + static_cast<std::ptrdiff_t>(got), data.end(), std::byte{0});
      return store(address, data, zero_ok);
    }
    if (!source_.may_vanish) throw Error("read", subject(source_.memory, address + got), EIO);
    // A hole in a running task; what lies behind it may still be there.
    const size_t whole = static_cast<size_t>(page_floor(got));
    store(address, data.first(whole), zero_ok);
    const size_t next = whole + kPageSize;
    if (next < data.size()) piece(address + next, data.subspan(next), zero_ok);
  }

  /// Short where the memory ends. Of a running task that ended, nothing is left.
  size_t read(std::span<std::byte> data, uint64_t address) {
    try {
      return pread_full(source_.fd.get(), data, address, subject(source_.memory, address));
    } catch (const Error& e) {
      if (!source_.may_vanish || (e.code() != EIO && e.code() != EFAULT && e.code() != ESRCH)) throw;
    }
    size_t got = 0;  // an error in the middle hides how far it came
    for (; got < data.size(); got += kPageSize) {
      const ssize_t n = ::pread(source_.fd.get(), data.data() + got, kPageSize, static_cast<off_t>(address + got));
      if (n != static_cast<ssize_t>(kPageSize)) break;
    }
    return got;
  }

  void store(uint64_t address, std::span<const std::byte> data, bool zero_ok) {
    for (size_t from = 0; from < data.size();) {
      size_t to = from;
      while (to < data.size() && (!zero_ok || !all_zero(data.subspan(to, kPageSize)))) to += kPageSize;
      if (to > from) {
        store_.write(address + from, data.subspan(from, to - from));
        stored_.append(address + from, address + to);
        written_ += (to - from) / kPageSize;
      }
      from = to == from ? from + kPageSize : to;
    }
  }

  const PageSource& source_;
  PageStore& store_;
  uint64_t written_ = 0;
  PageSet stored_;
};

}  // namespace

std::string pagemap_name(MemoryId memory) {
  return image_name(memory.kind == MemoryId::Kind::task ? "pagemap" : "pagemap-shmem", memory.id);
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

WrittenPages write_pages(std::span<const PageSource> memories, const PagesByMemory& in_parent, PageStore& store) {
  const std::unique_ptr<std::byte[]> buffer(new std::byte[kPiece]);
  const PageSet none;
  WrittenPages result;
  for (const PageSource& source : memories) {
    const auto of_parent = in_parent.find(source.memory);
    const PageSet& unchanged = of_parent == in_parent.end() ? none : of_parent->second;
    if (!store.open(source.memory) && !unchanged.empty())
      throw Refusal(pagemap_name(source.memory) + " has no parent where its pages go",
                    "give --prev-images-dir there too, or dump without it");
    MemoryWriter writer(source, store);
    auto at = unchanged.ranges().begin();
    const auto end = unchanged.ranges().end();
    for (const PageRun& run : source.runs) {
      for (; at != end && at->start < run.address; ++at) writer.in_parent(*at);
      writer.write(run, std::span(buffer.get(), kPiece));
    }
    for (; at != end; ++at) writer.in_parent(*at);
    result.written += writer.written();
    result.in_parent += unchanged.pages();
    result.stored.emplace(source.memory, std::move(writer.stored()));
  }
  store.finish();
  return result;
}

uint64_t write_pages(std::span<PageSource> memories, ImageSet& images, int dirfd) {
  PageFolder folder(dirfd, images, false);
  return write_pages(memories, {}, folder).written;
}

}  // namespace migrate
