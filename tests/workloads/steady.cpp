// Memory of all kinds that is written all the time, by three threads and a child, while mappings and descriptors stay
// as they are: what a cancelled migration must leave as it was. A check also moves a mapping with mremap(2) and grows
// the heap.
//     steady DIR [PAGES written a second by each writer]
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <mutex>
#include <thread>

#include "wild_memory.h"

using namespace wild;

namespace {

constexpr size_t huge = 2 << 20;
constexpr int collapse = 25;  // MADV_COLLAPSE, Linux 6.1

/// One mapping, and the version of each of its pages; the versions are shared memory, for the child.
struct Region {
  std::string name;
  std::byte* at = nullptr;
  size_t pages = 0;
  uint64_t id = 0;
  uint32_t* versions = nullptr;

  Region(std::string called, void* memory, size_t count, uint64_t number)
      : name(std::move(called)), at(static_cast<std::byte*>(memory)), pages(count), id(number) {
    expect(memory != MAP_FAILED, "mmap of " + name);
    versions = workload::shared_memory<uint32_t>(count);
    for (size_t i = 0; i < pages; ++i) write(i);
  }
  void write(size_t page) { write_page(at + page * page_size, id, page, ++versions[page]); }
  void verify() const {
    for (size_t i = 0; i < pages; ++i) verify_page(at + i * page_size, id, i, versions[i], name);
  }
};

void* map(size_t bytes, int flags, int fd = -1) { return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0); }

/// Huge pages need an aligned place.
void* map_huge(size_t bytes) {
  auto* at = static_cast<std::byte*>(map(bytes + huge, MAP_PRIVATE | MAP_ANONYMOUS));
  expect(at != MAP_FAILED, "mmap");
  const size_t before = (huge - reinterpret_cast<uintptr_t>(at) % huge) % huge;
  if (before != 0) munmap(at, before);
  if (before != huge) munmap(at + before + bytes, huge - before);
  madvise(at + before, bytes, MADV_HUGEPAGE);
  return at + before;
}

struct Shared {
  std::atomic<bool> still, child_is_still;
  std::atomic<uint64_t> written;
};

/// Writes at a pace until told to be still, and then says so.
class Writer {
 public:
  Writer(Shared& shared, std::vector<Region>& regions, uint64_t seed, long pace)
      : shared_(shared), regions_(regions), random_{seed}, pace_(pace) {}

  void turn() {
    Region& region = regions_[random_.below(regions_.size())];
    const auto count = static_cast<size_t>(std::max(1L, pace_ / 200));
    for (size_t i = 0; i < count; ++i) region.write(random_.below(region.pages));
    ++shared_.written;
    workload::sleep_ms(5);
  }

 private:
  Shared& shared_;
  std::vector<Region>& regions_;
  Random random_;
  long pace_;
};

[[noreturn]] void child_main(Shared& s, std::vector<Region>& regions, long pace) {
  const pid_t parent = getppid();
  Writer writer(s, regions, 99, pace);
  while (getppid() == parent) {
    s.child_is_still = s.still.load();
    if (s.still)
      workload::sleep_ms(1);
    else
      writer.turn();
  }
  _exit(0);
}

/// There and back again, and it may become longer meanwhile.
void try_mremap(Region& region) {
  const size_t length = region.pages * page_size;
  void* away = mremap(region.at, length, 2 * length, MREMAP_MAYMOVE);
  expect(away != MAP_FAILED, std::string("mremap to twice the size: ") + std::strerror(errno));
  auto* const moved = static_cast<std::byte*>(away);
  for (size_t i = 0; i < length; ++i) expect(moved[length + i] == std::byte{0}, "memory behind an mremap is not zero");
  std::memset(moved + length, 1, length);
  for (size_t i = 0; i < region.pages; ++i)
    verify_page(moved + i * page_size, region.id, i, region.versions[i], "moved mapping");
  expect(mremap(moved, 2 * length, length, 0) == moved,
         std::string("mremap to half the size: ") + std::strerror(errno));
  if (moved == region.at) return;
  expect(mremap(moved, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, region.at) == region.at,
         std::string("mremap back: ") + std::strerror(errno));
}

void try_heap() {
  constexpr intptr_t more = 1 << 20;
  auto* const before = static_cast<std::byte*>(sbrk(more));
  expect(before != reinterpret_cast<void*>(-1), std::string("sbrk: ") + std::strerror(errno));
  for (intptr_t i = 0; i < more; ++i) expect(before[i] == std::byte{0}, "new heap is not zero");
  std::memset(before, 1, more);
  expect(sbrk(-more) == before + more, "sbrk back");
}

}  // namespace

int main(int argc, char** argv) {
  return workload::run(
      [&] {
        workload::Workload w(argc, argv, 4 * 3600);
        const long pace = w.number(0, 4000);
        Memory::make_file(w.path("pages"));
        const int file = must(open(w.path("pages").c_str(), O_RDONLY | O_CLOEXEC), "open the pages' file");
        const int memfd = must(memfd_create("steady", MFD_CLOEXEC), "memfd_create");
        must(ftruncate(memfd, 256 * page_size), "ftruncate");
        constexpr int anonymous = MAP_PRIVATE | MAP_ANONYMOUS, shared = MAP_SHARED | MAP_ANONYMOUS;
        std::vector<Region> ours, common;
        common.emplace_back("shared memory", map(256 * page_size, shared), 256, 4);
        common.emplace_back("a memfd", map(256 * page_size, MAP_SHARED, memfd), 256, 5);
        // Before there are huge pages: who writes to those after a fork splits them.
        auto* s = workload::shared_memory<Shared>();
        if (must(fork(), "fork") == 0) child_main(*s, common, pace);
        ours.emplace_back("huge pages", map_huge(8 * huge), 8 * huge / page_size, 1);
        ours.emplace_back("small pages", map(2048 * page_size, anonymous), 2048, 2);
        ours.emplace_back("private file memory", map(Memory::file_pages * page_size, MAP_PRIVATE, file),
                          Memory::file_pages, 3);
        Region still_huge("huge pages that nobody writes", map_huge(4 * huge), 4 * huge / page_size, 6);
        Region movable("a mapping that moves", map(64 * page_size, anonymous), 64, 7);
        int sockets[2], pipes[2];
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), "socketpair");
        must(pipe2(pipes, O_CLOEXEC), "pipe2");
        must(eventfd(3, EFD_CLOEXEC), "eventfd");
        expect(write(sockets[0], "socket", 6) == 6 && write(pipes[1], "pipe", 4) == 4, "write");

        std::mutex mutex;
        for (uint64_t i = 0; i < 3; ++i)
          std::thread([&, i] {
            Writer writer(*s, ours, i, pace);
            for (;;) {
              {
                const std::lock_guard lock(mutex);
                writer.turn();
              }
              workload::sleep_ms(3);
            }
          }).detach();
        w.serve([&] {
          const uint64_t written = s->written;
          workload::await([&] { return s->written > written + 20; }, "the writers");
          const std::lock_guard lock(mutex);
          s->still = true;
          workload::await([&] { return s->child_is_still.load(); }, "the child to be still");
          for (const auto* regions : {&ours, &common})
            for (const Region& r : *regions) r.verify();
          still_huge.verify();
          try_mremap(movable);
          // A move makes small pages of them, which the kernel would collapse some time.
          madvise(ours.front().at, ours.front().pages * page_size, collapse);
          madvise(still_huge.at, still_huge.pages * page_size, collapse);
          try_heap();
          s->still = false;
        });
      },
      argv[0]);
}
