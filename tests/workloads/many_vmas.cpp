// NUMBER (default 5000) mappings of one page each that cannot merge, each with its own contents.
#include <vector>

#include "workload.h"

using namespace workload;

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const auto count = static_cast<size_t>(w.number(0, 5000));
        constexpr size_t kPage = 4096;
        void* area = mmap(nullptr, count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        expect(area != MAP_FAILED, "mmap failed");
        char* base = static_cast<char*>(area);
        for (size_t i = 0; i < count; ++i) {
          fill_pattern(base + i * kPage, 64, i);
          if (i % 2 == 1) must(mprotect(base + i * kPage, kPage, PROT_READ), "mprotect");
        }
        w.serve([&] {
          for (size_t i = 0; i < count; ++i) {
            expect_pattern(base + i * kPage, 64, i, "mapping " + std::to_string(i));
            for (size_t k = 64; k < kPage; k += 512) expect(base[i * kPage + k] == 0, "the rest of a page is not zero");
          }
        });
      },
      argv[0]);
}
