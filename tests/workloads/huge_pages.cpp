// NUMBER MiB (default 16) in huge pages, made by the program itself, without advice by which the kernel would make them
// of its own accord; as much beside it that it has in small ones; and one block of which it has given one page back.
#include <sys/mman.h>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kBlock = 2 << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE

/// Aligned to blocks, with nothing beside.
uint8_t* area(size_t bytes) {
  auto* around =
      static_cast<uint8_t*>(mmap(nullptr, bytes + 2 * kBlock, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  expect(around != MAP_FAILED, "mmap failed");
  uint8_t* start = around + (kBlock - reinterpret_cast<uintptr_t>(around) % kBlock);
  must(mprotect(start, bytes, PROT_READ | PROT_WRITE), "mprotect");
  return start;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const size_t bytes = static_cast<size_t>(w.number(0, 16)) << 20;
        constexpr size_t kHole = 77 * 4096;
        uint8_t *huge = area(bytes), *small = area(bytes), *holed = area(kBlock);
        fill_pattern(huge, bytes, 1);
        fill_pattern(small, bytes, 2);
        fill_pattern(holed, kBlock, 3);
        must(madvise(huge, bytes, kCollapse), "MADV_COLLAPSE");
        must(madvise(holed, kBlock, kCollapse), "MADV_COLLAPSE");
        must(madvise(holed + kHole, 4096, MADV_DONTNEED), "MADV_DONTNEED");
        w.serve([&] {
          expect_pattern(huge, bytes, 1, "what was huge pages");
          expect_pattern(small, bytes, 2, "what was small pages");
          expect_pattern(holed, kHole, 3, "what is before the hole");
        });
      },
      argv[0]);
}
