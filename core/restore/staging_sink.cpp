#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "core/restore/restore.h"

namespace migrate {

struct StagingSink::Impl {
  std::map<MemoryId, FillTarget> targets;
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

}  // namespace

StagingSink::StagingSink(std::vector<FillTarget> targets) : impl_(std::make_unique<Impl>()) {
  for (FillTarget& t : targets) impl_->targets.emplace(t.memory, std::move(t));
}

StagingSink::~StagingSink() = default;

void StagingSink::write(MemoryId memory, uint64_t address, std::span<const std::byte> data) {
  const auto it = impl_->targets.find(memory);
  if (it == impl_->targets.end()) throw Corrupt("a page for " + memory_name(memory), "there is no such memory");
  const FillTarget& target = it->second;
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
      pwrite_full(target.mem.get(), data.first(n), r.staging + inside, memory_name(memory));
    }
    address += n;
    data = data.subspan(n);
  }
}

uint64_t StagingSink::pages_written() const { return impl_->pages; }

}  // namespace migrate
