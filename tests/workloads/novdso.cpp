// A task that has unmapped its [vdso], as sandboxes and some libraries do: it must be visited, moved and live on
// without one.
#include <fstream>
#include <sstream>
#include <vector>

#include "workload.h"

// The C library's own calls the vdso at an address that it noted at the start.
extern "C" int clock_gettime(clockid_t clock, struct timespec* time) noexcept {
  return static_cast<int>(syscall(SYS_clock_gettime, clock, time));
}

using namespace workload;

namespace {

struct Mapping {
  uint64_t start, end;
};

std::vector<Mapping> kernel_mappings() {
  std::vector<Mapping> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (!line.ends_with("[vdso]") && !line.ends_with("[vvar]") && !line.ends_with("[vvar_vclock]")) continue;
    Mapping m{};
    char dash = 0;
    std::istringstream(line) >> std::hex >> m.start >> dash >> m.end;
    found.push_back(m);
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        for (const Mapping& m : kernel_mappings())
          must(munmap(reinterpret_cast<void*>(m.start), m.end - m.start), "munmap");  // NOLINT
        w.serve([] { expect(kernel_mappings().empty(), "a vdso has come back"); });
      },
      argv[0]);
}
