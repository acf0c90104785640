#include "core/memory/mapping_reader.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>
#include <utility>

#include "core/base/error.h"

namespace migrate {
namespace {

/// Mappings of ours with one flag or another, a page each, apart from each other. Gone with the object.
class SampleMappings {
 public:
  SampleMappings() {
    area_ = static_cast<char*>(::mmap(nullptr, kPages * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (area_ == MAP_FAILED) throw Error("map", "sample pages", errno);
    map_each_kind();
    for (const int advice : {MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP, MADV_HUGEPAGE,
                             MADV_NOHUGEPAGE, MADV_MERGEABLE})
      ::madvise(plain(), kPageSize, advice);  // fails where the kernel has no such thing
    ::mlock2(plain(), kPageSize, 0);
    ::mlock2(plain(), kPageSize, MLOCK_ONFAULT);
    register_one(UFFDIO_REGISTER_MODE_WP);
    register_one(UFFDIO_REGISTER_MODE_MISSING);
  }
  ~SampleMappings() { ::munmap(area_, kPages * kPageSize); }
  SampleMappings(const SampleMappings&) = delete;
  SampleMappings& operator=(const SampleMappings&) = delete;

  /// By address: the whole of it, but for the gaps.
  bool contains(const RemoteRange& range) const {
    const auto start = reinterpret_cast<uint64_t>(area_);
    return range.start.get() >= start && range.end.get() <= start + next_ * kPageSize && range.pages() == 1 &&
           (range.start.get() - start) / kPageSize % 2 == 0;
  }

 private:
  static constexpr size_t kPages = 64;

  char* map(int prot, int flags, int fd = -1) {
    char* at = area_ + next_ * kPageSize;
    next_ += 2;
    return ::mmap(at, kPageSize, prot, flags | MAP_FIXED, fd, 0) == at ? at : nullptr;
  }
  char* plain() { return map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS); }
  void map_each_kind() {
    plain();
    map(PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
    map(PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
    map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
    map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    const Fd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    map(PROT_READ, MAP_PRIVATE, file.get());
    map(PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get());
    map(PROT_READ, MAP_SHARED, file.get());
  }
  void register_one(uint64_t mode) {
    Fd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
    uffdio_api api{};
    api.api = UFFD_API;
    if (!uffd || ::ioctl(uffd.get(), UFFDIO_API, &api) != 0) return;
    uffdio_register registration{};
    registration.range = {reinterpret_cast<uint64_t>(plain()), kPageSize};
    registration.mode = mode;
    ::ioctl(uffd.get(), UFFDIO_REGISTER, &registration);
    registered_.push_back(std::move(uffd));
  }

  char* area_;
  size_t next_ = 2;
  std::vector<Fd> registered_;  ///< closing one ends its registration
};

/// The kernel's own are told as well: every task has them.
bool is_fixed(const Vma& vma) { return vma.name.starts_with("[v") && vma.name != "[vsyscall]"; }

VmFlagBits learn(const VmaWalk& walk) {
  const SampleMappings mappings;
  const ProcDir self(::getpid());
  std::map<uint64_t, uint64_t> words;  // start → word
  for (const VmaWord& vma : walk.walk(::getpid())) words[vma.range.start.get()] = vma.word;
  std::vector<VmFlagBits::Sample> samples;
  for_each_vm_flags(self.read("smaps"), [&](const Vma& vma, std::set<std::string> letters) {
    const auto word = words.find(vma.range.start.get());
    if (word != words.end() && (mappings.contains(vma.range) || is_fixed(vma)))
      samples.push_back({word->second, std::move(letters)});
  });
  return VmFlagBits(samples);
}

}  // namespace

MappingReader MappingReader::best() {
  MappingReader reader;
  try {
    reader.walk_ = VmaWalk::open();
    if (reader.walk_) reader.bits_ = learn(*reader.walk_);
  } catch (const Error&) {  // no memory, no descriptors: smaps is always there
    reader.walk_.reset();
  }
  return reader;
}

std::shared_ptr<const MappingReader> MappingReader::shared(std::shared_ptr<const MappingReader> given) {
  return given ? std::move(given) : std::make_shared<const MappingReader>(best());
}

std::vector<Vma> MappingReader::read(const ProcDir& task) const {
  if (auto all = read_quickly(task)) return std::move(*all);
  return parse_smaps(task.read("smaps"));
}

std::optional<std::vector<Vma>> MappingReader::read_quickly(const ProcDir& task) const {
  constexpr int kTries = 3;
  for (int tries = 0; walk_ && tries < kTries; ++tries) {
    // In this order: maps can be read only if the task still lives, so its number cannot be another's before.
    const std::vector<VmaWord> words = walk_->walk(task.pid());
    std::vector<Vma> all = parse_smaps(task.read("maps"));
    auto word = words.begin();
    bool same = true;
    for (Vma& vma : all) {
      if (vma.name == "[vsyscall]") continue;
      same = word != words.end() && word->range == vma.range;
      if (!same) break;
      const auto flags = bits_->flags(word->word);
      if (!flags) return std::nullopt;
      vma.flags |= *flags;
      ++word;
    }
    if (!same || word != words.end()) continue;
    return all;
  }
  return std::nullopt;
}

}  // namespace migrate
