#include "pageserver/page_reader.h"

#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "core/base/procfs.h"

namespace migrate {
namespace {

// Documentation/admin-guide/mm/pagemap.rst.
constexpr uint64_t kPresent = uint64_t{1} << 63, kFile = uint64_t{1} << 61, kExclusive = uint64_t{1} << 56;

/// Pages whose words are read at a time.
constexpr size_t kStep = 64;
/// For fewer pages one pread is cheaper than looking at their words, reading, and looking whether the task lives.
constexpr size_t kFewPages = 4;

bool is_exclusive(uint64_t word) { return (word & (kPresent | kFile | kExclusive)) == (kPresent | kExclusive); }

}  // namespace

PageReader::PageReader(const PageSource& source)
    : source_(source),
      what_("pages of " + std::string(source.memory.kind == MemoryId::Kind::task ? "task " : "shared memory object ") +
            std::to_string(source.memory.id)) {
  // A running task may share a page, or execute a program, between looking and reading.
  if (source.memory.kind == MemoryId::Kind::task && !source.may_vanish) find_task();
}

void PageReader::find_task() {
  try {
    const std::string link = "/proc/self/fd/" + std::to_string(source_.fd.get());
    const std::string path = read_link_at(AT_FDCWD, link);
    if (!path.ends_with("/mem")) return;
    const std::string folder = path.substr(0, path.size() - 4);
    const char* number = folder.data() + folder.rfind('/') + 1;
    pid_t pid = 0;
    const auto [end, error] = std::from_chars(number, folder.data() + folder.size(), pid);
    if (error != std::errc() || end != folder.data() + folder.size() || pid <= 0) return;
    auto pidfd = open_pidfd(pid);
    pagemap_ = open_path(folder + "/pagemap", O_RDONLY);
    // The link of a task that is gone ends in " (deleted)": while it does not, the number is that task's.
    if (!pidfd || read_link_at(AT_FDCWD, link) != path) return;
    pidfd_ = std::move(*pidfd);
    pid_ = pid;
  } catch (const Error&) {  // not a task's, or none that lives: reading will tell
  }
}

void PageReader::read(uint64_t address, std::span<std::byte> out) const {
  if (pid_ == 0 || out.size() < kFewPages * kPageSize) return read_any(address, out);
  std::array<uint64_t, kStep> space;
  while (!out.empty()) {
    const auto words = std::span(space).first(std::min(kStep, out.size() / kPageSize));
    if (pread_full(pagemap_.get(), std::as_writable_bytes(words), address / kPageSize * sizeof(uint64_t), what_) !=
        words.size_bytes())
      throw Error("read " + what_ + ": it ended meanwhile");
    for (auto at = words.begin(); at != words.end();) {
      const bool exclusive = is_exclusive(*at);
      const auto end = std::find_if(at, words.end(), [&](uint64_t word) { return is_exclusive(word) != exclusive; });
      const auto part = out.first(static_cast<size_t>(end - at) * kPageSize);
      const size_t done = exclusive ? read_exclusive(address, part) : 0;
      if (done < part.size()) read_any(address + done, part.subspan(done));
      address += part.size();
      out = out.subspan(part.size());
      at = end;
    }
  }
}

void PageReader::read_any(uint64_t address, std::span<std::byte> out) const {
  const size_t got = pread_full(source_.fd.get(), out, address, what_);
  // The last page of a memory file may be partly behind its end.
  const bool last = source_.memory.kind == MemoryId::Kind::shmem && out.size() - got < kPageSize;
  if (got != out.size() && !last) throw Error("read " + what_ + ": it ended meanwhile");
  std::fill(out.begin() + static_cast<ptrdiff_t>(got), out.end(), std::byte{0});
}

size_t PageReader::read_exclusive(uint64_t address, std::span<std::byte> out) const {
  const iovec local{out.data(), out.size()};
  const iovec remote{reinterpret_cast<void*>(address), out.size()};  // NOLINT: an address of the task
  const ssize_t n = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
  // The number was that of our task as long as that one lives.
  pollfd gone{pidfd_.get(), POLLIN, 0};
  if (::poll(&gone, 1, 0) != 0) throw Error("read " + what_ + ": the task is gone");
  return n <= 0 ? 0 : page_floor(static_cast<size_t>(n));
}

}  // namespace migrate
