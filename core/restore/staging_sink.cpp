#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "core/restore/restore.h"

namespace migrate {

struct StagingSink::Impl {
  struct Memory {
    FillTarget target;
    pid_t pid = 0;  ///< of the shell, as we number it; 0: unknown
  };
  std::map<MemoryId, Memory> targets;
  std::atomic<uint64_t> pages{0};
};

namespace {

std::string memory_name(MemoryId m) {
  return (m.kind == MemoryId::Kind::task ? "task " : "shared memory ") + std::to_string(m.id);
}

/// UFFDIO_COPY until all is in. Pages that are there already (EEXIST) are overwritten through `mem`.
void copy_by_userfault(const FillTarget& target, uint64_t to, std::span<const std::byte> data) {
  while (!data.empty()) {
    uffdio_copy copy{to, reinterpret_cast<uint64_t>(data.data()), data.size(), 0, 0};
    const bool whole = ::ioctl(target.userfaultfd.get(), UFFDIO_COPY, &copy) == 0;
    const int error = whole ? 0 : errno;
    uint64_t done = whole ? data.size() : 0;
    if (!whole && copy.copy > 0) done = static_cast<uint64_t>(copy.copy);
    if (!whole && copy.copy <= 0) {
      if (error == EEXIST) {
        pwrite_full(target.mem.get(), data.first(kPageSize), to, memory_name(target.memory));
        done = kPageSize;
      } else if (error != EAGAIN) {
        throw Error("fill pages of", memory_name(target.memory), error);
      }
    }
    to += done;
    data = data.subspan(done);
  }
}

/// What a pidfd refers to, in our numbers; 0 if it is gone or not ours to see.
pid_t pid_of(const Fd& pidfd) {
  if (!pidfd) return 0;
  const std::string info = read_file_at(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(pidfd.get()));
  const size_t line = info.find("\nPid:");
  if (line == std::string::npos) return 0;
  return std::max(0, std::atoi(info.c_str() + line + 5));
}

/// process_vm_writev(2), which copies once, where pwrite(2) to /proc/PID/mem copies twice, through a page of its own.
/// Both make pages that are missing; this one respects protection, so that what it cannot do is left to the other.
void copy_to_shell(const FillTarget& target, pid_t pid, uint64_t to, std::span<const std::byte> data) {
  // Its number is the shell's as long as that lives, and staging memory is where no program has anything.
  constexpr size_t kFewPages = 4;  // for fewer the second system call costs more than it saves
  pollfd gone{target.process.get(), POLLIN, 0};
  if (pid != 0 && data.size() >= kFewPages * kPageSize && ::poll(&gone, 1, 0) == 0) {
    const iovec local{const_cast<std::byte*>(data.data()), data.size()};  // NOLINT: only read
    const iovec remote{reinterpret_cast<void*>(to), data.size()};         // NOLINT: an address of the shell
    const ssize_t n = ::process_vm_writev(pid, &local, 1, &remote, 1, 0);
    const size_t done = n <= 0 ? 0 : page_floor(static_cast<size_t>(n));
    to += done;
    data = data.subspan(done);
  }
  if (!data.empty()) pwrite_full(target.mem.get(), data, to, memory_name(target.memory));
}

}  // namespace

StagingSink::StagingSink(std::vector<FillTarget> targets) : impl_(std::make_unique<Impl>()) {
  for (FillTarget& t : targets) {
    const pid_t pid = t.memory.kind == MemoryId::Kind::task ? pid_of(t.process) : 0;
    impl_->targets.emplace(t.memory, Impl::Memory{std::move(t), pid});
  }
}

StagingSink::~StagingSink() = default;

void StagingSink::write(MemoryId memory, uint64_t address, std::span<const std::byte> data) {
  const auto it = impl_->targets.find(memory);
  if (it == impl_->targets.end()) throw Corrupt("a page for " + memory_name(memory), "there is no such memory");
  const FillTarget& target = it->second.target;
  if (address % kPageSize != 0 || data.size() % kPageSize != 0)
    throw Corrupt("a page for " + memory_name(memory), "it is not page-aligned");
  impl_->pages += data.size() / kPageSize;
  while (!data.empty()) {
    const auto after = std::upper_bound(target.ranges.begin(), target.ranges.end(), address,
                                        [](uint64_t a, const FillTarget::Range& r) { return a < r.address; });
    if (after == target.ranges.begin() || address - (after - 1)->address >= (after - 1)->bytes)
      throw Corrupt("a page for " + memory_name(memory), "it lies outside of what was announced");
    const FillTarget::Range& r = *(after - 1);
    const uint64_t inside = address - r.address;
    const size_t n = static_cast<size_t>(std::min<uint64_t>(data.size(), r.bytes - inside));
    if (memory.kind == MemoryId::Kind::task && r.staging == 0) {
      // Nothing to do: this kernel has its own.
    } else if (r.copy_by_userfault) {
      copy_by_userfault(target, r.staging + inside, data.first(n));
    } else {
      copy_to_shell(target, it->second.pid, r.staging + inside, data.first(n));
    }
    address += n;
    data = data.subspan(n);
  }
}

uint64_t StagingSink::pages_written() const { return impl_->pages; }

}  // namespace migrate
