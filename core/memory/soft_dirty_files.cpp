// The real /proc under soft-dirty tracking.
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/memory/soft_dirty.h"

namespace migrate {
namespace {

constexpr uint64_t kPagesOfHugePage = kHugePageSize / kPageSize;

/// Which frames are the page of zeros. Frame numbers are told to CAP_SYS_ADMIN alone.
class ZeroPages {
 public:
  ZeroPages() {
    void* area = ::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) return;
    static_cast<void>(*static_cast<volatile char*>(area));
    uint64_t word = 0;
    const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    const auto page = reinterpret_cast<uintptr_t>(area) / kPageSize;
    if (::pread(pagemap.get(), &word, sizeof word, static_cast<off_t>(page * sizeof word)) == sizeof word)
      frame_ = word & ((uint64_t{1} << 55) - 1);
    ::munmap(area, kPageSize);
    flags_ = Fd(::open("/proc/kpageflags", O_RDONLY | O_CLOEXEC));
  }
  std::optional<bool> has(uint64_t frame, uint64_t page) const {
    if (frame == 0 || frame_ == 0) return std::nullopt;
    if (frame == frame_) return true;
    // A part of the huge page of zeros lies in its huge page as the page in its own.
    if (frame % kPagesOfHugePage != page % kPagesOfHugePage) return false;
    constexpr uint64_t kZeroPage = uint64_t{1} << 24;  // linux/kernel-page-flags.h
    uint64_t flags = 0;
    const auto at = static_cast<off_t>(frame / kPagesOfHugePage * kPagesOfHugePage * sizeof flags);
    if (!flags_ || ::pread(flags_.get(), &flags, sizeof flags, at) != sizeof flags) return std::nullopt;
    return (flags & kZeroPage) != 0;
  }

 private:
  uint64_t frame_ = 0;
  Fd flags_;
};

class RealFiles final : public SoftDirtyFiles {
 public:
  explicit RealFiles(pid_t pid) : proc_(pid) {
    auto pidfd = open_pidfd(pid);
    if (!pidfd) throw Error("open a pidfd of task", std::to_string(pid), ESRCH);
    pidfd_ = std::move(*pidfd);
    proc_.stat();  // fails if the number went to another task between the two
  }
  std::string read(const std::string& name) const override { return proc_.read(name); }
  bool own_root() const override { return proc_.link("root") != "/"; }
  bool ends_within(std::chrono::milliseconds time) const override {
    pollfd p{pidfd_.get(), POLLIN, 0};
    return ::poll(&p, 1, static_cast<int>(time.count())) > 0;
  }
  void attach() override {
    pagemap_ = proc_.open("pagemap", O_RDONLY);
    mem_ = proc_.open("mem", O_RDONLY);
  }
  size_t pagemap(uint64_t first, std::span<uint64_t> words) const override {
    return pread_full(pagemap_.get(), std::as_writable_bytes(words), first * sizeof(uint64_t), "pagemap") /
           sizeof(uint64_t);
  }
  Fd memory() const override { return mem_.dup(); }
  void clear_refs() const override {
    const Fd file = proc_.open("clear_refs", O_WRONLY);
    write_full(file.get(), as_bytes_of("4"), "/proc/PID/clear_refs");
  }
  std::optional<bool> is_zero_page(uint64_t frame, uint64_t page) const override { return zeros_.has(frame, page); }
  bool merges_pages() const override {
    const Fd run(::open("/sys/kernel/mm/ksm/run", O_RDONLY | O_CLOEXEC));
    char digit = '0';
    return run && ::read(run.get(), &digit, 1) == 1 && digit != '0';
  }

 private:
  ProcDir proc_;
  Fd pidfd_, pagemap_, mem_;
  ZeroPages zeros_;
};

}  // namespace

std::unique_ptr<SoftDirtyFiles> real_soft_dirty_files(pid_t pid) { return std::make_unique<RealFiles>(pid); }

}  // namespace migrate
