#include "pageserver/page_reader.h"

#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "core/base/procfs.h"
#include "core/memory/pagemap_word.h"

namespace migrate {
namespace {

/// Pages whose words are read at a time.
constexpr size_t kStep = 64;
/// For fewer pages one pread is cheaper than looking at their words, reading, and looking whether the task lives.
constexpr size_t kFewPages = 4;

bool is_exclusive(uint64_t word) {
  using namespace pagemap_word;
  return (word & (kPresent | kFile | kExclusive)) == (kPresent | kExclusive);
}

}  // namespace

PageReader::PageReader(const PageSource& source) : source_(source), what_("pages of " + name_of(source.memory)) {
  if (source.memory.kind == MemoryId::Kind::task) find_task();
}

void PageReader::find_task() {
  try {
    const std::string link = fd_link(source_.fd.get());
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

template <class Rest>
void PageReader::read_quickly(uint64_t address, std::span<std::byte> out, Rest rest) const {
  const size_t pages = out.size() / kPageSize;
  if (pid_ == 0 || pages < kFewPages) return rest(Part{0, pages});
  std::array<uint64_t, kStep> space;
  for (size_t first = 0; first < pages; first += kStep) {
    const auto words = std::span(space).first(std::min(kStep, pages - first));
    const auto bytes = std::as_writable_bytes(words);
    // Of a memory that nobody uses any more there are no words.
    if (pread_full(pagemap_.get(), bytes, (address / kPageSize + first) * sizeof(uint64_t), what_) != bytes.size())
      return rest(Part{first, pages - first});
    for (auto at = words.begin(); at != words.end();) {
      const bool exclusive = is_exclusive(*at);
      const auto end = std::find_if(at, words.end(), [&](uint64_t word) { return is_exclusive(word) != exclusive; });
      Part part{first + static_cast<size_t>(at - words.begin()), static_cast<size_t>(end - at)};
      const auto to = out.subspan(part.first * kPageSize, part.count * kPageSize);
      const size_t done = exclusive ? read_exclusive(address + part.first * kPageSize, to) / kPageSize : 0;
      if (done < part.count) rest(Part{part.first + done, part.count - done});
      at = end;
    }
  }
}

bool PageReader::read(uint64_t address, std::span<std::byte> out) const {
  bool all = true;
  read_quickly(address, out, [&](Part part) {
    all =
        all && read_any(address + part.first * kPageSize, out.subspan(part.first * kPageSize, part.count * kPageSize));
  });
  return all;
}

void PageReader::read_existing(uint64_t address, std::span<std::byte> out, std::vector<bool>& vanished) const {
  vanished.assign(out.size() / kPageSize, false);
  read_quickly(address, out, [&](Part part) { read_any_existing(address, out, part, vanished); });
}

void PageReader::read_any_existing(uint64_t address, std::span<std::byte> out, Part part,
                                   std::vector<bool>& vanished) const {
  for (size_t i = part.first, end = part.first + part.count; i < end;) {
    const auto to = out.subspan(i * kPageSize, (end - i) * kPageSize);
    const ssize_t n = ::pread(source_.fd.get(), to.data(), to.size(), static_cast<off_t>(address + i * kPageSize));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EIO && errno != EFAULT) throw Error("read", what_, errno);
    if (n == 0) {  // of a memory that its task has left
      std::fill(vanished.begin() + static_cast<ptrdiff_t>(i), vanished.begin() + static_cast<ptrdiff_t>(end), true);
      return;
    }
    const size_t whole = n < 0 ? 0 : static_cast<size_t>(n) / kPageSize;
    i += whole;
    if (whole == 0) vanished[i++] = true;
  }
}

bool PageReader::read_any(uint64_t address, std::span<std::byte> out) const {
  const size_t got = pread_full(source_.fd.get(), out, address, what_);
  // proc(5): of a memory that nobody uses any more nothing is read; of what is not mapped, EIO.
  if (got != out.size() && source_.memory.kind == MemoryId::Kind::task) return false;
  // The last page of a memory file may be partly behind its end.
  const bool last = source_.memory.kind == MemoryId::Kind::shmem && out.size() - got < kPageSize;
  if (got != out.size() && !last) throw Error("read " + what_ + ": it ended meanwhile");
  std::fill(out.begin() + static_cast<ptrdiff_t>(got), out.end(), std::byte{0});
  return true;
}

size_t PageReader::read_exclusive(uint64_t address, std::span<std::byte> out) const {
  const iovec local{out.data(), out.size()};
  const iovec remote{reinterpret_cast<void*>(address), out.size()};  // NOLINT: an address of the task
  const ssize_t n = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
  // The number was that of our task as long as that one lives.
  pollfd gone{pidfd_.get(), POLLIN, 0};
  if (::poll(&gone, 1, 0) != 0) return 0;
  return n <= 0 ? 0 : page_floor(static_cast<size_t>(n));
}

}  // namespace migrate
