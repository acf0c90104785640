#include "core/memory/page_files.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/base/types.h"
#include "core/image/magic.h"
#include "images/pagemap.pb.h"

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

/// Writes one memory: its pages to `out`, its pagemap to the images.
class MemoryWriter {
 public:
  MemoryWriter(const PageSource& source, ImageSet& images, int out, uint32_t pages_id)
      : source_(source), pagemap_(images.write(pagemap_name(source.memory), magic::kPagemap)), out_(out) {
    img::pagemap_head head;
    head.set_pages_id(pages_id);
    pagemap_.entry(head);
  }

  uint64_t write(std::span<std::byte> buffer) {
    for (const PageRun& run : source_.runs) {
      for (uint64_t done = 0; done < run.pages;) {
        const uint64_t pages = std::min(run.pages - done, buffer.size() / kPageSize);
        piece(run.address + done * kPageSize, buffer.first(pages * kPageSize), run.zero_ok);
        done += pages;
      }
    }
    flush();
    return written_;
  }

 private:
  void piece(uint64_t address, std::span<std::byte> data, bool zero_ok) {
    const size_t got = pread_full(source_.fd.get(), data, address, subject(source_.memory, address));
    if (got != data.size()) {
      // The last page of an object may reach beyond its end.
      if (source_.memory.kind != MemoryId::Kind::shmem || data.size() - got >= kPageSize)
        throw Error("read", subject(source_.memory, address + got), EIO);
      std::fill(data.begin() + static_cast<std::ptrdiff_t>(got), data.end(), std::byte{0});
    }
    for (size_t from = 0; from < data.size();) {
      size_t to = from;
      while (to < data.size() && (!zero_ok || !all_zero(data.subspan(to, kPageSize)))) to += kPageSize;
      if (to > from) {
        write_full(out_, data.subspan(from, to - from), "pages image");
        extend(address + from, (to - from) / kPageSize);
      }
      from = to == from ? from + kPageSize : to;
    }
  }

  void extend(uint64_t address, uint64_t pages) {
    written_ += pages;
    if (entry_pages_ != 0 && entry_address_ + entry_pages_ * kPageSize == address) {
      entry_pages_ += pages;
      return;
    }
    flush();
    entry_address_ = address;
    entry_pages_ = pages;
  }

  void flush() {
    constexpr uint32_t kPresent = 4;  // CRIU's PE_PRESENT
    while (entry_pages_ != 0) {
      const uint64_t pages = std::min<uint64_t>(entry_pages_, UINT32_MAX);  // compat_nr_pages has 32 bits
      img::pagemap_entry entry;
      entry.set_vaddr(entry_address_);
      entry.set_compat_nr_pages(static_cast<uint32_t>(pages));
      entry.set_flags(kPresent);
      entry.set_nr_pages(pages);
      pagemap_.entry(entry);
      entry_address_ += pages * kPageSize;
      entry_pages_ -= pages;
    }
  }

  const PageSource& source_;
  ImageWriter pagemap_;
  int out_;
  uint64_t entry_address_ = 0, entry_pages_ = 0;
  uint64_t written_ = 0;
};

}  // namespace

std::string pagemap_name(MemoryId memory) {
  return image_name(memory.kind == MemoryId::Kind::task ? "pagemap" : "pagemap-shmem", memory.id);
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

uint64_t write_pages(std::span<PageSource> memories, ImageSet& images, int dirfd) {
  const std::unique_ptr<std::byte[]> buffer(new std::byte[kPiece]);
  uint64_t written = 0;
  uint32_t pages_id = 1;
  for (const PageSource& source : memories) {
    const std::string name = image_name("pages", pages_id);
    ::unlinkat(dirfd, name.c_str(), 0);
    const Fd out = open_at(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    written += MemoryWriter(source, images, out.get(), pages_id++).write(std::span(buffer.get(), kPiece));
  }
  return written;
}

}  // namespace migrate
